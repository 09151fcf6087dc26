//! Differences that are due to KVM or to the host, and not to the processor.
//!
//! Each is tied to the first instruction after which the results differ, so that it hides nothing before it.

mod amd;
mod delivery;
mod ring_0;
mod tables;

use crate::culprit::{Culprit, Step};
use crate::layout::{self, LAST_PAGE, PAGE};
use crate::outcome::{self, Access, End, Outcome};
use crate::program::Config;
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};
use softcpu::{Segment, flag, seg};

/// The reason why two results that differ after an instruction need not be equal.
pub fn allowed(config: Config, culprit: &Culprit) -> Option<&'static str> {
    let mut steps = std::iter::once(&culprit.step).chain(culprit.earlier.iter().rev());
    steps.find_map(|step| {
        let case = Case::new(config, culprit, step);
        case.any().or_else(|| if config == Config::User { case.ring_3() } else { case.ring_0() })
    })
}

/// The name of a difference: the instruction, and the exceptions or the ends on both sides.
pub fn name(config: Config, culprit: &Culprit) -> String {
    let case = Case::new(config, culprit, &culprit.step);
    let end = |vector: Option<u8>, outcome: &Outcome| match vector {
        Some(vector) => format!("exception {vector}"),
        None => format!("{:?}", outcome.end).to_lowercase(),
    };
    let (kvm, soft) = (end(case.kvm, &culprit.kvm), end(case.soft, &culprit.soft));
    format!("{} {:?} ({kvm}, soft {soft})", config.name(), culprit.step.insn.code()).to_lowercase()
}

/// An instruction, and what it did on both sides.
struct Case<'a> {
    config: Config,
    culprit: &'a Culprit,
    step: &'a Step,
    mnemonic: Mnemonic,
    /// The exceptions.
    kvm: Option<u8>,
    soft: Option<u8>,
    /// KVM made accesses to ports or to memory-mapped I/O.
    has_accesses: bool,
    /// One of them accessed memory-mapped I/O.
    is_mapped_io: bool,
}

/// The prefixes that 64-bit mode ignores.
const SEGMENTS: [u8; 4] = [0x26, 0x2e, 0x36, 0x3e];
const INPUT: [Mnemonic; 3] = [Mnemonic::Insb, Mnemonic::Insw, Mnemonic::Insd];
const STRING_IO: [Mnemonic; 6] =
    [Mnemonic::Insb, Mnemonic::Insw, Mnemonic::Insd, Mnemonic::Outsb, Mnemonic::Outsw, Mnemonic::Outsd];

const COMPARE: [Mnemonic; 4] = [Mnemonic::Cmpsb, Mnemonic::Cmpsw, Mnemonic::Cmpsd, Mnemonic::Cmpsq];
const PUSH_FLAGS: [Mnemonic; 2] = [Mnemonic::Pushf, Mnemonic::Pushfq];

impl<'a> Case<'a> {
    fn new(config: Config, culprit: &'a Culprit, step: &'a Step) -> Self {
        let first = step.accesses;
        let of = |outcome: &'a Outcome| outcome.accesses.get(first..).unwrap_or_default();
        let accesses: (&[Access], &[Access]) = (of(&culprit.kvm), of(&culprit.soft));
        // softcpu names the exceptions that it delivers, of which the last one counts, or the first one of a triple fault.
        // The handler names the others, if the gates are the usual ones.
        let at_end = (exception(config, &culprit.kvm), exception(config, &culprit.soft));
        let is_dead = [&culprit.kvm, &culprit.soft].map(|outcome| outcome.end == End::Shutdown);
        let delivered = if is_dead[1] { step.vectors.first() } else { step.vectors.last() };
        let soft = delivered.copied().or(at_end.1);
        let is_same_place = culprit.kvm.state.rip == culprit.soft.state.rip;
        let is_same =
            is_dead[0] == is_dead[1] && at_end.0 == at_end.1 && (at_end.0.is_some() || is_same_place);
        Self {
            config,
            culprit,
            step,
            mnemonic: step.insn.mnemonic(),
            kvm: if is_same { soft } else { at_end.0 },
            soft,
            has_accesses: !accesses.0.is_empty(),
            is_mapped_io: accesses.0.iter().chain(accesses.1).any(|access| matches!(access.kind, 'r' | 'w')),
        }
    }

    /// The vectors of the exceptions that softcpu delivered at the instruction, also if the handler went on.
    fn vectors(&self) -> &[u8] {
        let is_last = std::ptr::eq(self.step, &self.culprit.step);
        if self.step.vectors.is_empty() && is_last { &self.culprit.soft.vectors } else { &self.step.vectors }
    }

