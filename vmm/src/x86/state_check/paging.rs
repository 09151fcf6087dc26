//! Rules for the page tables that CR3 leads to. They look at the entries on the way to the next instruction and to the top
//! of the stack, which are at most ten.

use super::{Kind, Rule, Snapshot, bit, bits, section};
use crate::memory::Gpa;
use crate::x86::modes;
use crate::x86::probe::ProbeError;
use crate::x86::probe::walk::{self, ADDRESS, Entry, Layout};

/// No-execute.
const NX: u64 = 1 << 63;
/// The bits of a page directory pointer of PAE paging that are reserved: 1, 2 and 5 to 8.
const POINTER_RESERVED: u64 = 0x1e6;
/// The bits of a 64-bit entry of PAE paging above the address, without NX.
const PAE_HIGH: u64 = 0x7ff0_0000_0000_0000;
/// The attribute bit of a large page is below its address.
const LARGE_ATTRIBUTE: u64 = 1 << 12;
/// The lowest bit of the upper part of a 4 MiB page's address, which is bit 32 of the address.
const NARROW_HIGH: u32 = 13;
/// A 4 MiB page's address has at most 40 bits.
const NARROW_BITS: u32 = 40;

pub(super) const REFUSED: &[Rule] = &[Rule {
    name: "pdpte",
    kind: Kind::Refused,
    section: section::POINTERS,
    text: "with PAE paging outside of long mode, the four page directory pointers have no reserved bits",
    check: pointers,
}];

pub(super) const HINTS: &[Rule] = &[
    Rule {
        name: "cr3-memory",
        kind: Kind::Hint,
        section: section::PAGING,
        text: "with paging, CR3 is in a memory slot",
        check: root_memory,
    },
    Rule {
        name: "cr3-alignment",
        kind: Kind::Hint,
        section: section::CONTROL_REGISTERS,
        text: "in long mode without PCIDs, CR3 is the address of a page",
        check: root_alignment,
    },
    Rule {
        name: "table-memory",
        kind: Kind::Hint,
        section: section::PAGING,
        text: "the page tables of the instruction and the stack are in memory slots",
        check: table_memory,
    },
    Rule {
        name: "entry-reserved",
        kind: Kind::Hint,
        section: section::PAGE_FAULTS,
        text: "the page-table entries of the instruction and the stack have no reserved bits",
        check: entry_reserved,
    },
    Rule {
        name: "page-size",
        kind: Kind::Hint,
        section: section::PAGING,
        text: "a page directory entry with the address of its 2 MiB page has PS (bit 7)",
        check: page_size,
    },
];

fn pointers(state: &Snapshot<'_>) -> Option<String> {
    let layout = Layout::of(state.sregs).filter(|layout| *layout == Layout::Pae)?;
    let root = layout.root(state.sregs);
    let reserved = POINTER_RESERVED | state.above_physical();
    (0..4u64).find_map(|index| {
        let mut bytes = [0; 8];
        let at = root.checked_add(index.checked_mul(8)?)?;
        let pointer = (state.memory)(Gpa(at), &mut bytes).then(|| u64::from_le_bytes(bytes))?;
        let wrong = pointer & reserved;
        (pointer & modes::PTE_PRESENT != 0 && wrong != 0)
            .then(|| format!("PDPT[{index}] is {pointer:#x}, which sets the reserved {}", bits(wrong)))
    })
}

fn root_memory(state: &Snapshot<'_>) -> Option<String> {
    let root = Layout::of(state.sregs)?.root(state.sregs);
    let is_memory = (state.memory)(Gpa(root), &mut [0; 4]);
    (!is_memory).then(|| format!("CR3 is {:#x}, which is outside of every memory slot", state.sregs.cr3))
}

fn root_alignment(state: &Snapshot<'_>) -> Option<String> {
    /// Write-through, and cache disable.
    const ATTRIBUTES: u64 = 0x18;
    let cr3 = state.sregs.cr3;
    let is_address = Layout::of(state.sregs) == Some(Layout::Long) && !state.cr4(bit::CR4_PCIDE);
    (is_address && cr3 & 0xfff & !ATTRIBUTES != 0)
        .then(|| format!("CR3 is {cr3:#x}, but the first table begins at {:#x}: it is a page", cr3 & ADDRESS))
}

