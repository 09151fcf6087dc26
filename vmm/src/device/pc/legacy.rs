//! The older devices of a PC at fixed ports, as far as kernels touch them without using them: the DMA controllers with
//! their page registers, system control port A, and the places of devices that this PC does not have. They take all
//! accesses, so that accesses to places where a PC has nothing at all stay visible in the report.
//!
//! Intel 8237A data sheet; IBM PS/2 Hardware Interface Technical Reference, "System Control Port A".

use crate::device::bus::{Bus, Device, DeviceName};
use crate::error::BusError;
use crate::exit::Stop;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// The page registers of the DMA controllers. The first one, 0x80, also takes the progress codes of firmware.
const PAGES: u16 = 0x80;
const PAGE_COUNT: u16 = 16;
/// System control port A.
const PORT_A: u16 = 0x92;
/// Port A: resets the machine when it is set.
const FAST_RESET: u8 = 1 << 0;
/// Port A: address line 20 is open.
const A20: u8 = 1 << 1;

/// The places of devices that this PC does not have, or that do nothing here: the first port, the number of ports, and the
/// name.
const ABSENT: [(u16, u16, &str); 12] = [
    (0x00, 16, "DMA"),
    (0xc0, 32, "DMA"),
    // A delay.
    (0xed, 1, "delay"),
    (0xf0, 2, "coprocessor"),
    (0x170, 8, "second ATA"),
    (0x376, 1, "second ATA"),
    (0x278, 8, "LPT2"),
    (0x378, 8, "LPT1"),
    (0x2e8, 8, "COM4"),
    (0x2f8, 8, "COM2"),
    (0x3b0, 16, "monochrome screen"),
    (0x3e8, 8, "COM3"),
];
/// The same for the floppy controller, around the port of the first disk.
const FLOPPY: [(u16, u16); 2] = [(0x3f0, 6), (0x3f7, 1)];

/// Attaches all of them.
///
/// # Errors
/// Another device is at one of their ports.
pub(crate) fn attach(ports: &mut Bus) -> Result<(), BusError> {
    ports.attach(PAGES.into(), PAGE_COUNT.into(), Arc::new(Mutex::new(Pages::default())))?;
    ports.attach(PORT_A.into(), 1, Arc::new(Mutex::new(PortA::default())))?;
    for (first, count, name) in ABSENT {
        ports.attach(first.into(), count.into(), Arc::new(Mutex::new(Absent(name))))?;
    }
    for (first, count) in FLOPPY {
        ports.attach(first.into(), count.into(), Arc::new(Mutex::new(Absent("floppy"))))?;
    }
    Ok(())
}

/// A device that is not there: reads return all ones, and writes have no effect.
#[derive(Clone, Copy, Debug)]
struct Absent(&'static str);

impl Device for Absent {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }

    fn write(&mut self, _: u64, _: u8, _: u64) -> ControlFlow<Stop> {
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device(self.0)
    }
}

/// The page registers, which read as written.
#[derive(Debug, Default)]
struct Pages([u8; PAGE_COUNT as usize]);

impl Device for Pages {
    fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
        let page = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset));
        ControlFlow::Continue(page.map_or(u64::MAX, |page| u64::from(*page)))
    }

    fn write(&mut self, offset: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        if let Some(page) = usize::try_from(offset).ok().and_then(|offset| self.0.get_mut(offset)) {
            *page = data.to_le_bytes()[0];
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        DeviceName::device(if offset == 0 { "POST code" } else { "DMA page" })
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// System control port A: a fast reset, and address line 20, which is always open.
#[derive(Debug, Default)]
struct PortA(u8);

impl Device for PortA {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue((self.0 & !FAST_RESET | A20).into())
    }

    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.0 = data.to_le_bytes()[0];
        if self.0 & FAST_RESET != 0 { ControlFlow::Break(Stop::Rebooted) } else { ControlFlow::Continue(()) }
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("system control A")
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Bus {
        let mut ports = Bus::default();
        attach(&mut ports).unwrap();
        ports
    }

    fn read(ports: &Bus, port: u64) -> u64 {
        ports.read(port, 1).unwrap().continue_value().unwrap() & 0xff
    }

    #[test]
    fn absent_devices_read_as_all_ones() {
        let ports = ports();
        for port in
            [0x00, 0xd0, 0xed, 0xf0, 0xf1, 0x177, 0x27f, 0x378, 0x2ef, 0x2f8, 0x3b4, 0x3ef, 0x3f0, 0x3f7]
        {
            assert!(ports.write(port, 1, 0).unwrap().is_continue());
            assert_eq!(read(&ports, port), 0xff, "{port:#x}");
        }
        // Other devices have these.
        for port in [
            0x20, 0x40, 0x60, 0x61, 0x64, 0x70, 0x71, 0xe9, 0xf4, 0x1f0, 0x3c0, 0x3d4, 0x3f6, 0x3f8, 0x402,
            0xcf8,
        ] {
            assert!(ports.read(port, 1).is_none(), "{port:#x}");
        }
    }

    #[test]
    fn page_registers_read_as_written() {
        let ports = ports();
        for port in 0x80..0x90 {
            assert!(ports.write(port, 1, port + 0x11).unwrap().is_continue());
            assert_eq!(read(&ports, port), port + 0x11);
        }
        assert!(ports.write(0x8f, 4, u64::MAX).unwrap().is_continue());
    }

    #[test]
    fn port_a_resets_the_machine_and_keeps_a20_open() {
        let ports = ports();
        assert_eq!(read(&ports, 0x92), 0x02);
        assert!(ports.write(0x92, 1, 0x00).unwrap().is_continue());
        assert_eq!(read(&ports, 0x92), 0x02);
        assert!(matches!(ports.write(0x92, 1, 0x03).unwrap(), ControlFlow::Break(Stop::Rebooted)));
    }
}
