//! The CPUID leaves (SDM volume 2, "CPUID").

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::paging::PHYSICAL_BITS;

/// A CPUID leaf. A `subleaf` of `None` matches any ECX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX.
    pub leaf: u32,
    /// ECX, if the leaf has subleaves.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX and EDX of the answer.
    pub registers: [u32; 4],
}

/// The first leaf of a hypervisor.
const HYPERVISOR: u32 = 0x4000_0000;
/// The first extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// EAX, ECX and EDX in [`CpuidLeaf::registers`].
const EAX: usize = 0;
const ECX: usize = 2;
const EDX: usize = 3;

/// A feature: the leaf, the register, and the bit.
pub(crate) type Feature = (u32, usize, u32);

/// The features without which an instruction or a bit of a register does not exist.
pub(crate) mod feature {
    use super::{ECX, EDX, Feature};

    pub(crate) const RDPID: Feature = (7, ECX, 22);
    pub(crate) const NX: Feature = (0x8000_0001, EDX, 20);
    pub(crate) const RDTSCP: Feature = (0x8000_0001, EDX, 27);
    pub(crate) const LM: Feature = (0x8000_0001, EDX, 29);
}

impl<M: Memory> Cpu<M> {
    /// True if CPUID shows a feature.
    pub(crate) fn has_feature(&self, feature: Feature) -> bool {
        let (leaf, register, bit) = feature;
        self.find_leaf(leaf, 0).is_some_and(|registers| registers[register & 3] >> bit & 1 != 0)
    }

    fn find_leaf(&self, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let found = |entry: &&CpuidLeaf| {
            entry.leaf == leaf && entry.subleaf.is_none_or(|subleaf_of_entry| subleaf_of_entry == subleaf)
        };
        self.cpuid.iter().find(found).map(|entry| entry.registers)
    }

    /// The answer of the CPUID instruction. A leaf after the last one of its range reads as the last basic leaf. The
    /// topology leaves 0xB and 0x1F give ECX\[7:0\] and EDX also for a subleaf that they do not have.
    pub(crate) fn cpuid_registers(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        if let Some(registers) = self.find_leaf(leaf, subleaf) {
            return registers;
        }
        let last_of = |first: u32| self.find_leaf(first, 0).map(|registers| registers[EAX]);
        let range = match leaf {
            HYPERVISOR..=0x4fff_ffff => leaf & 0xffff_ff00,
            _ => leaf & EXTENDED,
        };
        if last_of(range).is_none_or(|last| leaf > last) {
            let last = last_of(0).filter(|last| *last != leaf);
            return last.and_then(|last| self.find_leaf(last, subleaf)).unwrap_or_default();
        }
        match (leaf, self.find_leaf(leaf, 0)) {
            (0xb | 0x1f, Some(topology)) => [0, 0, subleaf & 0xff, topology[EDX]],
            _ => [0; 4],
        }
    }
}

/// A register with these bits set.
fn bits(set: &[u32]) -> u32 {
    set.iter().fold(0, |value, bit| value | 1 << bit)
}

/// Four characters.
fn text(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).enumerate().fold(0, |value, (at, byte)| value | u32::from(*byte) << (8 * at))
}

/// The leaves of this processor. They show what it has, and nothing else:
///
/// * The vendor is Intel, so that guests take the paths that follow the SDM.
/// * There is no FPU: the control instructions of the x87 exist, but its arithmetic does not. The guests of this project
///   have no use for it, since they start with SSE off and are compiled for general registers (docs/abi.md, section 1).
///   A guest with SSE finds it by its own bits.
/// * There are no APIC, no MMX, no performance counters and no breakpoints.
pub fn supported_cpuid() -> Vec<CpuidLeaf> {
    let plain = |leaf, registers| CpuidLeaf { leaf, subleaf: None, registers };
    let mut leaves = vec![
        plain(0, [7, text(b"Genu"), text(b"ntel"), text(b"ineI")]),
        plain(1, features()),
        // Leaf 2: the descriptor 0xFF, see leaf 4, which describes no cache.
        plain(2, [0x00ff_ff01, 0, 0, 0]),
        CpuidLeaf { leaf: 7, subleaf: Some(0), registers: extended_features() },
        plain(HYPERVISOR, [HYPERVISOR, text(b"soft"), text(b"cpu "), text(b"rust")]),
        plain(EXTENDED, [0x8000_0008, 0, 0, 0]),
        // LAHF in 64-bit mode, LZCNT; SYSCALL, NX, 1-GiB pages, RDTSCP, long mode.
        plain(0x8000_0001, [0, 0, bits(&[0, 5]), bits(&[11, 20, 26, 27, 29])]),
        // The time-stamp counter has a constant rate.
        plain(0x8000_0007, [0, 0, 0, bits(&[8])]),
        plain(0x8000_0008, [PHYSICAL_BITS | 48 << 8, 0, 0, 0]),
    ];
    let mut brand = [0; 48];
    brand.iter_mut().zip(b"softcpu: a processor in software").for_each(|(to, from)| *to = *from);
    for (leaf, part) in (0x8000_0002..).zip(brand.chunks_exact(16)) {
        let word = |at: usize| part.get(at..).map(text).unwrap_or_default();
        leaves.push(plain(leaf, [word(0), word(4), word(8), word(12)]));
    }
    leaves
}

/// Leaf 1.
fn features() -> [u32; 4] {
    // Family 6, model 0x8f, stepping 1.
    let version = 0x0008_06f1;
    // CLFLUSH writes lines of 64 bytes.
    let lines = 8 << 8;
    // CMPXCHG16B, MOVBE, POPCNT, hypervisor.
    let ecx = bits(&[13, 22, 23, 31]);
    // PSE, TSC, MSR, PAE, CX8, SEP, MTRR, PGE, CMOV, PAT, PSE-36, CLFLUSH, FXSR, SSE, SSE2.
    let edx = bits(&[3, 4, 5, 6, 8, 11, 12, 13, 15, 16, 17, 19, 24, 25, 26]);
    [version, lines, ecx, edx]
}

/// Leaf 7.
fn extended_features() -> [u32; 4] {
    // TSC_ADJUST, BMI1, BMI2, fast string operations, no x87 CS and DS, ADX, CLFLUSHOPT.
    [0, bits(&[1, 3, 8, 9, 13, 19, 23]), bits(&[22]), 0]
}

#[cfg(test)]
#[path = "tests/cpuid.rs"]
mod tests;
