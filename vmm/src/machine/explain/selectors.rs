//! Segment selectors that the processor refuses to load.
//!
//! Intel SDM volume 3, sections 3.4.2 (selectors), 3.4.5 (descriptors) and 5.4 (type and null-selector checking).

use super::State;
use super::registers::register_value;
use super::suspicion::{Suspicion, memory_operand, operand_address};
use crate::x86::modes;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// The kind of segment that an instruction loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Code,
    Stack,
    Data,
}

/// The wrong selector that an instruction loads, in protected or long mode.
pub(super) fn wrong(instruction: &Instruction, state: &State<'_>) -> Option<Suspicion> {
    if state.sregs.cr0 & modes::CR0_PE == 0 {
        return None;
    }
    if leaves_the_task(instruction, state) {
        return None;
    }
    let (selector, kind) = loaded(instruction, state)?;
    let register = match kind {
        Kind::Code => "cs",
        Kind::Stack => "ss",
        Kind::Data => "a data segment register",
    };
    let is_return =
        matches!(instruction.mnemonic(), Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq);
    refusal(selector, kind, register, is_return, state).map(Suspicion::from)
}

/// True if an instruction switches to another task, or to virtual-8086 mode.
pub(super) fn switches_task(instruction: &Instruction, state: &State<'_>) -> bool {
    /// TSS of 16 and 32 bits, and the task gate.
    const TASKS: [u64; 3] = [0x1, 0x5, 0x9];
    if state.sregs.cr0 & modes::CR0_PE == 0 || state.probe.is_long() {
        return false;
    }
    let target =
        loaded(instruction, state).filter(|(selector, kind)| *kind == Kind::Code && selector & 4 == 0);
    let descriptor = target.and_then(|(selector, _)| descriptor(selector, state));
    leaves_the_task(instruction, state)
        || descriptor.is_some_and(|descriptor| TASKS.contains(&(descriptor >> 40 & 0x1f)))
}

/// True for an IRET to another task or to virtual-8086 mode, which loads no selector from the GDT (SDM volume 3, sections
/// 7.3 and 21.2.2).
fn leaves_the_task(instruction: &Instruction, state: &State<'_>) -> bool {
    const NESTED_TASK: u64 = 1 << 14;
    const VIRTUAL_8086: u64 = 1 << 17;
    let is_iret = matches!(instruction.mnemonic(), Mnemonic::Iret | Mnemonic::Iretd);
    let is_virtual = || {
        let flags = state.stack_word(8).unwrap_or(0);
        instruction.mnemonic() == Mnemonic::Iretd && flags & VIRTUAL_8086 != 0
    };
    is_iret && !state.probe.is_long() && (state.regs.rflags & NESTED_TASK != 0 || is_virtual())
}

/// The selector that an instruction loads, and the kind of segment that it must select.
fn loaded(instruction: &Instruction, state: &State<'_>) -> Option<(u16, Kind)> {
    let to = |register| match register {
        Register::CS => Kind::Code,
        Register::SS => Kind::Stack,
        _ => Kind::Data,
    };
    let register = instruction.op0_register();
    let width = state.width;
    let selector = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Pop if register.is_segment_register() => {
            let value = match (instruction.mnemonic(), memory_operand(instruction)) {
                (Mnemonic::Pop, _) => state.stack_word(0)?,
                (_, Some(operand)) => word(state, operand_address(instruction, operand, state)?)?,
                _ => register_value(instruction.op1_register(), state.regs)?,
            };
            return Some((value as u16, to(register)));
        }
        Mnemonic::Jmp | Mnemonic::Call
            if [OpKind::FarBranch16, OpKind::FarBranch32].contains(&instruction.op0_kind()) =>
        {
            instruction.far_branch_selector()
        }
        // The selector follows the offset, which is as wide as the operand.
        Mnemonic::Jmp | Mnemonic::Call
            if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() =>
        {
            let operand = memory_operand(instruction)?;
            let offset = (instruction.memory_size().size() as u64).saturating_sub(2);
            word(state, operand_address(instruction, operand, state)?.checked_add(offset)?)? as u16
        }
        Mnemonic::Retf => state.stack_word(far_width(instruction, 4))? as u16,
        Mnemonic::Iret => state.stack_word(2)? as u16,
        Mnemonic::Iretd => state.stack_word(4)? as u16,
        Mnemonic::Iretq => state.stack_word(width.max(8))? as u16,
        _ => return None,
    };
    Some((selector, Kind::Code))
}

