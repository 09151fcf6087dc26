//! Power-off and reset through ACPI, for machines without the older hardware: the sleep control and status registers,
//! and the reset register. All reads return 0.
//!
//! ACPI specification 6.5, section 4.8.3.7 "Sleep Control and Status Registers" and section 4.8.3.6 "Reset Register".

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The sleep control register's port; the status and reset registers follow.
pub const PORT: u16 = 0x600;
/// The number of ports.
pub const PORTS: u16 = 3;
/// The sleep type of soft-off (S5), which the ACPI tables report to the kernel.
pub const SOFT_OFF: u8 = 5;
/// The value of the reset register that resets the machine.
pub const RESET: u8 = 1;

/// Sleep control: enters the sleep state whose type is in bits 2 to 4.
const SLEEP_ENABLE: u64 = 1 << 5;

/// The device with the three registers.
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
    fn writing_one_to_the_reset_register_resets() {
        assert!(Power.write(2, 1, 0).is_continue());
        assert!(matches!(Power.write(2, 1, 1), ControlFlow::Break(Stop::Rebooted)));
    }
}
