//! The ports of the PCI configuration space, 0xCF8 to 0xCFF, of a machine without PCI. Reads return all ones, so a kernel
//! that checks for the address register (0xCF8) finds no bus with two accesses, and one that does not finds no device. The
//! reset control register of a PC's chipset is at 0xCF9.
//!
//! PCI Local Bus Specification 3.0, section 3.2.2.3.2 "Software Generation of Configuration Transactions"; Intel ICH
//! data sheet, "RST_CNT: Reset Control Register".

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The first port.
pub const PORT: u16 = 0xcf8;
/// The number of ports.
pub const PORTS: u16 = 8;

/// The offset of the reset control register.
const RESET_CONTROL: u64 = 1;
/// Reset control: resets the processor when it changes from 0 to 1.
const RESET: u64 = 1 << 2;

/// The device.
#[derive(Clone, Copy, Debug)]
pub struct PciConfiguration;

impl Device for PciConfiguration {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        match (offset, size) {
            (RESET_CONTROL, 1) if data & RESET != 0 => ControlFlow::Break(Stop::Rebooted),
            _ => ControlFlow::Continue(()),
        }
    }

    fn name(&self, offset: u64) -> DeviceName {
        match offset {
            0 => DeviceName::register("PCI", "address"),
            RESET_CONTROL => DeviceName::register("PCI", "reset"),
            4.. => DeviceName::register("PCI", "data"),
            _ => DeviceName::device("PCI"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bus_is_found_and_0xcf9_resets() {
        let mut pci = PciConfiguration;
        for (offset, size, data) in [(0, 4, 0x8000_0000), (4, 4, 6), (1, 1, 2), (1, 2, 6), (3, 1, 1)] {
            assert!(pci.write(offset, size, data).is_continue());
            assert_eq!(pci.read(offset, size).continue_value(), Some(u64::MAX));
        }
        assert!(matches!(pci.write(1, 1, 6), ControlFlow::Break(Stop::Rebooted)));
    }
}
