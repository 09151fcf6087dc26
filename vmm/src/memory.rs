//! Guest memory: the two memory maps, the slots that make them, and the checked way in.
//!
//! | | SO2 map | plain map |
//! |---|---|---|
//! | RAM | [0, 1 MiB) | [0, size) |
//! | SIMVIRTIO window | 0x10_0000: trapped, or shared RAM when polling | none |
//! | GDT and page tables | [`TABLES`], outside both | the same |
//!
//! The addresses of the SO2 map that a driver needs are in [`simvirtio::abi`].
#![allow(unsafe_code)]

use crate::error::Error;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use simvirtio::abi;
use std::io;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

pub use guest::Map;
/// A guest physical address.
pub use vm_memory::GuestAddress as Gpa;

/// Size of a page, and the unit of all slots, in bytes.
pub const PAGE: u64 = 0x1000;
/// Where KVM may put its three pages of task state on Intel hosts (KVM_SET_TSS_ADDR): the assignment's value.
pub const TSS: u64 = 0xfffb_d000;
/// Where the GDT and the page tables are: after KVM's task state, below 4 GiB so that the identity map
/// reaches them.
pub const TABLES: Gpa = Gpa(0xfffc_0000);
/// Size of the GDT's page and the six pages of page tables, in bytes.
pub const TABLES_SIZE: u64 = 7 * PAGE;
/// RAM of the plain map unless the user says otherwise, in bytes.
pub const PLAIN_RAM: u64 = 250 << 20;
/// RAM of the plain map ends below here, in bytes: the rest of the first 4 GiB is for devices and tables.
pub const MAX_RAM: u64 = 3 << 30;

// No two places overlap.
const _: () = {
    assert!(abi::WINDOW >= abi::RAM_SIZE && abi::DOORBELL == abi::WINDOW + abi::WINDOW_SIZE);
    assert!(MAX_RAM <= TSS && TSS + 3 * PAGE <= TABLES.0 && TABLES.0 + TABLES_SIZE <= 1 << 32);
};

/// Guest memory. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    slots: GuestMemoryMmap,
}

impl GuestMemory {
    /// No memory at all.
    pub fn none() -> Self {
        Self { slots: GuestMemoryMmap::new() }
    }

    /// Maps zeroed memory for each of the slots, given as start and size in bytes.
    ///
    /// # Errors
    /// The host has not enough address space, or the slots overlap.
    pub fn new(slots: &[(Gpa, u64)]) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(slots.len());
        for &(start, bytes) in slots {
            let refused = |reason: String| Error::Memory { bytes, reason };
            let size = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
            let mapping = MmapRegionBuilder::<()>::new(size)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
                .build()
                .map_err(|error| refused(error.to_string()))?;
            let region = GuestRegionMmap::new(mapping, start);
            regions.push(region.ok_or_else(|| refused("it would end past the address space".into()))?);
        }
        regions.sort_by_key(|region| region.start_addr());
        let slots = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Memory { bytes: 0, reason: error.to_string() })?;
        Ok(Self { slots })
    }

    /// Lets the kernel merge equal pages of the slot at `start` with those of other guests
    /// (MADV_MERGEABLE). Only advice: a kernel without KSM refuses it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn merge_pages(&self, start: Gpa) -> io::Result<()> {
        let Some(region) = self.slots.find_region(start) else { return Ok(()) };
        // SAFETY: the range is exactly the region's own mapping, which lives as long as `self`; the advice
        // does not change what it holds.
        let answer = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_MERGEABLE) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the memory to the VM, a slot each (KVM_SET_USER_MEMORY_REGION).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.slots.iter()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, and the machine drops the VM before this memory.
            unsafe { vm.set_user_memory_region(description) }
                .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Copies `data` to `start`.
    ///
    /// # Errors
    /// Not all of the range is memory.
    pub fn write(&self, start: Gpa, data: &[u8]) -> Result<(), Error> {
        self.slots.write_slice(data, start).map_err(|_| Error::Memory {
            bytes: data.len() as u64,
            reason: format!("the range from {:#x} is not all memory", start.0),
        })
    }

    /// Fills `data` from `start`. Returns `false`, and leaves `data` undefined, where not all of the range
    /// is memory.
    pub fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        self.slots.read_slice(data, start).is_ok()
    }
}

