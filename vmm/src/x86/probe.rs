//! The probe: reads a guest's memory by guest virtual address.
//!
//! ```text
//! guest virtual --(segment)--> linear --(page tables)--> guest physical --(memory slots)--> bytes
//! ```
//!
//! It walks the page tables as the processor does ([`walk`]). It does not check access rights: it sees what a debugger
//! would see.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub(crate) mod mappings;
pub(super) mod walk;

use crate::memory::{Gpa, GuestMemory, PAGE, ReadMemory};
use crate::x86::modes::CR0_PE;
use crate::x86::registers::{Regs, Sregs};

/// The reason why an address cannot be translated or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The upper bits are not copies of the highest bit that is translated.
    #[error("{linear:#x} is not canonical")]
    NotCanonical {
        /// The linear address.
        linear: u64,
    },
    /// A page table entry is not present.
    #[error("{linear:#x} is not mapped: its {table} entry at {at:#x} is {entry:#x}")]
    NotMapped {
        /// The linear address.
        linear: u64,
        /// The level of the table.
        table: &'static str,
        /// Guest physical address of the entry.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// A page table is at an address without memory.
    #[error("{linear:#x}: its {table} entry would be at {at:#x}, where there is no memory")]
    NoTable {
        /// The linear address.
        linear: u64,
        /// The level of the table.
        table: &'static str,
        /// Guest physical address of the entry.
        at: u64,
    },
    /// The address maps to a guest physical address without memory.
    #[error("{linear:#x} maps to {gpa:#x}, where there is no memory")]
    NoMemory {
        /// The linear address.
        linear: u64,
        /// Guest physical address.
        gpa: u64,
    },
    /// The range goes past the last address.
    #[error("{len:#x} bytes from {address:#x} go past the last address")]
    Wraps {
        /// Guest virtual address of the first byte.
        address: u64,
        /// The length of the range, in bytes.
        len: u64,
    },
}

/// The translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address.
    pub gpa: Gpa,
    /// Size of the page in bytes; `None` without paging.
    pub page: Option<u64>,
    /// True if the entries of all levels allow writes.
    pub writable: bool,
    /// True if the entries of all levels allow accesses from ring 3.
    pub user: bool,
}

/// Translates the address of the next instruction. `read` fills bytes from the guest's memory, and returns false where there
/// is none. Returns the linear address, too.
pub fn translate_rip(
    regs: &Regs,
    sregs: &Sregs,
    read: impl Fn(Gpa, &mut [u8]) -> bool,
) -> (u64, Result<Translation, ProbeError>) {
    let linear = walk::linear(sregs, sregs.cs.base, regs.rip);
    (linear, walk::translate(sregs, linear, read, |_| {}))
}

/// The linear address of the next instruction.
pub fn linear_rip(regs: &Regs, sregs: &Sregs) -> u64 {
    walk::linear(sregs, sregs.cs.base, regs.rip)
}

/// The guest's memory as one vCPU sees it at one moment.
#[derive(Clone, Debug)]
pub struct Probe<M = GuestMemory> {
    memory: M,
    sregs: Sregs,
}

