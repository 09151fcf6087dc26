//! Guest memory: its memory slots, checked access to it, and the memory maps.

// May import the errors, `host` and the crates `simvirtio` and `softcpu`.
#![allow(unsafe_code)]

mod access;
pub(crate) mod map;
mod mapping;
mod pages;
mod shared;
mod transfer;
mod words;
mod written;

pub(crate) use map::pc;
pub use map::{
    MAX_CPUS, MAX_RAM, Map, PAGE, PAGE_TABLES, PLAIN_RAM, ROM_IDENTITY_MAP, ROM_TSS, TABLES, TABLES_SIZE,
    TASK_STATE, TSS, pc_ram_size, ram_size,
};
pub(crate) use pages::PagedMemory;
pub use shared::SharedMemory;
pub use transfer::Span;
pub(crate) use transfer::TransferError;
/// A guest physical address.
pub use vm_memory::GuestAddress as Gpa;

use crate::error::Error;
use crate::host;
use mapping::{LARGE_PAGE, Mapping};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use words::Words;
use written::WrittenPages;

/// Memory of a guest that is read by guest physical address: [`GuestMemory`], or that of another program's guest.
pub trait ReadMemory {
    /// Copies memory from `start` into `data`. Returns `false`, with `data` in an undefined state, if a part of the range is
    /// not guest memory.
    fn read(&self, start: Gpa, data: &mut [u8]) -> bool;
}

impl ReadMemory for GuestMemory {
    fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        Self::read(self, start, data)
    }
}

impl<M: ReadMemory + ?Sized> ReadMemory for &M {
    fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        (**self).read(start, data)
    }
}

/// Guest memory. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    slots: GuestMemoryMmap,
    /// The host memory behind the slots. The last clone unmaps it.
    _mappings: Arc<Vec<Mapping>>,
    /// The same slots, for all accesses of this program except those of the crates that get [`Self::slots`].
    words: Arc<[Words]>,
    written: Arc<WrittenPages>,
    /// The start of the slot that the guest can only read, if there is one.
    rom: Option<Gpa>,
}

impl GuestMemory {
    /// Creates a guest memory without slots.
    pub fn none() -> Self {
        Self {
            slots: GuestMemoryMmap::new(),
            _mappings: Arc::default(),
            words: Arc::default(),
            written: Arc::default(),
            rom: None,
        }
    }

