//! Power-off and reset, as ACPI has them for machines without the older hardware: a sleep control register, whose
//! status register always says "done", and a reset register.
//!
//! ACPI specification 6.5, section 4.8.3.7 "Sleep Control and Status Registers" and section 4.8.3.6 "Reset Register".

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The sleep control register's port; the status and reset registers follow.
pub const PORT: u16 = 0x600;
/// How many ports there are.
pub const PORTS: u16 = 3;
/// The sleep type of soft-off, S5, which the tables name.
pub const SOFT_OFF: u8 = 5;
/// What resets the machine when it is written to the reset register.
pub const RESET: u8 = 1;

/// Sleep control: enter the sleep state whose type is in bits 2 to 4.
const SLEEP_ENABLE: u64 = 1 << 5;

/// The three registers.
#[derive(Clone, Copy, Debug)]
pub struct Power;

impl Device for Power {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(0)
    }

    fn write(&mut self, offset: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        match offset {
            0 if data & SLEEP_ENABLE != 0 && data >> 2 & 7 == u64::from(SOFT_OFF) => {
                ControlFlow::Break(Stop::PoweredOff)
            }
            2 if data & 0xff == u64::from(RESET) => ControlFlow::Break(Stop::Rebooted),
            _ => ControlFlow::Continue(()),
        }
    }

    fn name(&self, offset: u64) -> DeviceName {
        match offset {
            2 => DeviceName::register("ACPI", "reset"),
            _ => DeviceName::register("ACPI", "sleep"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_with_the_enable_bit_powers_off() {
        for data in [0, 0x14, 0x20, 0x24, 0xff14 & !0x20] {
            assert!(Power.write(0, 1, data).is_continue(), "{data:#x}");
        }
        assert!(matches!(Power.write(0, 1, 0x34), ControlFlow::Break(Stop::PoweredOff)));
        assert!(Power.write(1, 1, 0x34).is_continue());
    }

    #[test]
    fn one_resets() {
        assert!(Power.write(2, 1, 0).is_continue());
        assert!(matches!(Power.write(2, 1, 1), ControlFlow::Break(Stop::Rebooted)));
    }
}
