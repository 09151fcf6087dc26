//! The guest's physical memory, as the processor sees it.

use std::cell::Cell;

/// The size of a page, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// Guest-physical memory. The processor looks up a page once, and then accesses it through its handle.
///
/// Addresses without memory are memory-mapped I/O: an access to them is an [`Exit`](crate::Exit).
pub trait Memory {
    /// A page of memory.
    type Page: Copy;

    /// Finds the 4-KiB page that contains the address `gpa`. `None` if there is no memory.
    fn page(&self, gpa: u64) -> Option<Self::Page>;

    /// Reads `SIZE` bytes, which is 1, 2, 4 or 8, at `offset` in a page. `offset + SIZE` is at most 4096.
    fn load<const SIZE: usize>(&self, page: Self::Page, offset: usize) -> u64;

    /// Writes the low `SIZE` bytes of `value`, as in [`load`](Self::load).
    fn store<const SIZE: usize>(&self, page: Self::Page, offset: usize, value: u64);
}

/// Memory from address 0 that belongs to one processor, for tests and tools.
#[derive(Clone, Debug)]
pub struct VecMemory(Vec<Cell<u8>>);

impl VecMemory {
    /// Creates zeroed memory of `size` bytes, rounded up to a page.
    pub fn new(size: usize) -> Self {
        Self(vec![Cell::new(0); size.next_multiple_of(PAGE as usize)])
    }

    /// Writes `bytes` at `start`. Bytes after the end of memory are lost.
    pub fn write(&self, start: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter().skip(start).zip(bytes) {
            to.set(*from);
        }
    }

    /// The `len` bytes at `start`, or fewer at the end of memory.
    pub fn read(&self, start: usize, len: usize) -> Vec<u8> {
        self.0.iter().skip(start).take(len).map(Cell::get).collect()
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

impl Memory for VecMemory {
    type Page = usize;

    fn page(&self, gpa: u64) -> Option<usize> {
        let start = usize::try_from(gpa & !(PAGE - 1)).ok()?;
        (start < self.0.len()).then_some(start)
    }

    #[inline]
    fn load<const SIZE: usize>(&self, page: usize, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        let start = page.saturating_add(offset);
        if let Some(cells) = self.0.get(start..start.saturating_add(SIZE)) {
            bytes.iter_mut().zip(cells).for_each(|(to, from)| *to = from.get());
        }
        u64::from_le_bytes(bytes)
    }

    #[inline]
    fn store<const SIZE: usize>(&self, page: usize, offset: usize, value: u64) {
        let start = page.saturating_add(offset);
        if let Some(cells) = self.0.get(start..start.saturating_add(SIZE)) {
            cells.iter().zip(value.to_le_bytes()).for_each(|(to, from)| to.set(from));
        }
    }
}
