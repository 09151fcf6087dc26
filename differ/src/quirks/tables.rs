//! Differences of descriptor tables, page tables and modes in ring 0.

use super::{COMPARE, Case, INPUT, SEGMENTS};
use crate::layout::{self, CODE, MEMORY, TABLES};
use crate::outcome::{End, Outcome};
use crate::program::Config;
use crate::ring_0;
use iced_x86::{Mnemonic, OpKind, Register};
use softcpu::{cr0, efer, flag, seg};

/// IA32_EFER.
const EFER: u64 = 0xc000_0080;

impl Case<'_> {
    /// Differences of tables and modes.
    pub(super) fn tables(&self) -> Option<&'static str> {
        let (insn, before) = (&self.culprit.step.insn, &self.culprit.step.before);
        let at = self.culprit.step.address();
        if at >= MEMORY || layout::is_table(at) && ring_0::is_extended(self.config) {
            return Some(
                "code in a table, or mapped to another address, cannot be cut: the difference may be older",
            );
        }
        let is_swap = self.culprit.step.bytes.windows(4).any(|bytes| bytes == [0xf0, 0x0f, 0x01, 0xf8]);
        if is_swap && self.mnemonic == Mnemonic::INVALID && self.soft == Some(6) {
            return Some("KVM executes SWAPGS with a LOCK prefix");
        }
        let is_register = self.is(&[Mnemonic::Rdmsr, Mnemonic::Wrmsr]) && before.gpr[1] & 0xffff_ffff != EFER;
        if is_register || self.is(&[Mnemonic::Rdtsc, Mnemonic::Rdtscp, Mnemonic::Cpuid, Mnemonic::Rdpmc]) {
            return Some("the result depends on the processor or on the time");
        }
        // Cut off by the end of a page.
        let is_cut = self.mnemonic == Mnemonic::INVALID
            && self.culprit.step.bytes.windows(3).any(|bytes| matches!(bytes, [0x0f, 0x38, 0xf0 | 0xf1]));
        if self.mnemonic == Mnemonic::Movbe || is_cut {
            return Some("KVM's emulator does not know MOVBE");
        }
        if before.is_64()
            && self.culprit.step.has_prefix(&SEGMENTS)
            && self.culprit.step.has_prefix(&[0x64, 0x65])
        {
            return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
        }
        if self.kvm == Some(14) && matches!(self.soft, Some(12..=14)) && self.is(&COMPARE) {
            return Some("KVM's emulator reads the first operand of CMPS first");
        }
        let is_repeated = self.is(&INPUT) && insn.has_rep_prefix() && self.culprit.step.has_prefix(&[0x67]);
        if is_repeated && before.is_64() && self.culprit.kvm.state.cr2 == 1 << 32 {
            return Some(
                "KVM writes the elements of REP INS together, also past the end of 32-bit addresses",
            );
        }
        if self.is_real() && self.mnemonic == Mnemonic::Int && before.idtr.base != 0 {
            return Some("the host executes INT n of real mode with the table at address 0");
        }
        let clears = |kvm: &mut Outcome, soft: &Outcome| kvm.state.gpr[0] |= soft.state.gpr[0] & !0xffff_ffff;
        if self.is(&[Mnemonic::Aad, Mnemonic::Aam]) && self.is_equal_with_flags(clears, flag::ZF | flag::SF) {
            return Some("KVM's emulator writes 32 bits and other flags for AAD and AAM");
        }
        if !before.is_protected() && before.segments[seg::CS].big {
            return Some("KVM takes all code of real mode for code of 16 bits");
        }
        self.modes().or_else(|| self.delivery())
    }

    /// Differences of segments, modes and system registers.
    fn modes(&self) -> Option<&'static str> {
        let (insn, before) = (&self.culprit.step.insn, &self.culprit.step.before);
        let soft = &self.culprit.soft.state;
        let is_refused = matches!(self.culprit.soft.vectors.first(), Some(12 | 13));
        let is_read = self.culprit.kvm.state.cr2 != before.cr2 && soft.cr2 == before.cr2;
        let is_segment = (is_refused || matches!(self.soft, Some(12 | 13)))
            && (self.kvm == Some(14) || self.is_mapped_io || is_read);
        if is_segment && !before.is_64() && insn.op0_kind() != OpKind::Register && self.has_memory() {
            return Some("KVM's emulator reads an operand before it checks that its segment can be written");
        }
        let sets_paging = before.cr0 & cr0::PG == 0 && soft.cr0 & cr0::PG != 0;
        if insn.op0_register() == Register::CR0 && sets_paging && soft.efer & efer::LMA == 0 {
            return Some("the host has no paging but that of long mode");
        }
        if self.is(&[Mnemonic::Iret, Mnemonic::Iretd, Mnemonic::Iretq]) && self.config == Config::Long {
            return self.returned();
        }
        if insn.is_call_far() || insn.is_call_far_indirect() {
            let states = [soft, &self.culprit.kvm.state];
            let changes = states.iter().any(|state| state.code_bits() != before.code_bits());
            if before.is_long() && changes {
                return Some(
                    "KVM's emulator pushes the return address of a far CALL in the mode of the target",
                );
            }
        }
        let tables = [self.culprit.kvm.state.gdtr.base, self.culprit.kvm.state.idtr.base];
        let is_canonical = |base: &u64| (*base as i64) << 16 >> 16 == *base as i64;
        if self.is(&[Mnemonic::Lgdt, Mnemonic::Lidt]) && !tables.iter().all(is_canonical) {
            return Some("KVM allows addresses of 57 bits in GDTR and IDTR");
        }
        if self.kvm.is_some() && self.kvm == self.soft && self.is_equal_with(accessed_bits) {
            return Some(
                "KVM's emulator reads an operand, and sets accessed bits, before it checks that it may write",
            );
        }
        if (self.kvm, self.soft) == (Some(14), Some(14)) && self.is_equal_with(end_of_page) {
            return Some("KVM's emulator writes the first part of a store whose second part faults");
        }
        let is_store = self.mnemonic == Mnemonic::Mov && insn.op0_kind() == OpKind::Memory;
        if is_store && before.cr0 & cr0::PG != 0 && self.is_equal_with(accessed_bits) {
            return Some("a translation that the program has changed is still in the TLB of softcpu");
        }
        if self.culprit.kvm.end == End::Unsupported {
            return Some("KVM cannot emulate the code at the address where a handler begins");
        }
        if self.is_real() && before.segments.iter().any(|segment| segment.unusable) && self.kvm == self.soft {
            return Some("KVM's emulator cannot use a segment register in real mode that was null before");
        }
        if let Some(why) = self.system_segment() {
            return Some(why);
        }
        if self.config == Config::Long && !before.is_64() && self.is_equal_with(lower_halves) {
            return Some(
                "KVM's emulator treats the upper halves of registers, which are undefined outside of 64-bit mode, in another way",
            );
        }
        None
    }

    /// Those of LLDT and LTR.
    fn system_segment(&self) -> Option<&'static str> {
        let (insn, before) = (&self.culprit.step.insn, &self.culprit.step.before);
        if !self.is(&[Mnemonic::Lldt, Mnemonic::Ltr]) || insn.op0_kind() != OpKind::Register {
            return None;
        }
        let selector = before.gpr[insn.op0_register().full_register().number() & 15];
        if (self.kvm, self.soft) == (Some(13), Some(13)) && selector & 4 != 0 {
            return Some("KVM's emulator has no selector in the error code of LTR and LLDT for an LDT");
        }
        if self.mnemonic == Mnemonic::Lldt && selector & 4 != 0 {
            return Some("KVM's emulator loads LDTR from a descriptor in the LDT");
        }
        let raw = self.culprit.soft.word(before.gdtr.base.wrapping_add(selector & 0xfff8));
        let upper = self.culprit.soft.word(before.gdtr.base.wrapping_add(selector & 0xfff8).wrapping_add(8));
        if before.is_64() && (selector & 0xfff8) + 15 > before.gdtr.limit.into() {
            return Some(
                "KVM's emulator does not check that the upper half of a system descriptor is in the table",
            );
        }
        if before.is_64() && upper >> 40 & 0x1f != 0 {
            return Some("KVM's emulator does not check the type in the upper half of a TSS descriptor");
        }
        if before.is_64() && upper & 0xffff_8000 != 0 && upper & 0xffff_8000 != 0xffff_8000 {
            return Some("KVM allows addresses of 57 bits in LDTR and TR");
        }
        let is_16 = raw >> 40 & 0x1f == 1;
        (before.is_long() && is_16).then_some("KVM's emulator knows a 16-bit TSS in long mode")
    }

    /// Those of IRET in long mode.
    fn returned(&self) -> Option<&'static str> {
        let before = &self.culprit.step.before;
        let size = match self.mnemonic {
            Mnemonic::Iretq => 8,
            Mnemonic::Iretd => 4,
            _ => 2,
        };
        let value = |index: u64| {
            let at = before.gpr[4].wrapping_add(index * size);
            let bytes = (0..size).map(|byte| {
                let soft = &self.culprit.soft;
                u64::from(crate::outcome::byte(soft, self.config, at.wrapping_add(byte)).unwrap_or(0))
            });
            bytes.rev().fold(0, |value, byte| value << 8 | byte)
        };
        let is_usual = size == 8 && value(1) == 8 && value(4) == 0x10;
        if is_usual && value(2) & flag::IOPL != 0 {
            return Some("the host does not load IOPL with IRET");
        }
        (!is_usual).then_some("the host emulates IRET in long mode, and does not check its segments")
    }
}