    /// KVM ended in another way, at another instruction, or with another stack.
    fn is_elsewhere(&self) -> bool {
        let (kvm, soft) = (&self.culprit.kvm, &self.culprit.soft);
        kvm.end != soft.end || kvm.state.rip != soft.state.rip || kvm.state.gpr[4] != soft.state.gpr[4]
    }

    fn is(&self, list: &[Mnemonic]) -> bool {
        list.contains(&self.mnemonic)
    }

    /// The instruction was executed in real mode.
    fn is_real(&self) -> bool {
        !self.step.before.is_protected()
    }

    /// An operand is memory.
    fn has_memory(&self) -> bool {
        let insn = &self.step.insn;
        let is_memory = |kind| {
            !matches!(
                kind,
                OpKind::Register
                    | OpKind::Immediate8
                    | OpKind::Immediate8_2nd
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
        };
        insn.op_kinds().any(is_memory)
            || insn.stack_pointer_increment() != 0
            || self.is(&[Mnemonic::Enter, Mnemonic::Leave])
    }

    /// True if the results are equal after a change of that of KVM.
    fn is_equal_with(&self, change: impl Fn(&mut Outcome, &Outcome)) -> bool {
        self.is_equal_with_flags(change, 0)
    }

    /// The same. Some flags may differ.
    fn is_equal_with_flags(&self, change: impl Fn(&mut Outcome, &Outcome), flags: u64) -> bool {
        let mut kvm = self.culprit.kvm.clone();
        change(&mut kvm, &self.culprit.soft);
        let ignored = self.culprit.undefined.flags | flags;
        outcome::compare(self.config, &kvm, &self.culprit.soft, ignored).is_empty()
    }

    /// True if only the error code is different: 16 bits in one place.
    fn is_error_code(&self) -> bool {
        self.kvm == self.soft
            && self.is_equal_with(|kvm, soft| {
                let mut words = kvm.memory.iter_mut().zip(&soft.memory).skip_while(|(kvm, soft)| kvm == soft);
                // A stack may have any address, so two words may share the two bytes.
                let (Some(low), Some(high)) = (words.next(), words.next()) else { return };
                let wide = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
                let differs = wide(*low.0, *high.0) ^ wide(*low.1, *high.1);
                if (0..8).any(|byte| differs & !(0xffff << (byte * 8)) == 0) {
                    (*low.0, *high.0) = (*low.1, *high.1);
                }
            })
    }

    /// Those of all configurations.
    fn any(&self) -> Option<&'static str> {
        let soft = &self.culprit.soft.accesses;
        let kvm = &self.culprit.kvm.accesses;
        let (first, rest) = kvm.split_at(soft.len().min(kvm.len()));
        if self.is(&INPUT)
            && self.kvm == self.soft
            && matches!(self.kvm, Some(12..=14))
            && first == soft
            && !rest.is_empty()
            && rest.iter().all(|access| access.kind == 'i')
        {
            return Some("KVM reads a port before INS faults");
        }
        if self.is_mapped_io
            && self.kvm == self.soft
            && matches!(self.kvm, Some(12..=14))
            && first == soft
            && rest.iter().all(|access| access.kind == 'r')
        {
            return Some("KVM's emulator reads memory-mapped I/O before it checks that it may write there");
        }
        if self.soft == Some(1) && self.step.before.rflags & flag::TF != 0 && self.has_accesses {
            return Some("KVM does not trap after an instruction that it emulates");
        }
        if self.kvm == Some(6) && self.mnemonic == Mnemonic::Movbe {
            return Some("KVM's emulator does not know MOVBE");
        }
        if self.is(&[Mnemonic::In, Mnemonic::Out]) && self.step.has_prefix(&[0xf2, 0xf3]) {
            return Some("KVM's emulator repeats IN and OUT with a prefix that they ignore");
        }
        if self.is_mapped_io { self.mapped_io() } else { self.not_canonical() }
    }

