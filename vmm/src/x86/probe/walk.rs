//! The walk through page tables: two levels of 32-bit entries, three with physical address extension, four or five in long
//! mode (Intel SDM volume 3, sections 4.3 to 4.5). A pure function of the registers and the memory.

use super::{ProbeError, Translation};
use crate::memory::Gpa;
use crate::x86::modes;
use crate::x86::registers::Sregs;

/// The physical address in a 64-bit entry.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

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

/// The kind of page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 32-bit entries.
    Narrow,
    /// Three levels of 64-bit entries.
    Pae,
    /// Four or five levels of 64-bit entries.
    Long,
}

impl Layout {
    /// The kind of page tables that a vCPU uses. `None` without paging.
    pub(crate) fn of(sregs: &Sregs) -> Option<Self> {
        let (long, extended) = (sregs.efer & modes::EFER_LMA != 0, sregs.cr4 & modes::CR4_PAE != 0);
        let layout = match (long, extended) {
            (true, _) => Self::Long,
            (false, true) => Self::Pae,
            (false, false) => Self::Narrow,
        };
        (sregs.cr0 & modes::CR0_PG != 0).then_some(layout)
    }

    /// Guest physical address of the first table.
    pub(crate) fn root(self, sregs: &Sregs) -> u64 {
        sregs.cr3
            & match self {
                Self::Long => ADDRESS,
                Self::Pae => 0xffff_ffe0,
                Self::Narrow => 0xffff_f000,
            }
    }
}

/// An entry that is present, on the way to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The level of the table.
    pub(crate) table: &'static str,
    /// The index in the table.
    pub(crate) index: u64,
    /// The value.
    pub(crate) value: u64,
    /// The lowest bit of the linear address that the table decodes.
    pub(crate) shift: u32,
    /// True if it maps a page, false if it leads to another table.
    pub(crate) maps: bool,
}

/// True if the vCPU executes 64-bit code, where segments have no base.
pub(crate) fn is_64_bit(sregs: &Sregs) -> bool {
    sregs.efer & modes::EFER_LMA != 0 && sregs.cs.l == 1
}

/// The linear address of an address in the segment with this base.
pub(crate) fn linear(sregs: &Sregs, base: u64, address: u64) -> u64 {
    if is_64_bit(sregs) { address } else { base.wrapping_add(address) & 0xffff_ffff }
}

/// The number of bits of a linear address that are translated in long mode.
pub(crate) fn linear_bits(sregs: &Sregs) -> u32 {
    if sregs.cr4 & modes::CR4_LA57 != 0 { 57 } else { 48 }
}

/// True if the upper bits of a linear address are copies of the highest one that is translated.
pub(crate) fn is_canonical(sregs: &Sregs, linear: u64) -> bool {
    let sign = linear_bits(sregs).saturating_sub(1);
    let upper = linear >> sign;
    upper == 0 || upper == u64::MAX >> sign
}

/// Translates a linear address. `read` fills bytes from the guest's memory, and returns false where there is none. `visit`
/// gets each entry on the way that is present.
///
/// # Errors
/// The address is not canonical, or not mapped.
pub(crate) fn translate(
    sregs: &Sregs,
    linear: u64,
    read: impl Fn(Gpa, &mut [u8]) -> bool,
    mut visit: impl FnMut(&Entry),
) -> Result<Translation, ProbeError> {
    let Some(layout) = Layout::of(sregs) else {
        return Ok(Translation { gpa: Gpa(linear), page: None, writable: true, user: true });
    };
    let levels = match layout {
        Layout::Long if !is_canonical(sregs, linear) => return Err(ProbeError::NotCanonical { linear }),
        Layout::Long if sregs.cr4 & modes::CR4_LA57 != 0 => LONG.as_slice(),
        Layout::Long => LONG.get(1..).unwrap_or_default(),
        Layout::Pae => &PAE,
        Layout::Narrow => &NARROW,
    };
    let narrow = layout == Layout::Narrow;
    let width: u64 = if narrow { 4 } else { 8 };
    let (mut at_table, mut writable, mut user) = (layout.root(sregs), true, true);
    for &Level(table, shift, bits) in levels {
        let index = linear >> shift & (1u64 << bits).wrapping_sub(1);
        let at = at_table.saturating_add(index.saturating_mul(width));
        let mut bytes = [0; 8];
        let entry = bytes.get_mut(..if narrow { 4 } else { 8 }).unwrap_or_default();
        if !read(Gpa(at), entry) {
            return Err(ProbeError::NoTable { linear, table, at });
        }
        let entry = u64::from_le_bytes(bytes);
        if entry & modes::PTE_PRESENT == 0 {
            return Err(ProbeError::NotMapped { linear, table, at, entry });
        }
        // The page directory pointers of PAE have no bits for the access, and no large bit.
        let pointers = layout == Layout::Pae && shift == 30;
        writable &= pointers || entry & modes::PTE_WRITABLE != 0;
        user &= pointers || entry & modes::PTE_USER != 0;
        let large = entry & modes::PDE_LARGE != 0
            && match shift {
                30 => !pointers,
                22 => sregs.cr4 & modes::CR4_PSE != 0,
                21 => true,
                _ => false,
            };
        let maps = shift == 12 || large;
        visit(&Entry { table, index, value: entry, shift, maps });
        if maps {
            let within = (1u64 << shift).wrapping_sub(1);
            // Large 32-bit pages keep bits 32 to 39 of their address in bits 13 to 20.
            let (base, high) = match narrow {
                true => (entry & 0xffff_f000, if large { (entry >> 13 & 0xff) << 32 } else { 0 }),
                false => (entry & ADDRESS, 0),
            };
            let gpa = Gpa((base & !within) | high | (linear & within));
            return Ok(Translation { gpa, page: Some(1 << shift), writable, user });
        }
        at_table = if narrow { entry & 0xffff_f000 } else { entry & ADDRESS };
    }
    Err(ProbeError::NoTable { linear, table: "PT", at: at_table })
}
