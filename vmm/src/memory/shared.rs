//! The memory of a SIMVIRTIO device that shares its window with the driver.
//!
//! The device polls this memory, and its driver waits for the answer, so an access should cost a few instructions. RAM and
//! window have fixed addresses and sizes (`docs/abi.md`, section 2), so the checks compare with constants, and no slot has
//! to be searched.

use super::GuestMemory;
use super::access;
use simvirtio::{Memory, abi};

/// RAM and the window of a SIMVIRTIO device. An address outside both behaves as an open bus.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    ram: Place<0, { abi::RAM_SIZE }>,
    window: Place<{ abi::WINDOW }, { abi::WINDOW_SIZE }>,
    /// Keeps both places mapped, and logs the writes.
    memory: GuestMemory,
}

/// `LEN` bytes of guest memory from the address `START`.
#[derive(Clone, Copy, Debug)]
struct Place<const START: u64, const LEN: u64> {
    /// The address in this process.
    host: *mut u8,
}

// SAFETY: the pointer only holds an address of memory. All accesses through it are those of `access`, which may happen on
// several threads at the same time.
unsafe impl<const START: u64, const LEN: u64> Send for Place<START, LEN> {}
// SAFETY: see above.
unsafe impl<const START: u64, const LEN: u64> Sync for Place<START, LEN> {}

impl<const START: u64, const LEN: u64> Place<START, LEN> {
    /// Finds the place in `memory`. `None` if a part of it is not in one slot.
    fn find(memory: &GuestMemory) -> Option<Self> {
        memory.words.iter().find_map(|slot| slot.address(START, LEN)).map(|host| Self { host })
    }

    /// The address of the `SIZE` bytes at `gpa` in this process. `None` unless `gpa` is a multiple of `SIZE` in this place.
    #[inline]
    fn address<const SIZE: u64>(&self, gpa: u64) -> Option<*mut u8> {
        let offset = gpa.checked_sub(START)?;
        let inside = offset <= const { LEN - SIZE } && gpa.is_multiple_of(SIZE);
        // SAFETY: `LEN` bytes are mapped from `host`, so the address is in the mapping.
        inside.then(|| unsafe { self.host.add(offset as usize) })
    }
}

impl SharedMemory {
    /// Finds RAM and window in `memory`. `None` if one of them is missing, or is not in one slot.
    pub fn new(memory: &GuestMemory) -> Option<Self> {
        let (ram, window) = (Place::find(memory)?, Place::find(memory)?);
        Some(Self { ram, window, memory: memory.clone() })
    }

    #[inline]
    fn address<const SIZE: u64>(&self, gpa: u64) -> Option<*mut u8> {
        self.window.address::<SIZE>(gpa).or_else(|| self.ram.address::<SIZE>(gpa))
    }
}

// SAFETY, for all accesses below: the address is in RAM or in the window, and `self.memory` keeps both mapped. The program
// accesses them only through `access`, as `words.rs` says.
impl Memory for SharedMemory {
    #[inline]
    fn load_u8(&self, gpa: u64) -> u8 {
        // SAFETY: see above.
        self.address::<1>(gpa).map_or(u8::MAX, |address| unsafe { access::load_u8(address) })
    }

    #[inline]
    fn store_u8(&self, gpa: u64, value: u8) {
        if let Some(address) = self.address::<1>(gpa) {
            self.memory.written.log(gpa, 1);
            // SAFETY: see above.
            unsafe { access::store_u8(address, value) }
        }
    }

    #[inline]
    fn load_u32(&self, gpa: u64) -> u32 {
        // SAFETY: see above.
        self.address::<4>(gpa).map_or(u32::MAX, |address| unsafe { access::load_u32(address) })
    }

    #[inline]
    fn store_u32(&self, gpa: u64, value: u32) {
        if let Some(address) = self.address::<4>(gpa) {
            self.memory.written.log(gpa, 4);
            // SAFETY: see above.
            unsafe { access::store_u32(address, value) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Gpa, PAGE};

    const END: u64 = abi::WINDOW + abi::WINDOW_SIZE;

    fn memory() -> (GuestMemory, SharedMemory) {
        let memory =
            GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE), (Gpa(abi::WINDOW), abi::WINDOW_SIZE)]).unwrap();
        let shared = SharedMemory::new(&memory).unwrap();
        (memory, shared)
    }

    #[test]
    fn accesses_are_those_of_guest_memory() {
        let (memory, shared) = memory();
        memory.log_writes();
        for gpa in [0, 0x11000, abi::RAM_SIZE - 4, abi::WINDOW, END - 4] {
            shared.store_u32(gpa, 0x0403_0201);
            shared.store_u8(gpa + 3, 9);
            assert_eq!((memory.load_u32(gpa), memory.load_u8(gpa + 1)), (0x0903_0201, 2), "{gpa:#x}");
            assert_eq!((shared.load_u32(gpa), shared.load_u8(gpa + 3)), (0x0903_0201, 9), "{gpa:#x}");
        }
        let written = [0, 0x11000, abi::RAM_SIZE - PAGE, abi::WINDOW].map(Gpa);
        assert_eq!(memory.take_written_pages(), written);
    }

    #[test]
    fn addresses_outside_are_an_open_bus() {
        let (memory, shared) = memory();
        for gpa in [END, END + 0x1000, u64::MAX, u64::MAX - 3] {
            shared.store_u8(gpa, 0);
            shared.store_u32(gpa, 0);
            assert_eq!((shared.load_u8(gpa), shared.load_u32(gpa)), (0xff, u32::MAX), "{gpa:#x}");
        }
        // A word that is not aligned, and one that would go from RAM into the window.
        for gpa in [0x11001, abi::WINDOW - 2, END - 3] {
            shared.store_u32(gpa, u32::MAX);
            assert_eq!((shared.load_u32(gpa), memory.load_u8(gpa)), (u32::MAX, 0), "{gpa:#x}");
        }
    }

    #[test]
    fn a_machine_without_ram_or_window_has_no_shared_memory() {
        for slot in [(Gpa(0), abi::RAM_SIZE), (Gpa(abi::WINDOW), abi::WINDOW_SIZE)] {
            assert!(SharedMemory::new(&GuestMemory::new(&[slot]).unwrap()).is_none());
        }
        assert!(SharedMemory::new(&GuestMemory::none()).is_none());
    }
}
