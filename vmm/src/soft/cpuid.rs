//! The CPUID leaves of the software processor, in both shapes.

use crate::x86::registers::CpuidEntry;
use softcpu::CpuidLeaf;

/// The leaves that the software processor supports.
pub(crate) fn supported() -> Vec<CpuidEntry> {
    softcpu::supported_cpuid().iter().map(entry).collect()
}

fn entry(leaf: &CpuidLeaf) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = leaf.registers;
    let flags = if leaf.subleaf.is_some() { CpuidEntry::HAS_INDEX } else { 0 };
    CpuidEntry { function: leaf.leaf, index: leaf.subleaf.unwrap_or(0), flags, eax, ebx, ecx, edx }
}

/// The shape in which the software processor takes a leaf.
pub(super) fn leaf(entry: &CpuidEntry) -> CpuidLeaf {
    let subleaf = (entry.flags & CpuidEntry::HAS_INDEX != 0).then_some(entry.index);
    let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    CpuidLeaf { leaf: entry.function, subleaf, registers }
}
