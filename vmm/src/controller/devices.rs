//! The devices of a machine, as a controller that forwards port, MMIO and MSR exits to them.

use crate::controller::{ExitController, VcpuState};
use crate::device::bus::Bus;
use crate::exit::{Exit, Outcome, Stop};
use std::ops::ControlFlow;

/// Width of an access to a model-specific register, in bytes.
const MSR_SIZE: u8 = 8;

/// The devices of a machine. As a controller it forwards port, MMIO and MSR exits to them.
#[derive(Debug, Default)]
pub struct Devices {
    /// The devices on ports.
    pub ports: Bus,
    /// The devices at guest physical addresses.
    pub mmio: Bus,
    /// The devices on model-specific registers. All accesses have 8 bytes.
    pub msrs: Bus,
}

impl Devices {
    /// Puts all devices into the state after power-on.
    pub(crate) fn reset(&self) {
        [&self.ports, &self.mmio, &self.msrs].into_iter().for_each(Bus::reset);
    }

    /// The model-specific registers that have a device.
    pub(crate) fn msr_numbers(&self) -> impl Iterator<Item = u32> {
        self.msrs.addresses().filter_map(|index| u32::try_from(index).ok())
    }
}

/// The outcome of a read.
fn value(answer: Option<ControlFlow<Stop, u64>>) -> Outcome {
    match answer {
        Some(ControlFlow::Continue(value)) => Outcome::Value(value),
        Some(ControlFlow::Break(stop)) => Outcome::Stop(stop),
        None => Outcome::Unclaimed,
    }
}

/// The outcome of a write.
fn done(answer: Option<ControlFlow<Stop>>) -> Outcome {
    match answer {
        Some(ControlFlow::Continue(())) => Outcome::Resume,
        Some(ControlFlow::Break(stop)) => Outcome::Stop(stop),
        None => Outcome::Unclaimed,
    }
}

/// The controller is shared by all vCPUs: each device has its own lock.
impl ExitController for &Devices {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match *exit {
            Exit::PioIn { port, size } => value(self.ports.read(port.into(), size)),
            Exit::PioOut { port, size, data } => done(self.ports.write(port.into(), size, data.into())),
            Exit::MmioRead { address, size } => value(self.mmio.read(address, size)),
            Exit::MmioWrite { address, size, data } => done(self.mmio.write(address, size, data)),
            Exit::RdMsr { index } => value(self.msrs.read(index.into(), MSR_SIZE)),
            Exit::WrMsr { index, data } => done(self.msrs.write(index.into(), MSR_SIZE, data)),
            _ => Outcome::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::FakeVcpu;
    use crate::device::bus::{Device, DeviceName, SharedDevice};
    use crate::error::BusError;
    use std::sync::{Arc, Mutex};

    fn handle(mut devices: &Devices, exit: Exit) -> Outcome {
        devices.handle(&exit, &mut FakeVcpu::default())
    }

    /// Answers reads with its number and the offset. A write of 99 ends the run.
    struct Numbered(u64);

    impl Device for Numbered {
        fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
            ControlFlow::Continue(self.0 << 8 | offset)
        }
        fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
            if data == 99 { ControlFlow::Break(Stop::Exited(self.0)) } else { ControlFlow::Continue(()) }
        }
        fn name(&self, _: u64) -> DeviceName {
            DeviceName::device("numbered")
        }
    }

    fn numbered(number: u64) -> SharedDevice {
        Arc::new(Mutex::new(Numbered(number)))
    }

    fn devices() -> Devices {
        let mut devices = Devices::default();
        devices.ports.attach(0x20, 2, numbered(2)).unwrap();
        devices.ports.attach(0x10, 0x10, numbered(1)).unwrap();
        devices.mmio.attach(u64::MAX - 3, 4, numbered(3)).unwrap();
        devices
    }

    #[test]
    fn a_device_sees_offsets_from_the_start_of_its_range() {
        let devices = devices();
        let read = |port| match handle(&devices, Exit::PioIn { port, size: 1 }) {
            Outcome::Value(value) => Some(value),
            Outcome::Unclaimed => None,
            other => panic!("{other:?}"),
        };
        assert_eq!((read(0x0f), read(0x10), read(0x1f)), (None, Some(0x100), Some(0x10f)));
        assert_eq!((read(0x20), read(0x21), read(0x22)), (Some(0x200), Some(0x201), None));
    }

    #[test]
    fn a_device_can_end_at_the_last_address() {
        let devices = devices();
        let read = Exit::MmioRead { address: u64::MAX, size: 1 };
        assert!(matches!(handle(&devices, read), Outcome::Value(0x303)));
        assert_eq!(devices.mmio.name(u64::MAX), Some(DeviceName::device("numbered")));
        assert_eq!(devices.mmio.name(0), None);
    }

    #[test]
    fn overlapping_and_invalid_ranges_are_refused() {
        let mut bus = devices().ports;
        for (first, len) in [(0x0f, 2), (0x10, 1), (0x1f, 1), (0x15, 0x100), (0, 0x1000), (0x21, 1)] {
            let last = first + len - 1;
            assert_eq!(bus.attach(first, len, numbered(9)), Err(BusError::Overlap { first, last }));
        }
        for (first, len) in [(0x100, 0), (u64::MAX, 2), (2, u64::MAX)] {
            assert_eq!(bus.attach(first, len, numbered(9)), Err(BusError::Range { first, len }));
        }
        assert_eq!(bus.attach(0x22, 1, numbered(9)), Ok(()));
    }

    #[test]
    fn a_device_can_end_the_run() {
        let devices = devices();
        assert!(matches!(handle(&devices, Exit::PioOut { port: 0x20, size: 1, data: 1 }), Outcome::Resume));
        let outcome = handle(&devices, Exit::PioOut { port: 0x20, size: 1, data: 99 });
        assert!(matches!(outcome, Outcome::Stop(Stop::Exited(2))));
    }

    #[test]
    fn a_device_can_have_an_msr() {
        let mut devices = devices();
        devices.msrs.attach(0xabc, 1, numbered(4)).unwrap();
        assert!(matches!(handle(&devices, Exit::RdMsr { index: 0xabc }), Outcome::Value(0x400)));
        assert!(matches!(handle(&devices, Exit::WrMsr { index: 0xabc, data: 1 }), Outcome::Resume));
        assert!(matches!(handle(&devices, Exit::RdMsr { index: 0xabd }), Outcome::Unclaimed));
    }
}
