//! Differences of descriptor tables, page tables and modes in ring 0.

use super::delivery::saved_flags;
use super::{COMPARE, Case, INPUT, SEGMENTS};
use crate::layout::{CODE, GDT, IDT, TABLES};
use crate::outcome::{self, End, Outcome};
use crate::program::Config;
use iced_x86::{Mnemonic, OpKind, Register};
use softcpu::{cr0, efer, flag, seg};

/// IA32_EFER.
const EFER: u64 = 0xc000_0080;

/// The flags that are always 0.
const RESERVED_FLAGS: u64 = !0x3f_7fd7;
/// The address in an entry of a page table, and the bits of an entry that is present and maps a large page.
const FRAME: u64 = 0xf_ffff_ffff_f000;
const LARGE: u64 = 0x81;

impl Case<'_> {
    /// Differences of tables and modes.
    pub(super) fn tables(&self) -> Option<&'static str> {
        let (insn, before) = (&self.step.insn, &self.step.before);
        let is_swap = self.step.bytes.windows(4).any(|bytes| bytes == [0xf0, 0x0f, 0x01, 0xf8]);
        if is_swap && self.mnemonic == Mnemonic::INVALID && self.soft == Some(6) {
            return Some("KVM executes SWAPGS with a LOCK prefix");
        }
        let is_register = self.is(&[Mnemonic::Rdmsr, Mnemonic::Wrmsr]) && before.gpr[1] & 0xffff_ffff != EFER;
        if is_register || self.is(&[Mnemonic::Rdtsc, Mnemonic::Rdtscp, Mnemonic::Cpuid, Mnemonic::Rdpmc]) {
            return Some("the result depends on the processor or on the time");
        }
        // Cut off by the end of a page.
        let is_cut = self.mnemonic == Mnemonic::INVALID
            && self.step.bytes.windows(3).any(|bytes| matches!(bytes, [0x0f, 0x38, 0xf0 | 0xf1]));
        if (self.mnemonic == Mnemonic::Movbe || is_cut) && self.is_elsewhere() {
            return Some("KVM's emulator does not know MOVBE");
        }
        if before.is_64() && self.step.has_prefix(&SEGMENTS) && self.step.has_prefix(&[0x64, 0x65]) {
            return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
        }
        if [self.kvm, self.soft].iter().all(|vector| matches!(vector, Some(12..=14))) && self.is(&COMPARE) {
            return Some("KVM's emulator reads the first operand of CMPS first");
        }
        let is_repeated = self.is(&INPUT) && insn.has_rep_prefix() && self.step.has_prefix(&[0x67]);
        if is_repeated && before.is_64() && self.culprit.kvm.state.cr2 == 1 << 32 {
            return Some(
                "KVM writes the elements of REP INS together, also past the end of 32-bit addresses",
            );
        }
        let mask = match insn.op0_kind() {
            OpKind::MemoryESDI => 0xffff,
            OpKind::MemoryESEDI => 0xffff_ffff,
            _ => u64::MAX,
        };
        let bytes = (before.gpr[1] & mask).saturating_mul(insn.memory_size().size() as u64);
        let is_past = (before.gpr[7] & mask).saturating_add(bytes) > mask && mask != u64::MAX;
        if self.is(&INPUT) && insn.has_rep_prefix() && is_past {
            return Some("KVM writes the elements of REP INS together, also past the end of the addresses");
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
        if let Some(why) = self.read_only() {
            return Some(why);
        }
        self.modes().or_else(|| self.delivery())
    }

    /// Real mode has no types of segments.
    fn read_only(&self) -> Option<&'static str> {
        let (insn, before) = (&self.step.insn, &self.step.before);
        let segment = |register: Register| match register {
            Register::ES => Some(seg::ES),
            Register::CS => Some(seg::CS),
            Register::SS => Some(seg::SS),
            Register::DS => Some(seg::DS),
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        let is_string = insn.is_string_instruction();
        let is_stack = insn.stack_pointer_increment() != 0;
        let mut used =
            [segment(insn.memory_segment()), is_string.then_some(seg::ES), is_stack.then_some(seg::SS)];
        let is_read_only = used.iter_mut().flatten().any(|index| before.segments[*index].kind & 2 == 0);
        (self.is_real() && self.has_memory() && is_read_only && self.is_elsewhere())
            .then_some("KVM's emulator checks in real mode, too, that a segment can be written")
    }

    /// Differences of segments, modes and system registers.
    fn modes(&self) -> Option<&'static str> {
        let (insn, before) = (&self.step.insn, &self.step.before);
        let soft = &self.culprit.soft.state;
        let is_refused = matches!(self.culprit.soft.vectors.first(), Some(12 | 13));
        let is_read = self.culprit.kvm.state.cr2 != before.cr2 && soft.cr2 == before.cr2;
        let is_segment = (is_refused || matches!(self.soft, Some(12 | 13)))
            && (self.kvm == Some(14) || self.is_mapped_io || is_read);
        if is_segment && !before.is_64() && insn.op0_kind() != OpKind::Register && self.has_memory() {
            return Some("KVM's emulator reads an operand before it checks that its segment can be written");
        }
        let mut addresses = self.step.operands().chain([self.culprit.kvm.state.cr2]);
        if before.is_long() && self.is_elsewhere() && addresses.any(|address| self.is_huge(address)) {
            return Some("the host has no pages of 1 GiB");
        }
        let value = before.gpr[insn.op1_register().full_register().number() & 15];
        let sets_paging = before.cr0 & cr0::PG == 0 && value & cr0::PG != 0 && before.efer & efer::LME == 0;
        if self.mnemonic == Mnemonic::Mov && insn.op0_register() == Register::CR0 && sets_paging {
            return Some("the host has no paging but that of long mode");
        }
        if self.is(&[Mnemonic::Iret, Mnemonic::Iretd, Mnemonic::Iretq]) && self.config == Config::Long {
            return self.returned();
        }
        if insn.is_call_far() || insn.is_call_far_indirect() {
            let states = [soft, &self.culprit.kvm.state];
            let changes = states.iter().any(|state| state.code_bits() != before.code_bits());
            // An exception behind it hides the mode of the target.
            let ss = &before.segments[seg::SS];
            let is_flat = ss.present && ss.big && ss.limit == u32::MAX;
            let is_hidden = !self.culprit.soft.vectors.is_empty() && !is_flat;
            if before.is_long() && (changes || is_hidden) {
                return Some(
                    "KVM's emulator pushes the return address of a far CALL in the mode of the target",
                );
            }
        }
        let is_far = insn.is_call_far() || insn.is_jmp_far() || self.mnemonic == Mnemonic::Retf;
        let is_far = is_far || insn.is_call_far_indirect() || insn.is_jmp_far_indirect();
        if is_far && self.vectors() == [13] && self.is_equal_with(accessed_segments) {
            return Some("KVM's emulator sets the accessed bit of a code segment before it checks its limit");
        }
        self.operands().or_else(|| self.system_segment()).or_else(|| self.undefined_halves())
    }

    /// Upper halves of registers that no program can see.
    fn undefined_halves(&self) -> Option<&'static str> {
        let is_outside = self.config == Config::Long && !self.step.before.is_64();
        (is_outside && self.is_equal_with(lower_halves)).then_some(
            "KVM's emulator treats the upper halves of registers, which are undefined outside of 64-bit mode, in another way",
        )
    }

    /// Those of operands in memory, and of descriptor tables.
    fn operands(&self) -> Option<&'static str> {
        let (insn, before) = (&self.step.insn, &self.step.before);
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
        None
    }

    /// A page of 1 GiB is at an address.
    fn is_huge(&self, address: u64) -> bool {
        entries(&self.culprit.soft.memory, self.step.before.cr3, address)
            .get(1)
            .is_some_and(|entry| entry & LARGE == LARGE)
    }

    /// Those of LLDT and LTR.
    fn system_segment(&self) -> Option<&'static str> {
        let (insn, before) = (&self.step.insn, &self.step.before);
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
        let before = &self.step.before;
        let loads_flags = |kvm: &mut Outcome, soft: &Outcome| {
            let ignored = flag::IOPL | RESERVED_FLAGS;
            kvm.state.rflags = kvm.state.rflags & !ignored | soft.state.rflags & ignored;
            for index in [seg::CS, seg::SS] {
                kvm.state.segments[index].kind |= soft.state.segments[index].kind & 1;
            }
            accessed_segments(kvm, soft);
            saved_flags(kvm, soft, ignored & 0xffff);
        };
        if self.is_equal_with(loads_flags) {
            return Some(
                "the host does not load IOPL with IRET, but reserved flags, and sets no accessed bits of segments",
            );
        }
        if matches!(self.soft, Some(8 | 10..=14)) {
            return Some(
                "the host does not check the segments of IRET in long mode, or has other error codes",
            );
        }
        let size = match self.mnemonic {
            Mnemonic::Iretq => 8,
            Mnemonic::Iretd => 4,
            _ => 2,
        };
        // The selectors of CS and SS.
        let [code, stack] = [1, 4].map(|index| {
            let at = before.gpr[4].wrapping_add(index * size);
            let byte = |at| {
                let at = translate(&self.culprit.soft.memory, before.cr3, at).unwrap_or(at);
                u64::from(outcome::byte(&self.culprit.soft, self.config, at).unwrap_or(0))
            };
            byte(at) | byte(at.wrapping_add(1)) << 8
        });
        if self.is_elsewhere() && ((code | stack) & 4 != 0 || !before.is_64()) {
            return Some("the host refuses IRET to segments of the LDT, and in compatibility mode");
        }
        let raw = self.culprit.soft.word(before.gdtr.base.wrapping_add(stack & 0xfff8));
        let pointers = [&self.culprit.kvm, &self.culprit.soft].map(|outcome| outcome.state.gpr[4]);
        (before.is_64() && raw >> 54 & 1 == 0 && pointers[0] != pointers[1])
            .then_some("the host loads all of RSP for a stack of 16 bits, where IRET loads 16 bits of it")
    }
}

