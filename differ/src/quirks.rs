//! Differences that are due to KVM or to the host, and not to the processor.
//!
//! Each is tied to the first instruction after which the results differ, so that it hides nothing before it.

use crate::culprit::Culprit;
use crate::layout::{self, KERNEL_STACK_TOP};
use crate::outcome::{self, Access, End, Outcome};
use crate::program::Config;
use iced_x86::{CpuidFeature, Mnemonic, OpKind};
use softcpu::flag;

/// The reason why two results that differ after an instruction need not be equal.
pub fn allowed(config: Config, culprit: &Culprit) -> Option<&'static str> {
    let case = Case::new(config, culprit);
    case.any().or_else(|| if config == Config::User { case.ring_3() } else { case.ring_0() })
}

/// An instruction, and what it did on both sides.
struct Case<'a> {
    config: Config,
    culprit: &'a Culprit,
    mnemonic: Mnemonic,
    /// The exceptions.
    kvm: Option<u8>,
    soft: Option<u8>,
    /// The accesses of this instruction through KVM.
    accesses: &'a [Access],
}

const INPUT: [Mnemonic; 3] = [Mnemonic::Insb, Mnemonic::Insw, Mnemonic::Insd];
const STRING_IO: [Mnemonic; 6] = [
    Mnemonic::Insb,
    Mnemonic::Insw,
    Mnemonic::Insd,
    Mnemonic::Outsb,
    Mnemonic::Outsw,
    Mnemonic::Outsd,
];

impl<'a> Case<'a> {
    fn new(config: Config, culprit: &'a Culprit) -> Self {
        let first = culprit.step.accesses.min(culprit.kvm.accesses.len());
        Self {
            config,
            culprit,
            mnemonic: culprit.step.insn.mnemonic(),
            kvm: exception(config, &culprit.kvm),
            soft: exception(config, &culprit.soft),
            accesses: &culprit.kvm.accesses[first..],
        }
    }

    fn is(&self, list: &[Mnemonic]) -> bool {
        list.contains(&self.mnemonic)
    }

    /// The operand is memory.
    fn has_memory(&self) -> bool {
        let insn = &self.culprit.step.insn;
        insn.op_kinds().any(|kind| kind == OpKind::Memory) || insn.stack_pointer_increment() != 0
            || insn.is_string_instruction() || self.mnemonic == Mnemonic::Enter
    }

    /// It accessed memory-mapped I/O.
    fn is_mapped_io(&self) -> bool {
        self.accesses.iter().any(|access| matches!(access.kind, 'r' | 'w'))
    }

    /// True if the results are equal but for a word of memory.
    fn is_equal_without(&self, address: u64) -> bool {
        let mut kvm = self.culprit.kvm.clone();
        outcome::copy_word(self.config, &mut kvm, &self.culprit.soft, address);
        outcome::compare(self.config, &kvm, &self.culprit.soft, self.culprit.undefined.flags).is_empty()
    }

    /// Those of all configurations.
    fn any(&self) -> Option<&'static str> {
        let soft_accesses = &self.culprit.soft.accesses;
        let (first, rest) = self.culprit.kvm.accesses.split_at(soft_accesses.len().min(self.culprit.kvm.accesses.len()));
        if self.is(&INPUT)
            && self.kvm == self.soft
            && matches!(self.kvm, Some(12..=14))
            && first == soft_accesses
            && !rest.is_empty()
            && rest.iter().all(|access| access.kind == 'i')
        {
            return Some("KVM reads a port before INS faults");
        }
        if self.kvm == Some(6) && self.mnemonic == Mnemonic::Movbe {
            return Some("KVM's emulator does not know MOVBE");
        }
        None
    }

    /// Those of ring 3. A host without hardware virtualization emulates the instructions that raise #GP or #UD there, or
    /// that access memory-mapped I/O, and its emulator is not exact.
    fn ring_3(&self) -> Option<&'static str> {
        const SEGMENTS: [u8; 4] = [0x26, 0x2e, 0x36, 0x3e];
        let is_protection = matches!(self.soft, Some(12 | 13)) && self.has_memory();
        if self.kvm == Some(6) && is_protection && self.is_extension() {
            return Some("KVM emulates what raises #GP in ring 3, and does not know the instruction");
        }
        let cr2 = self.culprit.kvm.state.cr2;
        let is_canonical = (cr2 as i64) << 16 >> 16 == cr2 as i64;
        if self.kvm == Some(14) && !is_canonical && is_protection {
            return Some("KVM's emulator checks only the first byte for a canonical address");
        }
        if (self.kvm, self.soft) == (Some(14), Some(14)) && cr2 >> 47 != 0 && self.is_equal_without(KERNEL_STACK_TOP - 48) {
            return Some("KVM's error code shows the page tables of the host for the upper half of the addresses");
        }
        if is_protection && self.culprit.step.has_prefix(&SEGMENTS) {
            return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
        }
        if self.soft == Some(6) && self.mnemonic == Mnemonic::INVALID {
            return Some("KVM emulates what raises #UD in ring 3, and does not check its prefixes");
        }
        if self.soft == Some(17) && self.is(&STRING_IO) {
            return Some("KVM's emulator does not check the alignment of string I/O");
        }
        if self.soft == Some(1) && self.culprit.step.before.rflags & flag::TF != 0 && !self.accesses.is_empty() {
            return Some("KVM does not trap after an instruction that it emulates");
        }
        if self.mnemonic == Mnemonic::Maskmovdqu && matches!(self.kvm, Some(14 | 17)) {
            return Some("MASKMOVDQU may fault for bytes that it does not store");
        }
        if self.is_mapped_io() { self.mapped_io() } else { None }
    }

    /// Those of accesses to memory-mapped I/O.
    fn mapped_io(&self) -> Option<&'static str> {
        Some(match self.mnemonic {
            Mnemonic::Tzcnt | Mnemonic::Lzcnt => "KVM's emulator takes TZCNT and LZCNT for BSF and BSR",
            Mnemonic::Call => "KVM's emulator checks the target of CALL before the stack",
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => "KVM writes the elements of REP INS together",
            Mnemonic::Movsxd => "KVM's emulator reads 4 bytes for MOVSXD",
            Mnemonic::Clflush => "KVM's emulator reads what CLFLUSH flushes",
            _ => return None,
        })
    }

    /// True if the instruction is newer than the 64-bit mode's basic set, which KVM's emulator knows.
    fn is_extension(&self) -> bool {
        use CpuidFeature::{CMOV, CMPXCHG16B, CX8, INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64};
        const KNOWN: [CpuidFeature; 8] = [CMOV, CX8, INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64];
        let features = self.culprit.step.insn.cpuid_features();
        features.contains(&CMPXCHG16B) || features.iter().any(|feature| !KNOWN.contains(feature))
    }

    /// Those of ring 0, which KVM's emulator executes on a host without hardware virtualization.
    fn ring_0(&self) -> Option<&'static str> {
        if self.culprit.kvm.end == End::Shutdown {
            return Some(
                "KVM cannot deliver an exception to memory-mapped I/O, or ends otherwise at a triple fault",
            );
        }
        None
    }
}

/// The vector of the exception in which a program ended.
fn exception(config: Config, outcome: &Outcome) -> Option<u8> {
    layout::vector_of(outcome.state.rip).filter(|vector| *vector != 13 || !outcome::is_end(config, outcome))
}