impl simvirtio::Memory for GuestMemory {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.slots.load(Gpa(gpa), Ordering::Acquire).unwrap_or(u8::MAX)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        // A store where nothing is: an open bus swallows it.
        let _ = self.slots.store(value, Gpa(gpa), Ordering::Release);
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        self.slots.load(Gpa(gpa), Ordering::Acquire).map_or(u32::MAX, u32::from_le)
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        let _ = self.slots.store(value.to_le(), Gpa(gpa), Ordering::Release);
    }
}

/// The size of RAM for a map, checked.
///
/// # Errors
/// The map has no such size; the sentence says what it has.
pub fn ram_size(map: Map, asked: Option<u64>) -> Result<u64, Error> {
    let bytes = match (map, asked) {
        (Map::So2, None) => abi::RAM_SIZE,
        (Map::Plain, None) => PLAIN_RAM,
        (_, Some(bytes)) => bytes,
    };
    let refuse = |why: &str| Err(Error::Config(format!("a guest with {bytes:#x} bytes of memory {why}")));
    if bytes < abi::RAM_SIZE {
        return refuse("cannot be: choose a --mem of at least 1M");
    }
    if bytes > MAX_RAM {
        return refuse("cannot be: choose a --mem of at most 3G");
    }
    if !bytes.is_multiple_of(PAGE) {
        return refuse("cannot be: choose a --mem that is a multiple of 4K");
    }
    if map == Map::So2 && bytes != abi::RAM_SIZE {
        return refuse(
            "has no SIMVIRTIO device, whose window is at 1 MiB: leave out --mem, or what asks for SIMVIRTIO",
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simvirtio::Memory;

    #[test]
    fn ranges_are_checked_to_the_byte() {
        let memory = GuestMemory::new(&[(Gpa(0x10_0000), PAGE), (Gpa(0), 2 * PAGE)]).unwrap();
        assert!(memory.write(Gpa(2 * PAGE - 2), &[1, 2]).is_ok());
        assert!(memory.write(Gpa(u64::MAX), &[1, 2]).is_err());
        assert!(memory.write(Gpa(2 * PAGE - 1), &[1, 2]).is_err());
        assert!(!memory.read(Gpa(2 * PAGE), &mut [0]));
        assert!(memory.read(Gpa(0x10_0fff), &mut [0]));
    }

    #[test]
    fn where_nothing_is_the_bus_is_open() {
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        memory.store_u8(PAGE, 1);
        memory.store_u32(PAGE, 1);
        assert_eq!((memory.load_u8(PAGE), memory.load_u32(PAGE)), (0xff, 0xffff_ffff));
    }

    #[test]
    fn overlapping_slots_are_refused() {
        assert!(GuestMemory::new(&[(Gpa(0), 2 * PAGE), (Gpa(PAGE), PAGE)]).is_err());
        assert!(GuestMemory::new(&[(Gpa(u64::MAX - 10), PAGE)]).is_err());
        assert!(GuestMemory::new(&[(Gpa(0), 1 << 60)]).is_err());
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(ram_size(Map::So2, None).unwrap(), 1 << 20);
        assert_eq!(ram_size(Map::Plain, None).unwrap(), 250 << 20);
        assert_eq!(ram_size(Map::Plain, Some(MAX_RAM)).unwrap(), MAX_RAM);
        for bytes in [0, 1, 4095, (1 << 20) - 1, (1 << 20) + 1, MAX_RAM + PAGE, 1 << 63] {
            assert!(ram_size(Map::Plain, Some(bytes)).is_err(), "{bytes}");
        }
        assert!(ram_size(Map::So2, Some(2 << 20)).is_err());
    }
}
