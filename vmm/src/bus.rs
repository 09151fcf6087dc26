//! Buses: which device is behind a port or an address.
//!
//! A [`Device`] sees an offset in its own range, never an address, the bus or the machine. What it wants
//! of the machine it answers: [`ControlFlow::Break`] with a [`Stop`] ends the run.

use crate::controller::{ExitController, VcpuState};
use crate::error::BusError;
use crate::exit::{Exit, Outcome, Stop};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A device behind a range of ports or addresses.
pub trait Device: Send {
    /// The guest reads `size` bytes (1, 2, 4; MMIO also 8 and odd sizes up to 8) at `offset` in the
    /// device's range. The range may end before the access does.
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64>;

    /// The guest writes the low `size` bytes of `data` at `offset` in the device's range.
    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop>;

    /// What is at `offset`, for the exit profile.
    fn name(&self, offset: u64) -> &'static str;
}

/// A device that a bus, or two, and the machine share.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

struct Range {
    first: u64,
    last: u64,
    device: SharedDevice,
}

/// Ports, addresses or registers, and who is behind them.
#[derive(Default)]
pub struct Bus {
    /// In order of address, without overlaps.
    ranges: Vec<Range>,
    /// Which of them was found last: a guest often comes back to it at once.
    last: AtomicUsize,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| (range.first, range.last))).finish()
    }
}

impl Bus {
    /// Puts `device` behind the `len` ports or addresses from `first`.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another.
    pub fn attach(&mut self, first: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|more| first.checked_add(more));
        let last = last.ok_or(BusError::Range { first, len })?;
        if self.ranges.iter().any(|range| first <= range.last && range.first <= last) {
            return Err(BusError::Overlap { first, last });
        }
        let place = self.ranges.partition_point(|range| range.first < first);
        self.ranges.insert(place, Range { first, last, device });
        Ok(())
    }

    /// The device behind `address`, and the offset in its range.
    #[inline]
    pub fn at(&self, address: u64) -> Option<(&SharedDevice, u64)> {
        let holds = |range: &&Range| range.first <= address && address <= range.last;
        let last = self.ranges.get(self.last.load(Ordering::Relaxed)).filter(holds);
        let range = last.or_else(|| self.find(address).filter(holds))?;
        Some((&range.device, address.saturating_sub(range.first)))
    }

    /// The last range that begins at `address` or before it.
    fn find(&self, address: u64) -> Option<&Range> {
        let after = self.ranges.partition_point(|range| range.first <= address);
        let place = after.checked_sub(1)?;
        self.last.store(place, Ordering::Relaxed);
        self.ranges.get(place)
    }

    /// What is behind `address`, for the exit profile.
    pub fn name(&self, address: u64) -> Option<&'static str> {
        self.at(address).map(|(device, offset)| lock(device).name(offset))
    }

    fn read(&self, address: u64, size: u8) -> Outcome {
        match self.at(address).map(|(device, offset)| lock(device).read(offset, size)) {
            Some(ControlFlow::Continue(value)) => Outcome::Value(value),
            Some(ControlFlow::Break(stop)) => Outcome::Stop(stop),
            None => Outcome::Unclaimed,
        }
    }

    fn write(&self, address: u64, size: u8, data: u64) -> Outcome {
        match self.at(address).map(|(device, offset)| lock(device).write(offset, size, data)) {
            Some(ControlFlow::Continue(())) => Outcome::Resume,
            Some(ControlFlow::Break(stop)) => Outcome::Stop(stop),
            None => Outcome::Unclaimed,
        }
    }
}

/// A device's lock. A device that panicked leaves its state as it was: the run is over by then.
fn lock<D: ?Sized>(device: &Mutex<D>) -> std::sync::MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Width of an access to a model-specific register, in bytes.
const MSR_SIZE: u8 = 8;

/// All devices of a machine: the controller that hands port and MMIO exits to them.
#[derive(Debug, Default)]
pub struct Devices {
    /// Devices behind ports.
    pub ports: Bus,
    /// Devices behind guest physical addresses.
    pub mmio: Bus,
    /// Devices behind model-specific registers: accesses of 8 bytes.
    pub msrs: Bus,
}

impl Devices {
    /// The model-specific registers that a device is behind.
    pub(crate) fn msr_numbers(&self) -> impl Iterator<Item = u32> {
        let firsts = self.msrs.ranges.iter().flat_map(|range| range.first..=range.last);
        firsts.filter_map(|index| u32::try_from(index).ok())
    }
}

/// Shared by all vCPUs: each device has a lock of its own.
impl ExitController for &Devices {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match *exit {
            Exit::PioIn { port, size } => self.ports.read(port.into(), size),
            Exit::PioOut { port, size, data } => self.ports.write(port.into(), size, data.into()),
            Exit::MmioRead { address, size } => self.mmio.read(address, size),
            Exit::MmioWrite { address, size, data } => self.mmio.write(address, size, data),
            Exit::RdMsr { index } => self.msrs.read(index.into(), MSR_SIZE),
            Exit::WrMsr { index, data } => self.msrs.write(index.into(), MSR_SIZE, data),
            _ => Outcome::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::StillVcpu;

    fn handle(mut devices: &Devices, exit: Exit) -> Outcome {
        devices.handle(&exit, &mut StillVcpu::default())
    }

    /// Answers reads with its number and the offset; a write of 99 ends the run.
    struct Numbered(u64);

    impl Device for Numbered {
        fn read(&mut self, offset: u64, _: u8) -> ControlFlow<Stop, u64> {
            ControlFlow::Continue(self.0 << 8 | offset)
        }
        fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
            if data == 99 { ControlFlow::Break(Stop::Exited(self.0)) } else { ControlFlow::Continue(()) }
        }
        fn name(&self, _: u64) -> &'static str {
            "numbered"
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
    fn a_device_sees_offsets_in_its_own_range() {
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
    fn the_last_address_is_an_address_too() {
        let devices = devices();
        let read = Exit::MmioRead { address: u64::MAX, size: 1 };
        assert!(matches!(handle(&devices, read), Outcome::Value(0x303)));
        assert_eq!(devices.mmio.name(u64::MAX), Some("numbered"));
        assert_eq!(devices.mmio.name(0), None);
    }

    #[test]
    fn overlaps_and_impossible_ranges_are_refused() {
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
    fn a_device_may_be_behind_an_msr() {
        let mut devices = devices();
        devices.msrs.attach(0xabc, 1, numbered(4)).unwrap();
        assert!(matches!(handle(&devices, Exit::RdMsr { index: 0xabc }), Outcome::Value(0x400)));
        assert!(matches!(handle(&devices, Exit::WrMsr { index: 0xabc, data: 1 }), Outcome::Resume));
        assert!(matches!(handle(&devices, Exit::RdMsr { index: 0xabd }), Outcome::Unclaimed));
    }
}
