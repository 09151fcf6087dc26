//! Paging (SDM volume 3, chapter 4).

use crate::cpu::Cpu;
use crate::memory::{Memory, PAGE};
use crate::state::{State, cr0, cr4, efer};
use crate::tlb::Entry;
use crate::trap::Trap;

/// The width of a physical address, in bits.
pub(crate) const PHYSICAL_BITS: u32 = 46;
/// The bits of an entry of a paging structure.
pub(crate) mod pte {
    pub(crate) const PRESENT: u64 = 1 << 0;
    pub(crate) const WRITABLE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const ACCESSED: u64 = 1 << 5;
    pub(crate) const DIRTY: u64 = 1 << 6;
    pub(crate) const LARGE: u64 = 1 << 7;
    pub(crate) const GLOBAL: u64 = 1 << 8;
    pub(crate) const NO_EXECUTE: u64 = 1 << 63;
}

/// The bits of a page fault's error code (SDM volume 3, section 4.7).
mod error {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read = 0,
    Write = 1,
    Execute = 2,
}

/// The result of a walk through the paging structures.
struct Walk {
    gpa: u64,
    writable: bool,
    user: bool,
    executable: bool,
    global: bool,
    dirty: bool,
    /// The binary logarithm of the size of the page.
    shift: u8,
}

/// The entries that a walk has read, with their addresses and widths.
struct Path {
    entries: [(u64, u64); 4],
    len: usize,
    wide: bool,
}