    /// Those of addresses that are not canonical.
    fn not_canonical(&self) -> Option<&'static str> {
        if !self.config.is_64() || !matches!(self.soft, Some(12 | 13)) || !self.has_memory() {
            return None;
        }
        let cr2 = self.culprit.kvm.state.cr2;
        let is_page_fault = self.kvm == Some(14) || cr2 != self.step.before.cr2;
        if is_page_fault && (cr2 as i64) << 16 >> 16 != cr2 as i64 {
            return Some("KVM's emulator checks only the first byte for a canonical address");
        }
        if self.step.has_prefix(&SEGMENTS) {
            return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
        }
        None
    }

    /// Those of ring 3. A host without hardware virtualization emulates the instructions that raise #GP or #UD there, or
    /// that access memory-mapped I/O, and its emulator is not exact.
    fn ring_3(&self) -> Option<&'static str> {
        let is_protection = matches!(self.soft, Some(12 | 13)) && self.has_memory();
        if self.kvm == Some(6) && is_protection && self.is_extension() {
            return Some("KVM emulates what raises #GP in ring 3, and does not know the instruction");
        }
        let cr2 = self.culprit.kvm.state.cr2;
        if self.kvm == Some(14) && cr2 >> 47 != 0 && self.is_error_code() {
            return Some(
                "KVM's error code shows the page tables of the host for the upper half of the addresses",
            );
        }
        if self.soft == Some(6) && self.mnemonic == Mnemonic::INVALID {
            return Some("KVM emulates what raises #UD in ring 3, and does not check its prefixes");
        }
        if (self.kvm, self.soft, self.mnemonic) == (Some(6), Some(13), Mnemonic::Int) {
            return Some("the host raises #UD for INT n that ring 3 may not use");
        }
        if self.soft == Some(17) && self.is(&STRING_IO) {
            return Some("KVM's emulator does not check the alignment of string I/O");
        }
        if self.is(&[Mnemonic::Iret, Mnemonic::Iretd, Mnemonic::Iretq]) {
            return Some("IRET sees the tables of the host");
        }
        if (self.is(&STRING_IO) || self.is_mapped_io) && self.step.has_prefix(&SEGMENTS) {
            return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
        }
        if let Some(why) = self.host_of_ring_3() {
            return Some(why);
        }
        if self.culprit.is_rewritten {
            return Some("a repetition has overwritten itself: the instruction that differs cannot be found");
        }
        if let Some(why) = self.amd() {
            return Some(why);
        }
        if self.is(&STRING_IO) {
            return self.repetition();
        }
        if self.mnemonic == Mnemonic::Maskmovdqu && matches!(self.kvm, Some(14 | 17)) {
            return Some("MASKMOVDQU may fault for bytes that it does not store");
        }
        None
    }

    /// Those of a host that runs ring 3 without hardware virtualization, and emulates what its own processor refuses.
    fn host_of_ring_3(&self) -> Option<&'static str> {
        let step = self.step;
        let pointer = step.before.gpr[4];
        let is_canonical = (pointer as i64) << 16 >> 16 == pointer as i64;
        let was_emulated = self.has_memory() || step.accesses > 0;
        if self.kvm == Some(6) && was_emulated && self.is_extension() && !is_canonical {
            return Some("the host emulates an access, and what follows it, if RSP is not canonical");
        }
        if (self.kvm, self.soft) == (Some(6), Some(13)) && step.before.rip.wrapping_add(15) >> 47 == 1 {
            return Some("KVM emulates an instruction that goes past the canonical addresses");
        }
        if (self.kvm, self.soft) == (Some(14), Some(13)) && self.is(&COMPARE) {
            return Some("KVM emulates what raises #GP in ring 3, and reads the first operand of CMPS first");
        }
        if self.is(&PUSH_FLAGS) && step.before.rflags & flag::NT != 0 && step.accesses > 0 {
            let at = step.before.gpr[4].wrapping_sub(8);
            if self.is_equal_with(|kvm, soft| outcome::copy(self.config, kvm, soft, at, 8)) {
                return Some("the host clears NT when ring 3 goes on after an exit");
            }
        }
        None
    }

    /// Those of accesses to memory-mapped I/O, which KVM's emulator makes on all hosts.
    fn mapped_io(&self) -> Option<&'static str> {
        use Mnemonic::{Call, Popa, Popad, Pusha, Pushad};
        use Mnemonic::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Enter, Int, Int3, Into, Jmp, Lds, Les, Lfs, Lgs, Lss};
        let is_far = self.step.insn.is_call_far_indirect() || self.step.insn.is_jmp_far_indirect();
        let is_string = self.step.insn.is_string_instruction();
        Some(match self.mnemonic {
            Mnemonic::Tzcnt | Mnemonic::Lzcnt => "KVM's emulator takes TZCNT and LZCNT for BSF and BSR",
            Lds | Les | Lfs | Lgs | Lss => "KVM's emulator reads a far pointer in one access",
            Jmp | Call if is_far => "KVM's emulator reads a far pointer in one access",
            Call if self.step.insn.is_call_far() => {
                "KVM's emulator makes only the last of several writes to memory-mapped I/O"
            }
            Pusha | Pushad | Enter | Int | Int3 | Into => {
                "KVM's emulator makes only the last of several writes to memory-mapped I/O"
            }
            Mnemonic::Retf if self.config != Config::User => {
                "KVM's emulator begins RETF again behind each value from memory-mapped I/O"
            }
            Popa | Popad => "KVM's emulator begins POPA again behind each value from memory-mapped I/O",
            Cmpsb | Cmpsw | Cmpsd | Cmpsq if is_string => {
                "KVM's emulator reads the first operand of CMPS first"
            }
            Call => "KVM's emulator checks the target of CALL before the stack",
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => "KVM writes the elements of REP INS together",
            Mnemonic::Movsxd => "KVM's emulator reads 4 bytes for MOVSXD",
            Mnemonic::Clflush => "KVM's emulator reads what CLFLUSH flushes",
            _ => return None,
        })
    }

    /// True if KVM's emulator does not know the instruction.
    fn is_extension(&self) -> bool {
        use CpuidFeature::{CMOV, CX8, INTEL186, INTEL286, INTEL386, INTEL486, INTEL8086, X64};
        const KNOWN: [CpuidFeature; 8] = [CMOV, CX8, INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64];
        self.step.insn.cpuid_features().iter().any(|feature| !KNOWN.contains(feature))
    }

    fn is_equal_but_flags(&self, flags: u64) -> bool {
        let undefined = self.culprit.undefined.flags | flags;
        outcome::compare(self.config, &self.culprit.kvm, &self.culprit.soft, undefined).is_empty()
    }

    /// The operand size is that of the stack.
    fn has_stack_size(&self) -> bool {
        let before = &self.step.before;
        let stack = match (before.is_64(), before.segments[seg::SS].big) {
            (true, _) => Code::Enterq_imm16_imm8,
            (false, true) => Code::Enterd_imm16_imm8,
            (false, false) => Code::Enterw_imm16_imm8,
        };
        self.step.insn.code() == stack
    }

    fn is_upper_stack_pointer(&self) -> bool {
        self.is_real()
            && (self.kvm.is_some() || self.config != Config::Real)
            && self.culprit.kvm.state.gpr[4] >> 16 == 0
            && self.is_equal_with(|kvm, soft| kvm.state.gpr[4] |= soft.state.gpr[4] & !0xffff)
    }

    /// A repetition changed its own bytes.
    fn writes_itself(&self) -> bool {
        let step = self.step;
        let byte = |at: u64| outcome::byte(&self.culprit.soft, self.config, step.address() + at);
        let bytes = step.bytes.iter().take(step.insn.len());
        step.insn.is_string_instruction()
            && bytes.enumerate().any(|(at, old)| byte(at as u64).is_some_and(|new| new != *old))
    }

    /// Only bytes before the end of the page before CR2 are different.
    fn is_partial_store(&self) -> bool {
        // The addresses before these two are mapped to the last page.
        let end = match self.culprit.soft.state.cr2 {
            0x1_0000_0000 | 0x8000_0000_0000 => LAST_PAGE + PAGE,
            end => end,
        };
        end % PAGE == 0
            && self.is_equal_with(|kvm, soft| outcome::copy(self.config, kvm, soft, end.wrapping_sub(9), 9))
    }
}

