//! Writes of control registers: their checks, and what they change (SDM volume 3, section 2.5).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::paging::PHYSICAL_BITS;
use crate::state::{cr0, cr4, efer, seg};
use crate::trap::Trap;

/// The bits of CR0. The others read as zero, and a write does not change them.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// The bits of CR4 that a guest can set. A write of another one raises #GP, because CPUID does not show its feature.
const CR4_BITS: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT;

/// The types of 16-bit task-state segments, available and busy.
const TSS_16: [u8; 2] = [0b0001, 0b0011];

impl<M: Memory> Cpu<M> {
    /// Writes CR0.
    ///
    /// # Errors
    /// #GP(0): the value or the mode does not allow it (SDM volume 2, "MOV: Move to/from Control Registers").
    pub(crate) fn write_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let state = &self.state;
        let (old, new) = (state.cr0, value & CR0_BITS | cr0::ET);
        let (set, cleared) = (new & !old, old & !new);
        let has = |bit: u64| new & bit != 0;
        if value >> 32 != 0 || (has(cr0::NW) && !has(cr0::CD)) || (has(cr0::PG) && !has(cr0::PE)) {
            return Err(Trap::gp());
        }
        let long = state.efer & efer::LME != 0;
        let pae = state.cr4 & cr4::PAE != 0;
        if set & cr0::PG != 0 && long {
            // The switch to long mode.
            let code = &state.segments[seg::CS];
            if !pae || code.long || TSS_16.contains(&state.tr.kind) {
                return Err(Trap::gp());
            }
        }
        if cleared & cr0::PG != 0 && state.is_64() {
            return Err(Trap::gp());
        }
        if has(cr0::PG) && pae && !long && (set | cleared) & (cr0::CD | cr0::NW | cr0::PG) != 0 {
            self.state.pdptrs = self.read_pdptrs(self.state.cr3)?;
        }
        if (set | cleared) & (cr0::PG | cr0::WP) != 0 {
            self.tlb.flush();
        }
        if set & cr0::PG != 0 && long {
            self.state.efer |= efer::LMA;
        }
        if cleared & cr0::PG != 0 {
            self.state.efer &= !efer::LMA;
        }
        self.state.cr0 = new;
        self.leave_block = true;
        Ok(())
    }

    /// Writes CR3.
    ///
    /// # Errors
    /// #GP(0): a reserved bit is set in the value, or in one of the page-directory pointers of PAE paging.
    pub(crate) fn write_cr3(&mut self, value: u64) -> Result<(), Trap> {
        let state = &self.state;
        if state.is_long() && value >> PHYSICAL_BITS != 0 {
            return Err(Trap::gp());
        }
        if state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && !state.is_long() {
            self.state.pdptrs = self.read_pdptrs(value)?;
        }
        self.state.cr3 = value;
        self.tlb.flush_local();
        self.leave_block = true;
        Ok(())
    }

    /// Writes CR4.
    ///
    /// # Errors
    /// #GP(0): a reserved bit is set, PAE is cleared in long mode, or a page-directory pointer of PAE paging has a reserved
    /// bit.
    pub(crate) fn write_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let state = &self.state;
        let changed = state.cr4 ^ value;
        if value & !CR4_BITS != 0 || (state.is_long() && value & cr4::PAE == 0) {
            return Err(Trap::gp());
        }
        let paging = state.cr0 & cr0::PG != 0;
        let relevant = changed & (cr4::PAE | cr4::PGE | cr4::PSE);
        if paging && value & cr4::PAE != 0 && !state.is_long() && relevant != 0 {
            self.state.pdptrs = self.read_pdptrs(self.state.cr3)?;
        }
        if relevant != 0 {
            self.tlb.flush();
        }
        self.state.cr4 = value;
        self.leave_block = true;
        Ok(())
    }
}