/// The physical address of an address in long mode, if it is mapped.
pub fn translate(memory: &[u64], cr3: u64, address: u64) -> Option<u64> {
    let entries = entries(memory, cr3, address);
    let last =
        entries.last().filter(|last| **last & 1 != 0 && (entries.len() == 4 || **last & LARGE == LARGE))?;
    let mask = (1 << (12 + 9 * (4 - entries.len()))) - 1;
    Some(last & FRAME & !mask | address & mask)
}

/// The entries of page tables that translate an address in long mode, down to the first that maps a page or is not present.
fn entries(memory: &[u64], cr3: u64, address: u64) -> Vec<u64> {
    let (mut table, mut entries) = (cr3, Vec::new());
    for level in (0..4).rev() {
        let index = (table & FRAME) / 8 + (address >> (12 + 9 * level) & 511);
        table = memory.get(index as usize).copied().unwrap_or(0);
        entries.push(table);
        if table & LARGE != 1 {
            break;
        }
    }
    entries
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

/// Takes the accessed bits of segments of KVM from softcpu.
fn accessed_segments(kvm: &mut Outcome, soft: &Outcome) {
    let words = (GDT / 8) as usize..(IDT / 8) as usize;
    for (kvm, soft) in kvm.memory.iter_mut().zip(&soft.memory).skip(words.start).take(words.len()) {
        if *kvm ^ soft == 1 << 40 && *kvm >> 44 & 1 == 1 {
            *kvm = *soft;
        }
    }
}

/// Takes the end of the first page that differs from softcpu.
pub fn end_of_page(kvm: &mut Outcome, soft: &Outcome) {
    let mut words = kvm.memory.iter_mut().zip(&soft.memory).enumerate();
    let first = words.find(|(_, (kvm, soft))| kvm != soft).map_or(0, |(index, _)| index);
    for (kvm, soft) in kvm.memory.iter_mut().zip(&soft.memory).skip((first | 511) - 1).take(2) {
        *kvm = *soft;
    }
}