/// Clears the upper half of operand 0, as KVM does, where the processor leaves it.
fn clear_upper(insn: &Instruction) -> impl Fn(&mut Outcome, &Outcome) {
    let register = insn.op0_register().full_register().number();
    move |kvm, soft| kvm.state.gpr[register & 15] |= soft.state.gpr[register & 15] & !0xffff_ffff
}

/// The vector of the exception in which a program ended.
fn exception(config: Config, outcome: &Outcome) -> Option<u8> {
    layout::vector(&outcome.state).filter(|vector| *vector != 13 || !outcome::is_end(config, outcome))
}

/// The instruction, the registers before it, and the exceptions at it.
pub fn describe(culprit: &Culprit) -> Vec<String> {
    let (step, state) = (&culprit.step, &culprit.step.before);
    let kind = |segment: &Segment| {
        let bits = [segment.code_or_data, segment.present, segment.long, segment.big, segment.pages];
        let bits: String =
            bits.iter().zip("spldg".chars()).filter(|(set, _)| **set).map(|(_, c)| c).collect();
        format!(
            "{:x}:{:x}+{:x} type {:x} dpl {} {bits}",
            segment.selector, segment.base, segment.limit, segment.kind, segment.dpl
        )
    };
    let segments: Vec<_> = state.segments.iter().map(kind).collect();
    vec![
        format!("{:#x}: {}", state.rip, step.insn),
        format!("rflags {:x} gpr {:x?}", state.rflags, state.gpr),
        segments.join(", "),
        format!(
            "gdtr {:x}+{:x} idtr {:x}+{:x}",
            state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit
        ),
        format!("cr0 {:x} cr3 {:x} cr4 {:x} efer {:x}", state.cr0, state.cr3, state.cr4, state.efer),
        format!("exceptions {:?}, at the end {:?}", step.vectors, culprit.soft.vectors),
    ]
}
