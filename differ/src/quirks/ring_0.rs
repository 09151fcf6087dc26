//! Differences of ring 0, whose code KVM's emulator executes on a host without hardware virtualization.

use super::delivery::saved_flags;
use super::tables::end_of_page;
use super::{Case, clear_upper};
use crate::outcome::Outcome;
use iced_x86::{Mnemonic, OpKind, Register};
use softcpu::{flag, seg};

/// Instructions that KVM's emulator does not know.
const UNKNOWN: [Mnemonic; 11] = [
    Mnemonic::Int1,
    Mnemonic::Daa,
    Mnemonic::Das,
    Mnemonic::Aaa,
    Mnemonic::Aas,
    Mnemonic::Arpl,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Wait,
];

impl Case<'_> {
    /// Those of ring 0, which KVM's emulator executes on a host without hardware virtualization.
    pub(super) fn ring_0(&self) -> Option<&'static str> {
        if let Some(why) = self.shutdown() {
            return Some(why);
        }
        if self.is(&[Mnemonic::Aad, Mnemonic::Aam]) && self.is_equal_but_flags(flag::ZF | flag::SF) {
            return Some("KVM's emulator sets ZF and SF after AAD and AAM for all of AX");
        }
        if self.is(&[Mnemonic::Ltr, Mnemonic::Lldt]) && self.is_error_code() {
            return Some("KVM's emulator has no selector in the error code of LTR and LLDT for an LDT");
        }
        if let Some(why) = self.tables() {
            return Some(why);
        }
        if self.mnemonic == Mnemonic::Enter && matches!(self.soft, Some(12..=14)) && self.kvm != self.soft {
            return Some("KVM's emulator does not check that the stack at the end of ENTER can be written");
        }
        if self.mnemonic == Mnemonic::Enter && !self.has_stack_size() {
            return Some("KVM's emulator pushes the size of the stack for ENTER");
        }
        self.system().or_else(|| self.integer()).or_else(|| self.stores())
    }

    /// Those of integer instructions.
    fn integer(&self) -> Option<&'static str> {
        let insn = &self.step.insn;
        let has_read = self.is_mapped_io || matches!(self.kvm, Some(12..=14));
        if self.soft == Some(6) && has_read && self.mnemonic == Mnemonic::INVALID {
            return Some("KVM's emulator reads the operand before it raises #UD");
        }
        let has_trap = self.step.before.rflags & flag::TF != 0;
        if has_trap && self.mnemonic == Mnemonic::Swapgs && (self.kvm, self.soft) == (Some(1), Some(1)) {
            return Some("the host traps one instruction too late after SWAPGS");
        }
        let before = &self.step.before;
        let is_based = !before.is_64() && before.segments[seg::CS].base != 0;
        let is_unknown =
            self.is(&UNKNOWN) || self.kvm == Some(14) && self.culprit.kvm.state.cr2 == before.rip;
        if is_based && is_unknown && matches!(self.kvm, Some(13 | 14)) {
            return Some("the host looks for an instruction that it cannot emulate at its offset in CS");
        }
        let is_wrapped = !before.is_64() && before.rip.wrapping_add(insn.len() as u64) > 1 << 32;
        if is_wrapped && self.kvm == Some(13) {
            return Some(
                "a processor may refuse an instruction that goes past the end of 4 GiB (SDM 3, 5.3)",
            );
        }
        if self.mnemonic == Mnemonic::Movsxd && insn.op0_register().is_gpr16() && self.kvm == Some(14) {
            return Some("KVM's emulator reads 4 bytes for MOVSXD");
        }
        if self.is(&[Mnemonic::Reservednop, Mnemonic::Cldemote]) && self.step.has_prefix(&[0x67]) {
            return Some("KVM's emulator takes reserved NOPs with 16-bit addresses for shorter ones");
        }
        let may_leave = self.is(&[Mnemonic::Cmpxchg, Mnemonic::Bsf, Mnemonic::Bsr]);
        if may_leave && insn.op0_register().is_gpr32() && self.is_equal_with(clear_upper(insn)) {
            return Some(
                "KVM's emulator clears the upper half of a destination that CMPXCHG, BSF or BSR leaves",
            );
        }
        if self.mnemonic == Mnemonic::Call && (self.kvm, self.soft) == (Some(13), Some(13)) {
            return Some("KVM's emulator checks the target of CALL before the stack");
        }
        None
    }

    /// Those of the stack of real mode, of repetitions and of stores.
    fn stores(&self) -> Option<&'static str> {
        if self.is_upper_stack_pointer() {
            return Some("KVM clears the upper half of ESP when it delivers an exception in real mode");
        }
        if let Some(why) = self.repetition() {
            return Some(why);
        }
        if self.culprit.is_rewritten || self.writes_itself() {
            return Some("KVM's emulator goes on with an instruction that has overwritten itself");
        }
        if (self.kvm, self.soft) == (Some(14), Some(14)) && self.is_partial_store() {
            return Some("KVM's emulator writes the first part of a store whose second part faults");
        }
        None
    }

    /// Those of interrupts, descriptor tables and control registers.
    fn system(&self) -> Option<&'static str> {
        let insn = &self.step.insn;
        // The processor refuses what KVM executes.
        let is_refused = self.soft == Some(13) && self.kvm != Some(13);
        let is_selector =
            self.is(&[Mnemonic::Sldt, Mnemonic::Str]) || insn.op1_register().is_segment_register();
        if is_selector && insn.op0_kind() == OpKind::Memory {
            return Some("KVM's emulator stores more than 2 bytes of a selector");
        }
        if self.mnemonic == Mnemonic::Int && !self.is_real() {
            return Some("the host takes INT n of ring 0 for a call, or refuses it");
        }
        let is_software = self.is(&[Mnemonic::Int, Mnemonic::Int3, Mnemonic::Into]);
        if is_software && self.is_real() && self.step.has_prefix(&[0x66]) {
            return Some("KVM's emulator pushes 32 bits for INT with an operand-size prefix");
        }
        let has_trap = self.step.before.rflags & flag::TF != 0;
        if has_trap && self.kvm == Some(1) && self.is(&[Mnemonic::Int, Mnemonic::Int3, Mnemonic::Into]) {
            return Some("KVM's emulator traps after INT, which clears TF");
        }
        if self.is(&[Mnemonic::Sgdt, Mnemonic::Sidt]) && !self.step.before.is_64() {
            return Some("KVM's emulator stores 24 bits of a base address with an operand size of 16");
        }
        let limit = self.culprit.soft.state.idtr.limit;
        let is_past = |vector: &u8| u32::from(*vector) * 4 + 3 > limit.into();
        if self.is_real() && self.is_elsewhere() && self.vectors().iter().any(is_past) {
            return Some("KVM ignores the limit of the IDT in real mode");
        }
        if matches!(insn.op0_register(), Register::CR0 | Register::CR4) && is_refused {
            return Some("KVM allows other bits of CR0 and CR4 than softcpu has");
        }
        let value = self.step.before.gpr[insn.op1_register().full_register().number() & 15];
        if insn.op0_register() == Register::CR3 && is_refused && value >> 46 != 0 {
            return Some("physical addresses of the host have more bits than those of softcpu");
        }
        if self.is(&[Mnemonic::Lgdt, Mnemonic::Lidt]) && is_refused {
            return Some("KVM allows addresses of 57 bits in GDTR and IDTR");
        }
        if matches!(insn.op0_register(), Register::DR4 | Register::DR5) && is_refused {
            return Some("KVM's emulator does not check the upper half of DR4 and DR5");
        }
        None
    }

    /// Those of repetitions.
    pub(super) fn repetition(&self) -> Option<&'static str> {
        let insn = &self.step.insn;
        if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            return None;
        }
        let has_trap = self.step.before.rflags & flag::TF != 0;
        if has_trap && self.soft == Some(1) {
            return Some("KVM's emulator does not trap after each element of a repetition");
        }
        let is_fault = self.kvm == self.soft && matches!(self.kvm, Some(12..=14 | 17));
        let flags = |kvm: &mut Outcome, soft: &Outcome| saved_flags(kvm, soft, flag::STATUS);
        if is_fault && self.is_equal_with_flags(flags, flag::STATUS) {
            return Some("KVM's emulator leaves the flags of the last comparison at a fault");
        }
        let upper = |kvm: &mut Outcome, soft: &Outcome| {
            for (kvm, soft) in kvm.state.gpr.iter_mut().zip(soft.state.gpr) {
                *kvm = if *kvm & 0xffff_ffff == soft { soft } else { *kvm };
            }
        };
        // It may also write the first part of an element.
        let upper_and_part = |kvm: &mut Outcome, soft: &Outcome| {
            upper(kvm, soft);
            end_of_page(kvm, soft);
        };
        let is_short = self.config.is_64() && self.step.has_prefix(&[0x67]);
        let is_upper = self.is_equal_with_flags(upper, flag::STATUS)
            || self.soft == Some(14) && self.is_equal_with_flags(upper_and_part, flag::STATUS);
        if is_short && is_fault && is_upper {
            return Some(
                "KVM's emulator leaves the upper halves of the registers of a repetition at a fault",
            );
        }
        None
    }
}