impl<M: ReadMemory> Probe<M> {
    /// Creates a probe for a vCPU with these special registers.
    pub fn new(memory: M, sregs: Sregs) -> Self {
        Self { memory, sregs }
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// True if the vCPU executes 64-bit code, where segments have no base.
    pub(crate) fn is_long(&self) -> bool {
        walk::is_64_bit(&self.sregs)
    }

    /// The width of the code that the vCPU executes.
    pub(crate) fn code_bits(&self) -> u32 {
        match (self.is_long(), self.sregs.cs.db != 0) {
            (true, _) => 64,
            (_, true) => 32,
            _ => 16,
        }
    }

    /// True if the vCPU executes code of ring 3.
    pub(crate) fn is_in_ring_3(&self) -> bool {
        self.sregs.cr0 & CR0_PE != 0 && self.sregs.cs.selector & 3 == 3
    }

    /// The linear address of an address in the segment with this base.
    pub fn linear(&self, base: u64, address: u64) -> u64 {
        walk::linear(&self.sregs, base, address)
    }

    /// Translates a linear address.
    ///
    /// # Errors
    /// The address is not canonical, or not mapped.
    pub fn translate_linear(&self, linear: u64) -> Result<Translation, ProbeError> {
        walk::translate(&self.sregs, linear, |gpa, bytes| self.memory.read(gpa, bytes), |_| {})
    }

    /// Translates a guest virtual address: an offset in the data segment (DS), like the guest's pointers.
    ///
    /// # Errors
    /// The address is not canonical, or not mapped.
    pub fn translate(&self, address: u64) -> Result<Translation, ProbeError> {
        self.translate_linear(self.linear(self.sregs.ds.base, address))
    }

    /// Fills `data` from guest virtual address `address`, across pages.
    ///
    /// # Errors
    /// A part of the range is not mapped, or not memory. The content of `data` is then undefined.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ProbeError> {
        let mut done = 0u64;
        for (linear, len) in self.pieces(address, data.len())? {
            let gpa = self.translate_linear(linear)?.gpa;
            let from = usize::try_from(done).unwrap_or(usize::MAX);
            done = done.saturating_add(len);
            let to = usize::try_from(done).unwrap_or(usize::MAX);
            let piece = data.get_mut(from..to).unwrap_or_default();
            if !self.memory.read(gpa, piece) {
                return Err(ProbeError::NoMemory { linear, gpa: gpa.0 });
            }
        }
        Ok(())
    }

    /// Fills `data`, which lies in one page, from a linear address. Returns false if it is not mapped, or not memory.
    pub(crate) fn read_linear(&self, linear: u64, data: &mut [u8]) -> bool {
        self.translate_linear(linear).is_ok_and(|place| self.memory.read(place.gpa, data))
    }

    /// Fills `data` from a linear address, across pages. Returns false if a part is not mapped, or not memory.
    pub fn read_range(&self, linear: u64, data: &mut [u8]) -> bool {
        self.read_prefix(linear, data) == data.len()
    }

    /// Fills `data` from a linear address, across pages, up to the first page that is not mapped, or not memory. Returns the
    /// number of bytes.
    pub fn read_prefix(&self, linear: u64, data: &mut [u8]) -> usize {
        let mut done = 0usize;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = linear.wrapping_add(done as u64);
            let room = PAGE.saturating_sub(at & PAGE.wrapping_sub(1));
            let len = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let piece = rest.get_mut(..len).unwrap_or_default();
            if !self.read_linear(at, piece) {
                break;
            }
            done = done.saturating_add(len);
        }
        done
    }

    /// The pieces of a range, split at page borders: the linear address and the length of each.
    fn pieces(&self, address: u64, len: usize) -> Result<impl Iterator<Item = (u64, u64)>, ProbeError> {
        let len = len as u64;
        let wraps = ProbeError::Wraps { address, len };
        let last = if self.is_long() { u64::MAX } else { 0xffff_ffff };
        let start = self.linear(self.sregs.ds.base, address);
        if address > last || len.saturating_sub(1) > last.saturating_sub(start) {
            return Err(wraps);
        }
        let (mut at, mut left) = (start, len);
        Ok(std::iter::from_fn(move || {
            let piece = left.min(PAGE.saturating_sub(at & PAGE.wrapping_sub(1)));
            let item = (piece > 0).then_some((at, piece));
            // Wraps only after the last address, when nothing is left.
            at = at.wrapping_add(piece);
            left = left.saturating_sub(piece);
            item
        }))
    }
}

impl Probe {
    /// Copies `data` to a linear address, across pages. It does not check if the guest may write there. Returns false if a
    /// part is not mapped, or not memory; nothing is written then.
    pub fn write_range(&self, linear: u64, data: &[u8]) -> bool {
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (linear, data);
        while !rest.is_empty() {
            let room = PAGE.saturating_sub(at & PAGE.wrapping_sub(1));
            let len = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let Some((piece, others)) = rest.split_at_checked(len) else { return false };
            let Ok(place) = self.translate_linear(at) else { return false };
            if !self.memory.contains(place.gpa, piece.len() as u64) {
                return false;
            }
            pieces.push((place.gpa, piece));
            at = at.wrapping_add(piece.len() as u64);
            rest = others;
        }
        pieces.into_iter().all(|(gpa, piece)| self.memory.write(gpa, piece).is_ok())
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests;