    /// Maps zeroed memory for each slot. `slots` contains the start and the size in bytes of each.
    ///
    /// # Errors
    /// The host does not have enough address space, a slot ends after the last address, or slots overlap.
    pub fn new(slots: &[(Gpa, u64)]) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(slots.len());
        let mut mappings = Vec::with_capacity(slots.len());
        for &(start, bytes) in slots {
            let refused = |reason: String| Error::Memory { bytes, reason };
            let size = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
            let mapping = Mapping::new(size).map_err(|error| refused(error.to_string()))?;
            // SAFETY: `size` bytes are mapped from `mapping.start`, and `_mappings` keeps them mapped while a clone
            // lives.
            let slot = unsafe {
                MmapRegion::<()>::build_raw(
                    mapping.start,
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                )
            };
            mappings.push(mapping);
            let region = GuestRegionMmap::new(slot.map_err(|error| refused(error.to_string()))?, start);
            regions.push(region.ok_or_else(|| refused("it would end after the last address".into()))?);
        }
        host::sort_by_key(&mut regions, |region| region.start_addr());
        let slots = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Memory { bytes: 0, reason: error.to_string() })?;
        let words = slots.iter().map(|region| Words::new(region.start_addr(), region.as_ptr(), region.len()));
        let words = words.collect();
        Ok(Self { slots, _mappings: Arc::new(mappings), words, written: Arc::default(), rom: None })
    }

    /// Makes the slot at `start` one that the guest can only read.
    pub(crate) fn with_rom(self, start: Option<Gpa>) -> Self {
        Self { rom: start, ..self }
    }

    /// True if the guest can only read the slot at `start`.
    pub(crate) fn is_rom(&self, start: Gpa) -> bool {
        self.rom == Some(start)
    }

    /// The slots, for the crates that load kernels and implement rings. They make volatile accesses.
    pub(crate) fn slots(&self) -> &GuestMemoryMmap {
        &self.slots
    }

    /// The first and the last address of each slot, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = (Gpa, Gpa)> {
        self.slots.iter().map(|slot| (slot.start_addr(), slot.last_addr()))
    }

    /// Asks for large pages behind all slots (MADV_HUGEPAGE). This is only advice; a kernel without large pages refuses
    /// it.
    pub(crate) fn prefer_large_pages(&self) {
        for region in self.slots.iter().filter(|region| region.size() >= LARGE_PAGE) {
            if let Err(error) = advise(region, host::LARGE_PAGES) {
                log::debug!("the host refuses large pages: {error}");
            }
        }
    }

    /// Allows the kernel to merge equal pages of the slot that contains `start` with pages of other guests
    /// (MADV_MERGEABLE). This is only advice. Does nothing if there is no slot.
    ///
    /// # Errors
    /// The kernel refused, for example because it has no KSM.
    pub fn merge_pages(&self, start: Gpa) -> io::Result<()> {
        let Some(region) = self.slots.find_region(start) else { return Ok(()) };
        advise(region, host::MERGE_PAGES)
    }

    /// Stores a little-endian word at an aligned address. A store outside memory does nothing.
    pub(crate) fn store_word(&self, gpa: Gpa, value: u32) {
        let _ = self.words.iter().any(|words| words.store_u32(gpa.0, value));
        // The guest sees the word before anything that this thread does afterwards.
        fence(Ordering::SeqCst);
    }

    /// The number of slots.
    pub(crate) fn slot_count(&self) -> u32 {
        u32::try_from(self.slots.num_regions()).unwrap_or(u32::MAX)
    }

    /// Starts the log of the pages that the host writes.
    pub(crate) fn log_writes(&self) {
        self.written.switch_on(self.slots.iter().map(|region| (region.start_addr().0, region.len())));
    }

    /// The pages that the host has written since the last call. Empty unless [`Self::log_writes`] was called.
    pub(crate) fn take_written_pages(&self) -> Vec<Gpa> {
        self.written.take()
    }

    /// Fills all memory with zeroes, and returns its pages to the host (MADV_DONTNEED).
    ///
    /// # Errors
    /// The host refused, for example because the memory is locked.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        for region in self.slots.iter() {
            // SAFETY: the range is exactly the region's own private mapping, which lives as long as `self`. The pages
            // read as zero afterwards; nothing holds a reference into guest memory.
            let cleared = unsafe { host::clear_pages(region.as_ptr(), region.size()) };
            cleared.map_err(Error::host("clearing guest memory (madvise)"))?;
        }
        Ok(())
    }

    /// Copies `data` to `start`.
    ///
    /// # Errors
    /// A part of the range is not guest memory.
    pub fn write(&self, start: Gpa, data: &[u8]) -> Result<(), Error> {
        self.written.log(start.0, data.len() as u64);
        self.restore(start, data)
    }

    /// Copies `data` to `start` like [`write`](Self::write), without an entry in the log of written pages.
    ///
    /// # Errors
    /// A part of the range is not guest memory.
    pub(crate) fn restore(&self, start: Gpa, data: &[u8]) -> Result<(), Error> {
        let copied = each_slot(start, data.len(), |gpa, done| {
            let rest = data.get(done..)?;
            self.words.iter().find_map(|words| words.write(gpa, rest))
        });
        copied.ok_or_else(|| Error::Memory {
            bytes: data.len() as u64,
            reason: format!("a part of the range from {:#x} is not guest memory", start.0),
        })
    }

    /// Copies memory from `start` into `data`. Returns `false`, with `data` in an undefined state, if a part of the
    /// range is not guest memory.
    pub fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        let copied = each_slot(start, data.len(), |gpa, done| {
            let rest = data.get_mut(done..)?;
            self.words.iter().find_map(|words| words.read(gpa, rest))
        });
        copied.is_some()
    }

    /// True if the whole range is guest memory.
    pub(crate) fn contains(&self, start: Gpa, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.slots.check_range(start, len))
    }
}