/// The width of the offset of a far return, in bytes. Without a prefix it is `default`, as in 32-bit and 64-bit code.
fn far_width(instruction: &Instruction, default: u64) -> u64 {
    use iced_x86::Code;
    match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfq | Code::Retfq_imm16 => 8,
        _ => default,
    }
}

/// A word of 2 bytes at a linear address.
fn word(state: &State<'_>, linear: u64) -> Option<u64> {
    let mut word = [0; 2];
    let gpa = state.probe.translate_linear(linear).ok()?.gpa;
    state.memory.read(gpa, &mut word).then(|| u16::from_le_bytes(word).into())
}

/// The reason why the processor refuses to load a selector. `None` if it takes it, or if the GDT cannot be read.
fn refusal(selector: u16, kind: Kind, register: &str, is_return: bool, state: &State<'_>) -> Option<String> {
    let sregs = state.sregs;
    let is_null = selector & !3 == 0;
    if is_null {
        // 64-bit code may load the null selector into SS, except in ring 3.
        let is_allowed = match kind {
            Kind::Data => true,
            Kind::Stack => state.probe.is_long() && sregs.cs.selector & 3 != 3,
            Kind::Code => false,
        };
        return (!is_allowed).then(|| format!("#GP: {register} cannot be the null selector"));
    }
    if selector & 4 != 0 {
        let has_ldt = sregs.ldt.unusable == 0 && sregs.ldt.present == 1 && sregs.ldt.limit > 0;
        return (!has_ldt).then(|| {
            format!(
                "#GP: the selector {selector:#x} is in the LDT (bit 2 is set), which the guest does not have"
            )
        });
    }
    let offset = u64::from(selector & !7);
    let last = u64::from(sregs.gdt.limit);
    if last < 7 {
        return Some(format!(
            "#GP: the selector {selector:#x} is outside the GDT, whose limit is {last} (is the address at lgdt right?)"
        ));
    }
    if offset.saturating_add(7) > last {
        return Some(format!(
            "#GP: the selector {selector:#x} is outside the GDT, which has {} bytes",
            last.saturating_add(1)
        ));
    }
    let at = state.probe.translate_linear(sregs.gdt.base.checked_add(offset)?).ok()?.gpa;
    if !state.memory.read(at, &mut [0; 8]) {
        return Some(format!("the GDT at {:#x} is where there is no memory", sregs.gdt.base));
    }
    let descriptor = descriptor(selector, state)?;
    let switches = kind == Kind::Code && !state.probe.is_long() && is_far_target(descriptor);
    if switches {
        return None;
    }
    let cpl = sregs.ss.dpl & 3;
    wrong_descriptor(descriptor, kind)
        .map(|why| format!("{why}, in the GDT at selector {selector:#x}, which {register} cannot take"))
        .or_else(|| {
            let ring = wrong_privilege(descriptor, selector, kind, cpl, is_return)?;
            Some(format!(
                "#GP: the segment at selector {selector:#x} is for ring {ring}, and {register} cannot take it from ring {cpl} \
                 with RPL {}",
                selector & 3
            ))
        })
}

/// The entry of the GDT that a selector names. `None` if it cannot be read.
fn descriptor(selector: u16, state: &State<'_>) -> Option<u64> {
    let linear = state.sregs.gdt.base.checked_add(u64::from(selector & !7))?;
    let gpa = state.probe.translate_linear(linear).ok()?.gpa;
    let mut descriptor = [0; 8];
    state.memory.read(gpa, &mut descriptor).then(|| u64::from_le_bytes(descriptor))
}

/// True for a TSS or a task gate, to which a far jump or call switches, and for a call gate.
fn is_far_target(descriptor: u64) -> bool {
    const TYPES: [u64; 5] = [0x1, 0x4, 0x5, 0x9, 0xc];
    TYPES.contains(&(descriptor >> 40 & 0x1f))
}

/// The ring (DPL) of a segment that the guest must not load from ring `cpl`. `None` if it may (SDM volume 3, sections 5.5 to
/// 5.8).
fn wrong_privilege(descriptor: u64, selector: u16, kind: Kind, cpl: u8, is_return: bool) -> Option<u8> {
    let (dpl, rpl) = ((descriptor >> 45 & 3) as u8, (selector & 3) as u8);
    let (is_code, is_conforming) = (descriptor >> 43 & 1 == 1, descriptor >> 42 & 1 == 1);
    let is_allowed = match kind {
        Kind::Stack => dpl == cpl && rpl == cpl,
        Kind::Data => is_code && is_conforming || dpl >= cpl.max(rpl),
        Kind::Code if is_return => rpl >= cpl && if is_conforming { dpl <= rpl } else { dpl == rpl },
        Kind::Code if is_conforming => dpl <= cpl,
        Kind::Code => dpl == cpl && rpl <= cpl,
    };
    (!is_allowed).then_some(dpl)
}

