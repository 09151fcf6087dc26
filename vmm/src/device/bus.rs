//! Buses: they map ports, addresses and MSRs to devices.
//!
//! A [`Device`] gets an offset in its own range. It knows neither its address nor the bus nor the machine. A device
//! ends the run with the value that it returns: [`ControlFlow::Break`] with a [`Stop`].

use crate::error::BusError;
use crate::exit::Stop;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of a device and of one of its registers, for the exit profile.
///
/// It prints as one text, such as "simvirtio TX head". Saved profiles and traces contain this text (`docs/formats.md`),
/// and a reader splits it at the first blank. A device that names its registers therefore has a name without blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// The device, such as "simvirtio".
    pub device: &'static str,
    /// The register at the offset, such as "TX head". `None` if the device does not name its registers.
    pub register: Option<&'static str>,
}

impl DeviceName {
    /// The name of a device that does not name its registers.
    pub const fn device(device: &'static str) -> Self {
        Self { device, register: None }
    }

    /// The name of a register of `device`.
    pub const fn register(device: &'static str, register: &'static str) -> Self {
        Self { device, register: Some(register) }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.register {
            Some(register) => write!(f, "{} {register}", self.device),
            None => f.write_str(self.device),
        }
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// A device behind a range of ports, addresses or MSRs.
pub trait Device: Send {
    /// Reads `size` bytes at `offset` in the device's range. `size` is 1, 2 or 4 for ports, 1 to 8 for MMIO (odd sizes
    /// included), and 8 for MSRs. The access may go beyond the end of the range.
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64>;

    /// Writes the low `size` bytes of `data` at `offset` in the device's range. Sizes are those of [`Self::read`].
    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop>;

    /// The name of the device and of the register at `offset`, for the exit profile.
    fn name(&self, offset: u64) -> DeviceName;

    /// Returns the device to its state after power-on. [`Machine::reset`](crate::Machine::reset) calls this. A device
    /// without state needs no implementation.
    fn reset(&mut self) {}
}

/// A device that the machine shares with one or more buses.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

struct Range {
    first: u64,
    last: u64,
    device: SharedDevice,
}

/// A set of ranges of ports, addresses or MSRs, each with its device.
#[derive(Default)]
pub struct Bus {
    /// In order of address, without overlaps.
    ranges: Vec<Range>,
    /// The index of the range that was found last. A guest often accesses the same device again.
    last: AtomicUsize,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| (range.first, range.last))).finish()
    }
}

impl Bus {
    /// Attaches `device` to the `len` ports or addresses from `first`.
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

    /// The device at `address`, and the offset in its range.
    #[inline(always)]
    pub fn at(&self, address: u64) -> Option<(&SharedDevice, u64)> {
        let holds = |range: &&Range| range.first <= address && address <= range.last;
        let last = self.ranges.get(self.last.load(Ordering::Relaxed)).filter(holds);
        let range = last.or_else(|| self.find(address).filter(holds))?;
        Some((&range.device, address.saturating_sub(range.first)))
    }

    /// The last range that begins at or before `address`.
    fn find(&self, address: u64) -> Option<&Range> {
        let after = self.ranges.partition_point(|range| range.first <= address);
        let place = after.checked_sub(1)?;
        self.last.store(place, Ordering::Relaxed);
        self.ranges.get(place)
    }

    /// The name of the device and the register at `address`, for the exit profile.
    pub fn name(&self, address: u64) -> Option<DeviceName> {
        self.at(address).map(|(device, offset)| lock(device).name(offset))
    }

    /// Reads `size` bytes at `address` from the device there. `None` if no device claims the address.
    #[inline(always)]
    pub fn read(&self, address: u64, size: u8) -> Option<ControlFlow<Stop, u64>> {
        self.at(address).map(|(device, offset)| lock(device).read(offset, size))
    }

    /// Writes the low `size` bytes of `data` to the device at `address`. `None` if no device claims the address.
    #[inline(always)]
    pub fn write(&self, address: u64, size: u8, data: u64) -> Option<ControlFlow<Stop>> {
        self.at(address).map(|(device, offset)| lock(device).write(offset, size, data))
    }

    /// Puts all devices into the state after power-on.
    pub(crate) fn reset(&self) {
        self.ranges.iter().for_each(|range| lock(&range.device).reset());
    }

    /// The first and the last address of each range, in ascending order, and the name of its device. A device that is busy has
    /// no name.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, &'static str)> {
        self.ranges.iter().map(|range| {
            let name = range.device.try_lock().map_or("busy", |device| device.name(0).device);
            (range.first, range.last, name)
        })
    }

    /// All addresses that a device claims, in order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|range| range.first..=range.last)
    }
}

/// Locks a device. A panic in a device ends the run, so a poisoned lock only serves the report: its state is used as it
/// is.
fn lock<D: ?Sized>(device: &Mutex<D>) -> std::sync::MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::DeviceName;

    #[test]
    fn a_name_prints_as_the_device_then_the_register() {
        assert_eq!(DeviceName::device("exit port").to_string(), "exit port");
        assert_eq!(String::from(DeviceName::register("simvirtio", "TX head")), "simvirtio TX head");
    }
}
