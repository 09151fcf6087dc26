//! All mappings of the page tables, as runs of pages that follow each other in both kinds of addresses.

use crate::memory::{Gpa, PAGE, ReadMemory};
use crate::x86::modes;
use crate::x86::probe::walk::ADDRESS;
use crate::x86::registers::Sregs;

/// The most page tables that are read. Tables may lead to each other, so a guest can have any number of mappings.
const MAX_TABLES: u32 = 16 << 10;
/// Present, and a large page.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Pages that are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first linear address.
    pub linear: u64,
    /// The guest physical address that it maps to.
    pub gpa: u64,
    /// The length in bytes.
    pub len: u64,
}

/// The walk through all page tables.
struct Walk<'a, M> {
    memory: &'a M,
    wide: bool,
    /// 32-bit entries can map 4 MiB.
    large: bool,
    /// Linear addresses have this many bits.
    bits: u32,
    tables: u32,
    most: usize,
    found: Vec<Mapping>,
    is_complete: bool,
}

/// The mappings of a vCPU with these registers, in the order of their linear addresses, at most `most`. Returns true with them if
/// these are all. Without paging there are none.
pub fn mappings<M: ReadMemory>(memory: &M, sregs: &Sregs, most: usize) -> (Vec<Mapping>, bool) {
    if sregs.cr0 & modes::CR0_PG == 0 {
        return (Vec::new(), true);
    }
    let long = sregs.efer & modes::EFER_LMA != 0;
    let wide = long || sregs.cr4 & modes::CR4_PAE != 0;
    let (root, shift, bits) = match (long, wide) {
        (true, _) if sregs.cr4 & modes::CR4_LA57 != 0 => (sregs.cr3 & ADDRESS, 48, 57),
        (true, _) => (sregs.cr3 & ADDRESS, 39, 48),
        (false, true) => (sregs.cr3 & 0xffff_ffe0, 30, 32),
        (false, false) => (sregs.cr3 & 0xffff_f000, 22, 32),
    };
    let large = wide || sregs.cr4 & modes::CR4_PSE != 0;
    let (found, is_complete) = (Vec::new(), true);
    let mut walk = Walk { memory, wide, large, bits, tables: 0, most, found, is_complete };
    walk.table(root, shift, 0);
    (walk.found, walk.is_complete)
}

impl<M: ReadMemory> Walk<'_, M> {
    /// Follows the entries of a table, which decode the bits from `shift` on of the addresses from `base` on.
    fn table(&mut self, table: u64, shift: u32, base: u64) {
        self.tables = self.tables.saturating_add(1);
        if self.tables > MAX_TABLES {
            self.is_complete = false;
            return;
        }
        // The first level of PAE paging has 4 entries.
        let (width, count) = match (self.wide, shift == 30 && self.bits == 32) {
            (true, true) => (8usize, 4usize),
            (true, false) => (8, 512),
            (false, _) => (4, 1024),
        };
        let mut bytes = [0; PAGE as usize];
        let Some(bytes) = bytes.get_mut(..width.saturating_mul(count)) else { return };
        if !self.memory.read(Gpa(table), bytes) {
            return;
        }
        for (index, bytes) in (0u64..).zip(bytes.chunks_exact(width)) {
            if !self.is_complete {
                return;
            }
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            let entry = u64::from_le_bytes(word);
            if entry & PRESENT != 0 {
                self.entry(entry, shift, base | index.checked_shl(shift).unwrap_or(0));
            }
        }
    }

    /// Follows an entry that is present.
    fn entry(&mut self, entry: u64, shift: u32, linear: u64) {
        let size = 1u64.checked_shl(shift).unwrap_or(0);
        let is_large = entry & LARGE != 0
            && self.large
            && matches!(shift, 21 | 22 | 30)
            && !(shift == 30 && self.bits == 32);
        if !is_large && shift > 12 {
            let (address, bits) = if self.wide { (entry & ADDRESS, 9) } else { (entry & 0xffff_f000, 10) };
            return self.table(address, shift.saturating_sub(bits), linear);
        }
        let gpa = match (self.wide, is_large) {
            (true, _) => entry & ADDRESS,
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
            (false, true) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            (false, false) => entry & 0xffff_f000,
        } & !size.saturating_sub(1);
        self.add(linear, gpa, size);
    }

    fn add(&mut self, linear: u64, gpa: u64, len: u64) {
        // The upper bits are copies of the highest one.
        let unused = 64u32.saturating_sub(self.bits);
        let linear = match self.bits {
            32 => linear,
            _ => ((linear << unused) as i64 >> unused) as u64,
        };
        if let Some(last) = self.found.last_mut()
            && last.linear.wrapping_add(last.len) == linear
            && last.gpa.wrapping_add(last.len) == gpa
        {
            last.len = last.len.saturating_add(len);
            return;
        }
        if self.found.len() == self.most {
            self.is_complete = false;
            return;
        }
        self.found.push(Mapping { linear, gpa, len });
    }
}
