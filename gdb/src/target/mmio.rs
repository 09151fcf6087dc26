//! Accesses to the addresses of devices, after `monitor mmio on`. The device sees them like those of the guest.

use super::Target;
use std::ops::ControlFlow;
use vmm::device::Bus;
use vmm::x86::Probe;

/// The most bytes of one request.
const LIMIT: usize = 64;

/// The physical address and the number of bytes of each access for `len` bytes: one access if a processor can make it.
fn accesses(probe: &Probe, start: u64, len: usize) -> Option<Vec<(u64, u8)>> {
    let size = match len {
        1 | 2 | 4 | 8 if start.is_multiple_of(len as u64) => len,
        0..=LIMIT => 1,
        _ => return None,
    };
    let offsets = (0..len as u64).step_by(size);
    let access = |offset| {
        let place = probe.translate_linear(start.wrapping_add(offset)).ok()?;
        Some((place.gpa.0, size as u8))
    };
    offsets.map(access).collect()
}

/// Reads from devices. `None` if there is none, or if it would end the run.
fn read(bus: &Bus, probe: &Probe, start: u64, data: &mut [u8]) -> Option<()> {
    let accesses = accesses(probe, start, data.len())?;
    let size = data.len().checked_div(accesses.len())?;
    for ((address, size), place) in accesses.into_iter().zip(data.chunks_mut(size)) {
        let ControlFlow::Continue(value) = bus.read(address, size)? else { return None };
        place.iter_mut().zip(value.to_le_bytes()).for_each(|(place, byte)| *place = byte);
    }
    Some(())
}

/// Writes to devices. `None` if there is none, or if it would end the run.
fn write(bus: &Bus, probe: &Probe, start: u64, data: &[u8]) -> Option<()> {
    let accesses = accesses(probe, start, data.len())?;
    let size = data.len().checked_div(accesses.len())?;
    for ((address, size), bytes) in accesses.into_iter().zip(data.chunks(size)) {
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let ControlFlow::Continue(()) = bus.write(address, size, value)? else { return None };
    }
    Some(())
}

impl Target<'_> {
    /// Reads the registers of a device at a linear address, if the user wants that. Returns true if it has done so.
    pub(super) fn read_device(&self, probe: &Probe, start: u64, data: &mut [u8]) -> bool {
        self.mmio && read(&self.guest.devices().mmio, probe, start, data).is_some()
    }

    /// Writes to the registers of a device at a linear address, if the user wants that. Returns true if it has done so.
    pub(super) fn write_device(&self, probe: &Probe, start: u64, data: &[u8]) -> bool {
        self.mmio && write(&self.guest.devices().mmio, probe, start, data).is_some()
    }
}
