//! The memory of an observed guest at the time of its death.

use crate::memory::{MemorySlot, ObservedMemory};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use vmm::memory::{Gpa, PAGE, ReadMemory};

/// The most pages that are kept. An explanation reads fewer, except of a stack or code full of pointers.
const MOST_PAGES: usize = 64;
/// The most slots that are checked one by one.
const MOST_SLOTS: usize = 32;

/// A page of memory; `None` if it cannot be read.
type Page = Option<Box<[u8; PAGE as usize]>>;

/// The memory of a VM of a program, read in pages, each of them once.
pub(crate) struct View<'a> {
    memory: &'a ObservedMemory,
    vm: u32,
    process: i32,
    pages: RefCell<BTreeMap<u64, Page>>,
    /// A slot in which a read failed.
    unmapped: Cell<Option<MemorySlot>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(memory: &'a ObservedMemory, vm: u32, process: i32) -> Self {
        Self { memory, vm, process, pages: RefCell::default(), unmapped: Cell::default() }
    }

    /// The reason why no memory can be read, as text.
    pub(super) fn unreadable(&self) -> Option<String> {
        if let Some(error) = self.memory.refusal(self.vm, self.process) {
            return Some(format!(
                "process_vm_readv: {error}: the host forbids it, as with kernel.yama.ptrace_scope of 2 or 3 and in some \
                 containers, or the program does (PR_SET_DUMPABLE)"
            ));
        }
        let error = self.slots().take(MOST_SLOTS).find_map(|slot| self.error(slot.gpa))?;
        match error.raw_os_error()? {
            // This page is not mapped in the program. Others may be.
            libc::EFAULT => None,
            libc::ESRCH => Some("the process has ended".into()),
            _ => Some(format!("process_vm_readv: {error}")),
        }
    }

    /// True if the VM has a memory slot.
    pub(super) fn has_slots(&self) -> bool {
        self.slots().next().is_some()
    }

    /// A slot of whose memory a page that was read is not mapped in the program.
    pub(super) fn missed(&self) -> Option<MemorySlot> {
        self.unmapped.get()
    }

    /// A slot of whose memory the first or the last page is not mapped in the program.
    pub(super) fn unmapped_slot(&self) -> Option<MemorySlot> {
        let ends = |slot: &MemorySlot| [slot.gpa, slot.gpa.saturating_add(slot.size.saturating_sub(1))];
        self.slots().take(MOST_SLOTS).find(|slot| ends(slot).into_iter().any(|gpa| self.is_unmapped(gpa)))
    }

    /// The slots of normal execution.
    fn slots(&self) -> impl Iterator<Item = MemorySlot> {
        self.memory.slots(self.vm).filter(|slot| slot.number >> 16 == 0).copied()
    }

    /// The error of reading a byte in a slot.
    fn error(&self, gpa: u64) -> Option<io::Error> {
        let is_read = self.memory.read(self.vm, self.process, Gpa(gpa), &mut [0]);
        // The last system call of a failed read in a slot is process_vm_readv.
        (!is_read).then(io::Error::last_os_error)
    }

    /// True if an address in a slot is not mapped in the program. Other errors mean that the memory cannot be read here.
    fn is_unmapped(&self, gpa: u64) -> bool {
        self.error(gpa).is_some_and(|error| error.raw_os_error() == Some(libc::EFAULT))
    }

    /// Copies bytes within one page.
    fn copy(&self, gpa: u64, into: &mut [u8]) -> bool {
        let (start, offset) = (gpa & !(PAGE.wrapping_sub(1)), gpa & PAGE.wrapping_sub(1));
        let mut pages = self.pages.borrow_mut();
        if pages.len() >= MOST_PAGES {
            pages.clear();
        }
        let page = pages.entry(start).or_insert_with(|| {
            let mut page = Box::new([0; PAGE as usize]);
            let is_read = self.memory.read(self.vm, self.process, Gpa(start), &mut *page);
            let holds = |slot: &MemorySlot| gpa.wrapping_sub(slot.gpa) < slot.size;
            if !is_read
                && let Some(slot) = self.slots().find(holds)
                && self.is_unmapped(gpa)
            {
                self.unmapped.set(Some(slot));
            }
            is_read.then_some(page)
        });
        let bytes = page.as_ref().and_then(|page| page.get(usize::try_from(offset).ok()?..));
        let Some(bytes) = bytes.and_then(|bytes| bytes.get(..into.len())) else { return false };
        into.copy_from_slice(bytes);
        true
    }
}

impl ReadMemory for View<'_> {
    fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        let mut at = start.0;
        let mut rest = data;
        while !rest.is_empty() {
            let here = PAGE.wrapping_sub(at & PAGE.wrapping_sub(1));
            let here = usize::try_from(here).unwrap_or(usize::MAX).min(rest.len());
            let (piece, later) = rest.split_at_mut(here);
            if !self.copy(at, piece) {
                return false;
            }
            let Some(next) = at.checked_add(here as u64) else { return later.is_empty() };
            (at, rest) = (next, later);
        }
        true
    }
}
