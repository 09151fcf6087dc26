//! The facilities for a debugger: single steps, and watched addresses.
//!
//! Both cost nothing while they are not used. The translation of a page with a watched address is never kept in the TLB, and
//! has no memory, like that of memory-mapped I/O. So each access to the page takes the slow path, which compares addresses.

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::{Memory, PAGE};
use crate::paging::Access;
use crate::state::seg;

/// Linear addresses whose accesses are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
    /// Reads are noticed.
    pub reads: bool,
    /// Writes are noticed.
    pub writes: bool,
}

impl Watch {
    /// True if the watch has an address from `first` to `last`.
    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }
}

impl<M: Memory> Cpu<M> {
    /// Sets the addresses whose accesses are noticed. Reads of code are no accesses, and neither are those of paging
    /// structures, which have physical addresses.
    pub fn set_watches(&mut self, watches: Vec<Watch>) {
        self.watches = watches;
        self.hit = None;
        self.flush_translations();
    }

    /// Executes one instruction, or one iteration of a repeated string instruction. A fault is an instruction, too: it ends
    /// before the first instruction of its handler. Returns [`Exit::SliceEnd`] if the instruction is complete.
    pub fn step(&mut self) -> Exit {
        self.hit = None;
        self.starts_again = false;
        self.run(1)
    }

    /// The index of the first watch that the last [`step`](Self::step) has met.
    pub fn hit(&self) -> Option<usize> {
        self.hit
    }

    /// True if the next step executes the same instruction again: the next iteration of a string instruction.
    pub fn starts_again(&self) -> bool {
        self.starts_again
    }

    /// The linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        let base = if self.state.is_64() { 0 } else { self.state.segments[seg::CS].base };
        base.wrapping_add(self.state.rip) & self.linear_mask()
    }

    /// True if the page at a linear address has a watched address.
    pub(crate) fn is_watched(&self, linear: u64) -> bool {
        let first = linear & !(PAGE - 1);
        self.watches.iter().any(|watch| watch.overlaps(first, first | (PAGE - 1)))
    }

    /// The page for an access to a page that seems to have no memory. Notes a watch that the access meets.
    #[cold]
    pub(crate) fn watched_page(
        &mut self,
        gpa: u64,
        linear: u64,
        size: u8,
        access: Access,
    ) -> Option<M::Page> {
        if self.watches.is_empty() {
            return None;
        }
        let last = linear.wrapping_add(u64::from(size).saturating_sub(1));
        let meets = |watch: &Watch| {
            let wanted = if access == Access::Write { watch.writes } else { watch.reads };
            wanted && watch.overlaps(linear, last)
        };
        self.hit = self.hit.or_else(|| self.watches.iter().position(meets));
        self.memory.page(gpa)
    }
}