impl<M: Memory> Cpu<M> {
    /// Translates a linear address.
    ///
    /// # Errors
    /// #PF.
    #[inline]
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        user: bool,
    ) -> Result<Entry<M::Page>, Trap> {
        match self.tlb.find(linear, access, user) {
            Some(entry) => Ok(entry),
            None => self.fill(linear, access, user),
        }
    }

    /// Walks the paging structures, and keeps the translation.
    #[cold]
    fn fill(&mut self, linear: u64, access: Access, user: bool) -> Result<Entry<M::Page>, Trap> {
        let walk = if self.state.cr0 & cr0::PG == 0 {
            Walk {
                gpa: linear,
                writable: true,
                user: true,
                executable: true,
                global: false,
                dirty: true,
                shift: 12,
            }
        } else {
            self.walk(linear, access, user)?
        };
        let protects = user || self.state.cr0 & cr0::WP != 0;
        let gpa = walk.gpa & !(PAGE - 1);
        let entry = Entry {
            tag: 0,
            gpa,
            page: self.memory.page(gpa),
            code: self.blocks.code_of(gpa),
            writable: walk.dirty && (walk.writable || !protects),
            executable: walk.executable,
            shift: walk.shift,
            global: walk.global && self.state.cr4 & cr4::PGE != 0,
        };
        if self.is_watched(linear) {
            let page = entry.page.filter(|_| access == Access::Execute);
            return Ok(Entry { page, ..entry });
        }
        Ok(self.tlb.insert(linear, user, entry))
    }

    /// Reads the page-directory pointers of PAE paging from memory (SDM volume 3, section 4.4.1).
    ///
    /// # Errors
    /// #GP(0): one that is present has a reserved bit, or there is no memory.
    pub(crate) fn read_pdptrs(&self, cr3: u64) -> Result<[u64; 4], Trap> {
        let table = cr3 & 0xffff_ffe0;
        let reserved = !((1u64 << PHYSICAL_BITS) - 1) | 0x1e6;
        if self.memory.page(table).is_none() {
            return Err(Trap::gp());
        }
        let pointers = [0, 8, 16, 24].map(|at| self.read_entry(table + at, true));
        match pointers.iter().any(|pointer| pointer & pte::PRESENT != 0 && pointer & reserved != 0) {
            true => Err(Trap::gp()),
            false => Ok(pointers),
        }
    }

    /// Reads an entry of a paging structure. One in a place without memory is not present.
    fn read_entry(&self, gpa: u64, wide: bool) -> u64 {
        let Some(page) = self.memory.page(gpa) else { return 0 };
        let offset = (gpa & (PAGE - 1)) as usize;
        if wide { self.memory.load::<8>(page, offset) } else { self.memory.load::<4>(page, offset) }
    }

    /// Writes an entry of a paging structure.
    fn write_entry(&mut self, gpa: u64, value: u64, wide: bool) {
        let Some(page) = self.memory.page(gpa) else { return };
        let offset = (gpa & (PAGE - 1)) as usize;
        if wide {
            self.memory.store::<8>(page, offset, value);
        } else {
            self.memory.store::<4>(page, offset, value);
        }
        self.code_written(gpa, if wide { 8 } else { 4 });
    }

    /// Walks the paging structures for an access, checks it, and sets the accessed and dirty bits.
    fn walk(&mut self, linear: u64, access: Access, user: bool) -> Result<Walk, Trap> {
        let mut code = if user { error::USER } else { 0 };
        if access == Access::Write {
            code |= error::WRITE;
        }
        if access == Access::Execute && self.state.cr4 & cr4::PAE != 0 && self.state.efer & efer::NXE != 0 {
            code |= error::FETCH;
        }
        let fault = |bits| Trap::page_fault(linear, code | bits);
        let mut path = Path { entries: [(0, 0); 4], len: 0, wide: self.state.cr4 & cr4::PAE != 0 };
        let found = self.descend(linear, &mut path).map_err(fault)?;
        let allowed = match access {
            _ if user && !found.user => false,
            Access::Read => true,
            Access::Write => found.writable || (!user && self.state.cr0 & cr0::WP == 0),
            Access::Execute => found.executable,
        };
        if !allowed {
            return Err(fault(error::PRESENT));
        }
        let writes = access == Access::Write;
        let last = path.len.saturating_sub(1);
        for (level, (gpa, entry)) in path.entries.into_iter().take(path.len).enumerate() {
            let dirty = if writes && level == last { pte::DIRTY } else { 0 };
            let wanted = entry | pte::ACCESSED | dirty;
            if wanted != entry {
                self.write_entry(gpa, wanted, path.wide);
            }
        }
        Ok(Walk { dirty: found.dirty || writes, ..found })
    }

    /// Reads the entries for a linear address into `path`. Returns the translation, or the bits of the error code.
    fn descend(&self, linear: u64, path: &mut Path) -> Result<Walk, u32> {
        let state = &self.state;
        let (mut table, mut shift, bits) = match (state.is_long(), path.wide) {
            (true, _) => (state.cr3 & physical_mask(), 39, 9),
            (false, true) => {
                let pointer = state.pdptrs[(linear >> 30) as usize & 3];
                if pointer & pte::PRESENT == 0 {
                    return Err(0);
                }
                (pointer & physical_mask(), 21, 9)
            }
            (false, false) => (state.cr3 & 0xffff_f000, 22, 10),
        };
        let (mut writable, mut user, mut executable) = (true, true, true);
        loop {
            let index = linear >> shift & ((1 << bits) - 1);
            let gpa = table + index * if path.wide { 8 } else { 4 };
            let entry = self.read_entry(gpa, path.wide);
            if let Some(slot) = path.entries.get_mut(path.len) {
                *slot = (gpa, entry);
                path.len += 1;
            }
            if entry & pte::PRESENT == 0 {
                return Err(0);
            }
            let large = entry & pte::LARGE != 0 && shift > 12 && (path.wide || state.cr4 & cr4::PSE != 0);
            if entry & reserved(state, shift, large, path.wide) != 0 {
                return Err(error::PRESENT | error::RESERVED);
            }
            writable &= entry & pte::WRITABLE != 0;
            user &= entry & pte::USER != 0;
            executable &= !path.wide || entry & pte::NO_EXECUTE == 0;
            if large || shift == 12 {
                let (global, dirty) = (entry & pte::GLOBAL != 0, entry & pte::DIRTY != 0);
                let gpa = page_address(entry, linear, shift, path.wide);
                return Ok(Walk { gpa, writable, user, executable, global, dirty, shift: shift as u8 });
            }
            table = if path.wide { entry & physical_mask() } else { entry & 0xffff_f000 };
            shift -= bits;
        }
    }
}

/// The bits of a physical page address.
const fn physical_mask() -> u64 {
    ((1 << PHYSICAL_BITS) - 1) & !(PAGE - 1)
}

/// The reserved bits of an entry that maps `1 << shift` bytes.
fn reserved(state: &State, shift: u32, large: bool, wide: bool) -> u64 {
    if !wide {
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
        return if large { 1 << 21 } else { 0 };
    }
    let mut bits = !((1u64 << PHYSICAL_BITS) - 1) & !pte::NO_EXECUTE;
    if state.is_long() {
        // Bits 52 to 62 are ignored.
        bits &= (1 << 52) - 1;
    }
    if state.efer & efer::NXE == 0 {
        bits |= pte::NO_EXECUTE;
    }
    if large {
        // Bit 12 selects a memory type.
        bits |= ((1 << shift) - 1) & !0x1fff;
    }
    if shift == 39 {
        bits |= pte::LARGE;
    }
    bits
}

/// The physical address that an entry maps a linear address to.
fn page_address(entry: u64, linear: u64, shift: u32, wide: bool) -> u64 {
    let inside = (1u64 << shift) - 1;
    let base = match (wide, shift) {
        (true, _) => entry & physical_mask() & !inside,
        (false, 22) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
        (false, _) => entry & 0xffff_f000,
    };
    base | linear & inside
}

#[cfg(test)]
#[path = "tests/paging.rs"]
mod tests;
