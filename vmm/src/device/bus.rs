//! Buses: which device is behind a port or an address.
//!
//! A [`Device`] sees an offset in its own range, never an address, the bus or the machine. What it wants
//! of the machine it answers: [`ControlFlow::Break`] with a [`Stop`] ends the run.

use crate::error::BusError;
use crate::exit::Stop;
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

    /// Puts the device into the state after power-on. [`Machine::reset`](crate::Machine::reset) calls this; a device
    /// without state needs no implementation.
    fn reset(&mut self) {}
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

    /// Reads `size` bytes at `address` from the device there. `None` if no device claims the address.
    #[inline]
    pub fn read(&self, address: u64, size: u8) -> Option<ControlFlow<Stop, u64>> {
        self.at(address).map(|(device, offset)| lock(device).read(offset, size))
    }

    /// Writes the low `size` bytes of `data` to the device at `address`. `None` if no device claims the address.
    #[inline]
    pub fn write(&self, address: u64, size: u8, data: u64) -> Option<ControlFlow<Stop>> {
        self.at(address).map(|(device, offset)| lock(device).write(offset, size, data))
    }

    /// Puts all devices into the state after power-on.
    pub(crate) fn reset(&self) {
        self.ranges.iter().for_each(|range| lock(&range.device).reset());
    }

    /// All addresses that a device claims, in order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|range| range.first..=range.last)
    }
}

/// A device's lock. A device that panicked leaves its state as it was: the run is over by then.
fn lock<D: ?Sized>(device: &Mutex<D>) -> std::sync::MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