/// Gives the kernel advice on the memory of `region`.
///
/// # Errors
/// The kernel refused, or the host has no such advice (`None`).
fn advise(region: &GuestRegionMmap, advice: Option<libc::c_int>) -> io::Result<()> {
    let advice = advice.ok_or(io::ErrorKind::Unsupported)?;
    // SAFETY: the range is exactly the region's own mapping, which lives as long as the region; the advice does not change
    // what it holds.
    match unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls `copy` until `len` bytes from `start` are copied. `copy` gets the next address and the number of bytes that are
/// done. It returns the number of bytes that it copied, up to the end of a slot. `None` if there is no slot.
fn each_slot(start: Gpa, len: usize, mut copy: impl FnMut(u64, usize) -> Option<usize>) -> Option<()> {
    let mut done = 0;
    while done < len {
        let gpa = start.0.checked_add(done as u64)?;
        done = done.checked_add(copy(gpa, done)?)?;
    }
    Some(())
}

// A store outside memory does nothing, as on an open bus.
impl simvirtio::Memory for GuestMemory {
    #[inline]
    fn load_u8(&self, gpa: u64) -> u8 {
        self.words.iter().find_map(|words| words.load_u8(gpa)).unwrap_or(u8::MAX)
    }
    #[inline]
    fn store_u8(&self, gpa: u64, value: u8) {
        self.written.log(gpa, 1);
        let _ = self.words.iter().any(|words| words.store_u8(gpa, value));
    }
    #[inline]
    fn load_u32(&self, gpa: u64) -> u32 {
        self.words.iter().find_map(|words| words.load_u32(gpa)).unwrap_or(u32::MAX)
    }
    #[inline]
    fn store_u32(&self, gpa: u64, value: u32) {
        self.written.log(gpa, 4);
        let _ = self.words.iter().any(|words| words.store_u32(gpa, value));
    }
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
    fn copies_cross_from_slot_to_slot_and_stop_at_a_hole() {
        let memory = GuestMemory::new(&[(Gpa(0), PAGE), (Gpa(PAGE), PAGE), (Gpa(3 * PAGE), PAGE)]).unwrap();
        let data: Vec<u8> = (0..2 * PAGE).map(|byte| (byte % 251) as u8).collect();
        memory.write(Gpa(0), &data).unwrap();
        let mut copy = vec![0; data.len()];
        assert!(memory.read(Gpa(0), &mut copy) && copy == data);
        assert!(memory.read(Gpa(u64::MAX), &mut []) && memory.write(Gpa(2 * PAGE), &[]).is_ok());
        assert!(!memory.read(Gpa(PAGE), &mut copy) && memory.write(Gpa(PAGE + 1), &data).is_err());
        let last = GuestMemory::new(&[(Gpa(u64::MAX - PAGE), PAGE)]).unwrap();
        assert!(
            last.write(Gpa(u64::MAX - 2), &[1, 2]).is_ok()
                && last.write(Gpa(u64::MAX - 2), &[1, 2, 3]).is_err()
        );
    }

    #[test]
    fn loads_outside_memory_return_all_ones() {
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
    fn large_slots_begin_at_a_large_page() {
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20), (Gpa(1 << 32), 3 << 20)]).unwrap();
        memory.prefer_large_pages();
        for region in memory.slots().iter() {
            assert_eq!(region.as_ptr() as usize % LARGE_PAGE, 0);
        }
        assert!(memory.write(Gpa((1 << 32) + (3 << 20) - 1), &[7]).is_ok());
        let clone = memory.clone();
        drop(memory);
        let mut byte = [0];
        assert!(clone.read(Gpa((1 << 32) + (3 << 20) - 1), &mut byte) && byte == [7]);
    }
}
