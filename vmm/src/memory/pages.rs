//! Guest memory as the software processor sees it: it looks up a page once, and then accesses it through a handle.
//!
//! A handle is only a pair of numbers. Each access checks them against the slot, which is a comparison, so a handle of
//! another memory is harmless.

use super::access;
use super::words::Words;
use super::{GuestMemory, PAGE};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The most slots that a machine with a software processor has: RAM, tables, and the window of SIMVIRTIO.
const MAX_SLOTS: usize = 4;

/// Guest memory for a software processor.
#[derive(Clone, Debug)]
pub(crate) struct PagedMemory {
    /// A copy of the memory's slots, in their order. The rest is empty.
    slots: [Words; MAX_SLOTS],
    /// Keeps the slots mapped, and logs the writes.
    memory: GuestMemory,
    /// The index of the slot that the guest can only read, or [`MAX_SLOTS`].
    rom: usize,
}

/// The index of a slot.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Slot {
    First,
    Second,
    Third,
    Fourth,
}

/// A page of guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    slot: Slot,
    /// The index of the page in its slot.
    index: u32,
}

impl PagedMemory {
    /// Describes `memory`. `None` if it has too many slots.
    pub(crate) fn new(memory: GuestMemory) -> Option<Self> {
        let mut slots = [Words::EMPTY; MAX_SLOTS];
        slots.get_mut(..memory.words.len())?.copy_from_slice(&memory.words);
        let rom = memory.slots().iter().position(|region| memory.is_rom(region.start_addr()));
        Some(Self { slots, memory, rom: rom.unwrap_or(MAX_SLOTS) })
    }

    /// The address in this process of `SIZE` bytes in a page.
    #[inline]
    fn address<const SIZE: usize>(&self, page: Page, offset: usize) -> Option<*mut u8> {
        let start = u64::from(page.index) * PAGE;
        self.slots[page.slot as usize].at(start.wrapping_add(offset as u64), SIZE as u64)
    }
}

// SAFETY, for both accesses: the bytes are in a slot, and `self.memory` keeps it mapped. The program accesses them only
// through `access`, as `words.rs` says.
impl softcpu::Memory for PagedMemory {
    type Page = Page;

    fn page(&self, gpa: u64) -> Option<Page> {
        let slots = self.slots.iter().zip([Slot::First, Slot::Second, Slot::Third, Slot::Fourth]);
        let mut found = slots.filter_map(|(words, slot)| Some((slot, words.page_offset(gpa, PAGE)?)));
        let (slot, offset) = found.next()?;
        Some(Page { slot, index: u32::try_from(offset / PAGE).ok()? })
    }

    #[inline]
    fn load<const SIZE: usize>(&self, page: Page, offset: usize) -> u64 {
        let Some(from) = self.address::<SIZE>(page, offset) else { return u64::MAX };
        // SAFETY: see above.
        unsafe {
            match SIZE {
                1 => access::load_u8(from).into(),
                2 => access::load_u16(from).into(),
                4 => access::load_u32(from).into(),
                _ => access::load_u64(from),
            }
        }
    }

    #[inline]
    fn store<const SIZE: usize>(&self, page: Page, offset: usize, value: u64) {
        let Some(to) = self.address::<SIZE>(page, offset) else { return };
        if page.slot as usize == self.rom {
            return;
        }
        self.memory.written.log_page(page.slot as usize, page.index);
        // SAFETY: see above.
        unsafe {
            match SIZE {
                1 => access::store_u8(to, value as u8),
                2 => access::store_u16(to, value as u16),
                4 => access::store_u32(to, value as u32),
                _ => access::store_u64(to, value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Gpa;
    use softcpu::Memory;

    fn memory() -> (GuestMemory, PagedMemory) {
        let memory = GuestMemory::new(&[(Gpa(0), 4 * PAGE), (Gpa(0xf000_0000), PAGE)]).unwrap();
        let paged = PagedMemory::new(memory.clone()).unwrap();
        (memory, paged)
    }

    #[test]
    fn accesses_are_those_of_guest_memory() {
        let (memory, paged) = memory();
        memory.log_writes();
        for gpa in [0x1008, 0xf000_0ff8] {
            let page = paged.page(gpa).unwrap();
            let offset = (gpa % PAGE) as usize;
            paged.store::<8>(page, offset, 0x8877_6655_4433_2211);
            paged.store::<4>(page, offset, 0xddcc_bbaa);
            paged.store::<2>(page, offset + 6, 0xbeef);
            paged.store::<1>(page, offset + 5, 0xff);
            let mut bytes = [0; 8];
            assert!(memory.read(Gpa(gpa), &mut bytes));
            assert_eq!(bytes, [0xaa, 0xbb, 0xcc, 0xdd, 0x55, 0xff, 0xef, 0xbe]);
            assert_eq!(paged.load::<8>(page, offset), u64::from_le_bytes(bytes));
            assert_eq!(paged.load::<4>(page, offset + 4), 0xbeef_ff55);
            assert_eq!((paged.load::<2>(page, offset), paged.load::<1>(page, offset + 1)), (0xbbaa, 0xbb));
        }
        assert_eq!(memory.take_written_pages(), [0x1000, 0xf000_0000].map(Gpa));
    }

    #[test]
    fn places_outside_memory_have_no_page() {
        let (_, paged) = memory();
        assert!(paged.page(0x3fff).is_some());
        for gpa in [0x4000, 0xefff_ffff, 0xf000_1000, u64::MAX] {
            assert!(paged.page(gpa).is_none(), "{gpa:#x}");
        }
        let slots: Vec<_> = (0..5).map(|slot| (Gpa(slot * PAGE), PAGE)).collect();
        assert!(PagedMemory::new(GuestMemory::new(&slots).unwrap()).is_none());
    }

    /// A handle of another memory reaches only this memory's own bytes.
    #[test]
    fn a_foreign_page_is_harmless() {
        let (_, paged) = memory();
        let large = GuestMemory::new(&[(Gpa(0), 64 * PAGE)]).unwrap();
        let page = PagedMemory::new(large).unwrap().page(40 * PAGE).unwrap();
        paged.store::<8>(page, 0, 7);
        assert_eq!(paged.load::<8>(page, 0), u64::MAX);
        let last = paged.page(3 * PAGE).unwrap();
        paged.store::<8>(last, PAGE as usize - 4, 7);
        assert_eq!(paged.load::<8>(last, PAGE as usize - 4), u64::MAX);
        assert_eq!(paged.load::<4>(last, PAGE as usize - 4), 0);
    }
}
