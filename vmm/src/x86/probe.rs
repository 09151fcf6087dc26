//! The probe: reads a guest's memory by guest virtual address.
//!
//! ```text
//! guest virtual --(segment)--> linear --(page tables)--> guest physical --(memory slots)--> bytes
//! ```
//!
//! It walks the page tables as the processor does: two levels of 32-bit entries, three with physical address extension,
//! four or five in long mode (Intel SDM volume 3, sections 4.3 to 4.5). It does not check access rights: it sees what a
//! debugger would see.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

use crate::memory::{Gpa, GuestMemory, PAGE};
use crate::x86::modes;
use crate::x86::registers::Sregs;

/// CR4: 4 MiB pages in 32-bit page tables.
const CR4_PSE: u64 = 1 << 4;
/// CR4: 57-bit linear addresses.
const CR4_LA57: u64 = 1 << 12;
/// The physical address in a 64-bit entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

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
}

/// A level of page tables: its name, the lowest bit of the linear address that it decodes, and the number of bits.
struct Level(&'static str, u32, u32);

/// Long mode, with the level that only 57-bit addresses have.
const LONG: [Level; 5] = [
    Level("PML5", 48, 9),
    Level("PML4", 39, 9),
    Level("PDPT", 30, 9),
    Level("PD", 21, 9),
    Level("PT", 12, 9),
];
/// 32-bit mode with physical address extension.
const PAE: [Level; 3] = [Level("PDPT", 30, 2), Level("PD", 21, 9), Level("PT", 12, 9)];
/// 32-bit mode with 32-bit entries.
const NARROW: [Level; 2] = [Level("PD", 22, 10), Level("PT", 12, 10)];

/// The guest's memory as one vCPU sees it at one moment.
#[derive(Clone, Debug)]
pub struct Probe {
    memory: GuestMemory,
    sregs: Sregs,
}

impl Probe {
    /// Creates a probe for a vCPU with these special registers.
    pub fn new(memory: GuestMemory, sregs: Sregs) -> Self {
        Self { memory, sregs }
    }

    /// True if the vCPU executes 64-bit code, where segments have no base.
    pub(crate) fn is_long(&self) -> bool {
        self.sregs.efer & modes::EFER_LMA != 0 && self.sregs.cs.l == 1
    }

    /// The linear address of an address in the segment with this base.
    pub(crate) fn linear(&self, base: u64, address: u64) -> u64 {
        if self.is_long() { address } else { base.wrapping_add(address) & 0xffff_ffff }
    }

    /// Translates a linear address.
    ///
    /// # Errors
    /// The address is not canonical, or not mapped.
    pub fn translate_linear(&self, linear: u64) -> Result<Translation, ProbeError> {
        let Self { sregs, .. } = self;
        if sregs.cr0 & modes::CR0_PG == 0 {
            return Ok(Translation { gpa: Gpa(linear), page: None, writable: true });
        }
        let long = sregs.efer & modes::EFER_LMA != 0;
        if long {
            let (levels, sign) = if sregs.cr4 & CR4_LA57 != 0 { (&LONG[..], 56) } else { (&LONG[1..], 47) };
            let upper = linear >> sign;
            if upper != 0 && upper != u64::MAX >> sign {
                return Err(ProbeError::NotCanonical { linear });
            }
            return self.walk(linear, levels, sregs.cr3 & ADDRESS);
        }
        match sregs.cr4 & modes::CR4_PAE != 0 {
            true => self.walk(linear, &PAE, sregs.cr3 & 0xffff_ffe0),
            false => self.walk(linear, &NARROW, sregs.cr3 & 0xffff_f000),
        }
    }

    fn walk(&self, linear: u64, levels: &[Level], root: u64) -> Result<Translation, ProbeError> {
        let narrow = levels.len() == NARROW.len();
        let width: u64 = if narrow { 4 } else { 8 };
        let (mut at_table, mut writable) = (root, true);
        for &Level(table, shift, bits) in levels {
            let index = linear >> shift & (1u64 << bits).wrapping_sub(1);
            let at = at_table.saturating_add(index.saturating_mul(width));
            let mut bytes = [0; 8];
            let entry = bytes.get_mut(..if narrow { 4 } else { 8 }).unwrap_or_default();
            if !self.memory.read(Gpa(at), entry) {
                return Err(ProbeError::NoTable { linear, table, at });
            }
            let entry = u64::from_le_bytes(bytes);
            if entry & modes::PTE_PRESENT == 0 {
                return Err(ProbeError::NotMapped { linear, table, at, entry });
            }
            // The page directory pointers of PAE have neither a writable bit nor a large bit.
            let pointers = levels.len() == PAE.len() && shift == 30;
            writable &= pointers || entry & modes::PTE_WRITABLE != 0;
            let large = entry & modes::PDE_LARGE != 0
                && match shift {
                    30 => !pointers,
                    22 => self.sregs.cr4 & CR4_PSE != 0,
                    21 => true,
                    _ => false,
                };
            if shift == 12 || large {
                let within = (1u64 << shift).wrapping_sub(1);
                // Large 32-bit pages keep bits 32 to 39 of their address in bits 13 to 20.
                let (base, high) = match narrow {
                    true => (entry & 0xffff_f000, if large { (entry >> 13 & 0xff) << 32 } else { 0 }),
                    false => (entry & ADDRESS, 0),
                };
                let gpa = Gpa((base & !within) | high | (linear & within));
                return Ok(Translation { gpa, page: Some(1 << shift), writable });
            }
            at_table = if narrow { entry & 0xffff_f000 } else { entry & ADDRESS };
        }
        Err(ProbeError::NoTable { linear, table: "PT", at: at_table })
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

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests;
