//! Model-specific registers (SDM volume 4, chapter 2).

use crate::cpu::Cpu;
use crate::cpuid::feature;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::paging::PHYSICAL_BITS;
use crate::state::{cr0, efer, seg};

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const UCODE_REV: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_EIP: u32 = 0x176;
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CTL: u32 = 0x1d9;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = 0x20f;
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const FMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// The fixed-range MTRRs.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Done,
    /// #GP(0).
    Refused,
    /// The processor does not have the register.
    Unknown,
}

impl<M: Memory> Cpu<M> {
    /// The value of a model-specific register. `None` if the processor does not have it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let state = &self.state;
        Some(match index {
            TSC => self.tsc(),
            PLATFORM_ID | UCODE_REV | PERF_STATUS | PERF_CTL | DEBUG_CTL => 0,
            APIC_BASE => state.apic_base,
            TSC_ADJUST => state.tsc_adjust,
            // Eight variable ranges, fixed ranges, write-combining.
            MTRR_CAP => 0x508,
            SYSENTER_CS..=SYSENTER_EIP => state.sysenter[(index - SYSENTER_CS) as usize % 3],
            MISC_ENABLE => state.misc_enable,
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST => state.mtrr_variable[(index & 15) as usize],
            PAT => state.pat,
            MTRR_DEFAULT => state.mtrr_default,
            EFER => state.efer,
            STAR..=FMASK => state.syscall[(index - STAR) as usize & 3],
            FS_BASE => state.segments[seg::FS].base,
            GS_BASE => state.segments[seg::GS].base,
            KERNEL_GS_BASE => state.kernel_gs_base,
            TSC_AUX => state.tsc_aux,
            _ => *MTRR_FIXED.iter().zip(&state.mtrr_fixed).find(|(fixed, _)| **fixed == index)?.1,
        })
    }

    /// Sets a model-specific register for the host, between two runs. Returns false if the processor does not have it, or
    /// the value is not valid.
    pub fn set_msr(&mut self, index: u32, value: u64) -> bool {
        if index == EFER {
            // The host may also set LMA.
            let valid = value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) == 0;
            if valid {
                self.state.efer = value;
                self.tlb.flush();
            }
            return valid;
        }
        self.write_msr(index, value, true) == Write::Done
    }

    /// Writes a model-specific register.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64, is_host: bool) -> Write {
        let valid = match index {
            PLATFORM_ID | UCODE_REV | MTRR_CAP | PERF_STATUS => is_host,
            PERF_CTL => true,
            DEBUG_CTL => value == 0,
            TSC_AUX => value >> 32 == 0 && (is_host || self.has_tsc_aux()),
            APIC_BASE => value & !physical_mask(0x900) == 0,
            PAT => types(value, &[0, 1, 4, 5, 6, 7]),
            MTRR_DEFAULT => value & !0xcff == 0 && types(value & 0xff, &[0, 1, 4, 5, 6]),
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST if index & 1 == 0 => {
                value & !physical_mask(0xff) == 0 && types(value & 0xff, &[0, 1, 4, 5, 6])
            }
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST => value & !physical_mask(0x800) == 0,
            _ if MTRR_FIXED.contains(&index) => types(value, &[0, 1, 4, 5, 6]),
            EFER => return self.write_efer(value),
            FMASK => value >> 32 == 0,
            SYSENTER_EIP | 0x175 | 0xc000_0082 | 0xc000_0083 | FS_BASE..=KERNEL_GS_BASE => {
                is_canonical(value)
            }
            _ => true,
        };
        if !valid {
            return Write::Refused;
        }
        self.store_msr(index, value)
    }

    /// Stores a valid value.
    fn store_msr(&mut self, index: u32, value: u64) -> Write {
        if matches!(index, TSC | TSC_ADJUST) {
            let old = if index == TSC { self.tsc() } else { self.state.tsc_adjust };
            let change = value.wrapping_sub(old);
            self.state.tsc_offset = self.state.tsc_offset.wrapping_add(change);
            self.state.tsc_adjust = self.state.tsc_adjust.wrapping_add(change);
            return Write::Done;
        }
        let state = &mut self.state;
        let register = match index {
            PLATFORM_ID | UCODE_REV | MTRR_CAP | PERF_STATUS | PERF_CTL | DEBUG_CTL => return Write::Done,
            APIC_BASE => &mut state.apic_base,
            SYSENTER_CS..=SYSENTER_EIP => &mut state.sysenter[(index - SYSENTER_CS) as usize % 3],
            MISC_ENABLE => &mut state.misc_enable,
            MTRR_VARIABLE..=MTRR_VARIABLE_LAST => &mut state.mtrr_variable[(index & 15) as usize],
            PAT => &mut state.pat,
            MTRR_DEFAULT => &mut state.mtrr_default,
            STAR..=FMASK => &mut state.syscall[(index - STAR) as usize & 3],
            FS_BASE => &mut state.segments[seg::FS].base,
            GS_BASE => &mut state.segments[seg::GS].base,
            KERNEL_GS_BASE => &mut state.kernel_gs_base,
            TSC_AUX => &mut state.tsc_aux,
            _ => {
                let mut fixed = MTRR_FIXED.iter().zip(&mut state.mtrr_fixed);
                let Some((_, register)) = fixed.find(|(fixed, _)| **fixed == index) else {
                    return Write::Unknown;
                };
                register
            }
        };
        *register = if index == SYSENTER_CS { value & 0xffff_ffff } else { value };
        Write::Done
    }

    fn has_tsc_aux(&self) -> bool {
        self.has_feature(feature::RDTSCP) || self.has_feature(feature::RDPID)
    }

    /// Writes IA32_EFER (SDM volume 3, section 2.2.1). As with KVM, a bit whose feature CPUID does not show is refused. LMA
    /// does not change.
    fn write_efer(&mut self, value: u64) -> Write {
        let old = self.state.efer;
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        let needs_long = value & (efer::LME | efer::LMA) != 0 && !self.has_feature(feature::LM);
        let needs_nx = value & efer::NXE != 0 && !self.has_feature(feature::NX);
        let switches = self.state.cr0 & cr0::PG != 0 && (value ^ old) & efer::LME != 0;
        if value & !known != 0 || needs_long || needs_nx || switches {
            return Write::Refused;
        }
        self.state.efer = value & !efer::LMA | old & efer::LMA;
        if (value ^ old) & efer::NXE != 0 {
            self.tlb.flush();
            self.leave_block = true;
        }
        Write::Done
    }
}

/// The bits of a physical page address, and others.
const fn physical_mask(others: u64) -> u64 {
    ((1 << PHYSICAL_BITS) - 1) & !0xfff | others
}

/// True if each byte is one of these memory types.
fn types(value: u64, allowed: &[u8]) -> bool {
    value.to_le_bytes().iter().all(|byte| allowed.contains(byte))
}

#[cfg(test)]
#[path = "tests/msr.rs"]
mod tests;