/// The reason why a descriptor is of the wrong kind.
fn wrong_descriptor(descriptor: u64, kind: Kind) -> Option<&'static str> {
    let has = |bit: u32| descriptor >> bit & 1 == 1;
    let (is_code, allows, is_segment, is_present) = (has(43), has(41), has(44), has(47));
    Some(match kind {
        _ if descriptor == 0 => "#GP: an empty entry",
        _ if !is_segment => "#GP: a system segment or gate",
        Kind::Code if !is_code => "#GP: a data segment",
        Kind::Code if has(53) && has(54) => "#GP: a code segment with both the bits L and D",
        Kind::Stack if is_code => "#GP: a code segment",
        Kind::Stack if !allows => "#GP: a read-only data segment",
        Kind::Data if is_code && !allows => "#GP: a code segment that cannot be read",
        _ if !is_present => "#NP: an entry that is not present",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_of_a_segment_is_checked() {
        const CODE: u64 = 0x00af_9b00_0000_ffff;
        const DATA: u64 = 0x00cf_9300_0000_ffff;
        const RING_3: u64 = 3 << 45;
        const CONFORMING: u64 = 1 << 42;
        for (descriptor, selector, kind, cpl, is_return, ring) in [
            (CODE, 8, Kind::Code, 0, false, None),
            (CODE | RING_3, 8, Kind::Code, 0, false, Some(3)),
            (CODE | RING_3, 0xb, Kind::Code, 0, true, None),
            (CODE, 8, Kind::Code, 3, true, Some(0)),
            (CODE | CONFORMING, 8, Kind::Code, 3, false, None),
            (DATA, 0x10, Kind::Stack, 0, false, None),
            (DATA | RING_3, 0x10, Kind::Stack, 0, false, Some(3)),
            (DATA, 0x13, Kind::Stack, 0, false, Some(0)),
            (DATA, 0x10, Kind::Data, 3, false, Some(0)),
            (DATA | RING_3, 0x10, Kind::Data, 0, false, None),
        ] {
            let found = wrong_privilege(descriptor, selector, kind, cpl, is_return);
            assert_eq!(found, ring, "{descriptor:#x} {selector:#x} {kind:?} {cpl} {is_return}");
        }
    }

    #[test]
    fn tasks_and_call_gates_are_targets_of_a_far_jump() {
        for (descriptor, expected) in [
            (0x8900_0000_0067, true),
            (0x8500_0000_0000, true),
            (0x8b00_0000_0067, false),
            (0x8e00_0000_0000, false),
        ] {
            assert_eq!(is_far_target(descriptor), expected, "{descriptor:#x}");
        }
    }

    #[test]
    fn descriptors_are_checked_against_their_use() {
        const CODE: u64 = 0x00af_9b00_0000_ffff;
        const DATA: u64 = 0x00cf_9300_0000_ffff;
        const READ_ONLY: u64 = 0x00cf_9100_0000_ffff;
        const UNREADABLE: u64 = 0x00af_9900_0000_ffff;
        const TASK: u64 = 0x0000_8900_0000_0067;
        const ABSENT: u64 = 1 << 47;
        for (descriptor, kind, why) in [
            (CODE, Kind::Code, None),
            (DATA, Kind::Stack, None),
            (DATA, Kind::Data, None),
            (READ_ONLY, Kind::Data, None),
            (CODE, Kind::Data, None),
            (0, Kind::Data, Some("#GP: an empty entry")),
            (TASK, Kind::Code, Some("#GP: a system segment or gate")),
            (DATA, Kind::Code, Some("#GP: a data segment")),
            (CODE | 1 << 54, Kind::Code, Some("#GP: a code segment with both the bits L and D")),
            (CODE, Kind::Stack, Some("#GP: a code segment")),
            (READ_ONLY, Kind::Stack, Some("#GP: a read-only data segment")),
            (UNREADABLE, Kind::Data, Some("#GP: a code segment that cannot be read")),
            (DATA & !ABSENT, Kind::Data, Some("#NP: an entry that is not present")),
        ] {
            assert_eq!(wrong_descriptor(descriptor, kind), why, "{descriptor:#x} {kind:?}");
        }
    }
}
