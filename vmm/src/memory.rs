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
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
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

/// A part of guest memory, as a guest names it: not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub start: Gpa,
    /// Its length in bytes.
    pub len: u32,
}

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

    /// Whether all of a range is memory.
    pub(crate) fn contains(&self, start: Gpa, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.slots.check_range(start, len))
    }

    /// The slots, for the crates that work on them.
    pub(crate) fn slots(&self) -> &GuestMemoryMmap {
        &self.slots
    }

    /// Fills `spans`, one after the other, from what `file` has at `offset`, without a copy in between.
    /// Returns how many bytes came: fewer than the spans hold only where the file has no more.
    ///
    /// # Errors
    /// A span is not all memory, or the file cannot be read there.
    pub(crate) fn read_from_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
            // SAFETY: each entry is a mapped range of guest memory, which `self` keeps and nobody in this
            // process has a reference into.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Writes what is in `spans`, one after the other, into `file` at `offset`, without a copy in between.
    /// Returns how many bytes went: fewer than the spans hold only where the file takes no more.
    ///
    /// # Errors
    /// A span is not all memory, or the file cannot be written there.
    pub(crate) fn write_to_file_at(&self, file: &File, offset: u64, spans: &[Span]) -> io::Result<u64> {
        self.transfer(offset, spans, |vectors, at| {
            // SAFETY: as for `read_from_file_at`; the guest may change the bytes meanwhile, which only it
            // will see.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.count(), at) }
        })
    }

    /// Calls until all is done, or the file's end is reached: a call may do a part only.
    fn transfer(
        &self,
        offset: u64,
        spans: &[Span],
        call: impl Fn(&Vectors, libc::off_t) -> libc::ssize_t,
    ) -> io::Result<u64> {
        let all: u64 = spans.iter().map(|span| u64::from(span.len)).sum();
        let mut done = 0;
        while done < all {
            let vectors = self.vectors(spans, done)?;
            let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok());
            match call(&vectors, at.ok_or(io::ErrorKind::InvalidInput)?) {
                0 => break,
                moved @ 1.. => done += moved as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(done)
    }

    /// Where `spans` are in this process, from their byte `skip` on, as far as there is place.
    fn vectors(&self, spans: &[Span], mut skip: u64) -> io::Result<Vectors> {
        let mut vectors = Vectors::new();
        for span in spans {
            for slice in self.slots.get_slices(span.start, span.len as usize) {
                let slice = slice.map_err(io::Error::other)?;
                let passed = skip.min(slice.len() as u64);
                skip -= passed;
                let rest = slice.offset(passed as usize).map_err(io::Error::other)?;
                let vector =
                    libc::iovec { iov_base: rest.ptr_guard_mut().as_ptr().cast(), iov_len: rest.len() };
                if !rest.is_empty() && !vectors.push(vector) {
                    return Ok(vectors);
                }
            }
        }
        Ok(vectors)
    }
}

/// Ranges of this process's memory for one vectored call: as many as the largest request of a disk has, on the
/// stack and not cleared.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; 256],
    /// So many entries are filled in.
    len: usize,
}

impl Vectors {
    fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; 256], len: 0 }
    }

    /// Returns whether there was place.
    fn push(&mut self, vector: libc::iovec) -> bool {
        let Some(entry) = self.entries.get_mut(self.len) else { return false };
        entry.write(vector);
        self.len += 1;
        true
    }

    fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    fn count(&self) -> libc::c_int {
        self.len as libc::c_int
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
    fn files_and_scattered_memory_exchange_bytes() {
        let file = tempfile::tempfile().unwrap();
        // Two slots side by side, so that a span may cross from one into the other.
        let memory = GuestMemory::new(&[(Gpa(0), PAGE), (Gpa(PAGE), PAGE)]).unwrap();
        let data: Vec<u8> = (0..600).map(|byte| (byte % 251) as u8).collect();
        memory.write(Gpa(PAGE - 300), &data).unwrap();
        // More spans than go into one call.
        let bytes: Vec<Span> = (0..600).map(|at| Span { start: Gpa(PAGE - 300 + at), len: 1 }).collect();
        assert_eq!(memory.write_to_file_at(&file, 7, &bytes).unwrap(), 600);
        let spans = [Span { start: Gpa(0), len: 0 }, Span { start: Gpa(PAGE - 100), len: 900 }];
        assert_eq!(memory.read_from_file_at(&file, 7, &spans).unwrap(), 600, "the file ends there");
        let mut read = [0; 600];
        assert!(memory.read(Gpa(PAGE - 100), &mut read));
        assert_eq!(read.as_slice(), data);
    }

    #[test]
    fn files_reach_only_memory() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), PAGE)]).unwrap();
        for (start, len) in [(PAGE, 1), (PAGE - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            let spans = [Span { start: Gpa(0), len: 1 }, Span { start: Gpa(start), len }];
            assert!(memory.read_from_file_at(&file, 0, &spans).is_err());
            assert!(memory.write_to_file_at(&file, 0, &spans).is_err());
        }
        assert_eq!(file.metadata().unwrap().len(), 0, "nothing of a wrong request is written");
        let span = [Span { start: Gpa(0), len: 1 }];
        assert!(memory.write_to_file_at(&file, u64::MAX, &span).is_err());
        assert!(memory.write_to_file_at(&File::open("/dev/null").unwrap(), 0, &span).is_err());
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