/// The linear addresses whose way is checked: of the next instruction, and of the byte below the stack pointer.
fn addresses(state: &Snapshot<'_>) -> [u64; 2] {
    let (regs, sregs) = (state.regs, state.sregs);
    let mask = match (walk::is_64_bit(sregs), sregs.ss.db) {
        (true, _) => u64::MAX,
        (false, 0) => 0xffff,
        (false, _) => 0xffff_ffff,
    };
    let below = regs.rsp.wrapping_sub(1) & mask;
    [walk::linear(sregs, sregs.cs.base, regs.rip), walk::linear(sregs, sregs.ss.base, below)]
}

fn table_memory(state: &Snapshot<'_>) -> Option<String> {
    addresses(state).into_iter().find_map(|linear| {
        let mut last = None;
        let end = walk::translate(state.sregs, linear, state.memory, |entry| last = Some(*entry));
        let Err(ProbeError::NoTable { .. }) = end else { return None };
        // Without an entry, it is CR3 that is outside.
        let Entry { table, index, value, .. } = last?;
        Some(format!("{table}[{index}] is {value:#x}, which points outside of every memory slot"))
    })
}

fn entry_reserved(state: &Snapshot<'_>) -> Option<String> {
    let layout = Layout::of(state.sregs)?;
    addresses(state).into_iter().find_map(|linear| {
        let mut wrong_entries = Vec::new();
        let visit = |entry: &Entry| match reserved(entry, layout, state) {
            0 => {}
            wrong => wrong_entries.push((*entry, wrong)),
        };
        // Entries with reserved bits may lead anywhere. The walk ends at the last level, or outside of memory.
        let _ = walk::translate(state.sregs, linear, state.memory, visit);
        let (Entry { table, index, value, .. }, wrong) = wrong_entries.into_iter().next()?;
        Some(match wrong {
            NX => format!("{table}[{index}] is {value:#x}, which sets NX (bit 63), but EFER.NXE is 0"),
            wrong => format!("{table}[{index}] is {value:#x}, which sets the reserved {}", bits(wrong)),
        })
    })
}

fn page_size(state: &Snapshot<'_>) -> Option<String> {
    /// The lowest bit of the linear address that a page directory decodes, and the address of its page.
    const SHIFT: u32 = 21;
    const PAGE: u64 = !0x1f_ffff;
    Layout::of(state.sregs).filter(|layout| *layout != Layout::Narrow)?;
    addresses(state).into_iter().find_map(|linear| {
        let mut directory = None;
        let visit = |entry: &Entry| {
            if entry.shift == SHIFT && !entry.maps {
                directory = Some(*entry);
            }
        };
        let end = walk::translate(state.sregs, linear, state.memory, visit);
        let Err(ProbeError::NotMapped { .. }) = end else { return None };
        let Entry { table, index, value, .. } = directory?;
        let next = value & ADDRESS;
        (next == linear & PAGE).then(|| {
            format!(
                "{table}[{index}] is {value:#x}, so it leads to a page table at {next:#x}: a 2 MiB page needs PS (bit 7)"
            )
        })
    })
}

/// The bits of an entry that are set, and reserved at its level.
fn reserved(entry: &Entry, layout: Layout, state: &Snapshot<'_>) -> u64 {
    let within = 1u64.checked_shl(entry.shift).unwrap_or(0).wrapping_sub(1);
    let large = if entry.maps { within & !0xfff & !LARGE_ATTRIBUTE } else { 0 };
    let no_execute = if state.efer(bit::EFER_NXE) { 0 } else { NX };
    let above = state.above_physical();
    let mask = match layout {
        // Another rule describes the page directory pointers.
        Layout::Pae if entry.shift == 30 => 0,
        Layout::Pae => large | no_execute | above & ADDRESS | PAE_HIGH,
        Layout::Long => {
            // Entries of the upper levels cannot map pages.
            let size = if entry.shift >= 39 { modes::PDE_LARGE } else { 0 };
            large | no_execute | above & ADDRESS | size
        }
        Layout::Narrow if entry.maps && entry.shift == 22 => {
            let width = state.physical_bits.clamp(32, NARROW_BITS).saturating_sub(32);
            let first = NARROW_HIGH.saturating_add(width);
            within & u64::MAX.checked_shl(first).unwrap_or(0)
        }
        Layout::Narrow => 0,
    };
    entry.value & mask
}