/// Takes the upper halves of the registers of KVM from those of softcpu, where the lower ones are equal.
fn lower_halves(kvm: &mut Outcome, soft: &Outcome) {
    for (kvm, soft) in kvm.state.gpr.iter_mut().zip(soft.state.gpr) {
        if *kvm as u32 == soft as u32 {
            *kvm = soft;
        }
    }
}

/// Takes the accessed bits of the page tables of KVM from softcpu.
fn accessed_bits(kvm: &mut Outcome, soft: &Outcome) {
    let words = (TABLES / 8) as usize..(CODE / 8) as usize;
    for (kvm, soft) in kvm.memory.iter_mut().zip(&soft.memory).skip(words.start).take(words.len()) {
        if *kvm ^ soft == 0x20 {
            *kvm = *soft;
        }
    }
}

/// Takes the end of the first page that differs from softcpu.
fn end_of_page(kvm: &mut Outcome, soft: &Outcome) {
    let mut words = kvm.memory.iter_mut().zip(&soft.memory).enumerate();
    let first = words.find(|(_, (kvm, soft))| kvm != soft).map_or(0, |(index, _)| index);
    for (kvm, soft) in kvm.memory.iter_mut().zip(&soft.memory).skip((first | 511) - 1).take(2) {
        *kvm = *soft;
    }
}
