//! Conditions, and the instructions that depend on them (SDM volume 1, appendix B).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{ConditionCode, Instruction, OpKind};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let number = match insn.condition_code() {
        ConditionCode::None => return None,
        // The names of iced are in the order of the encoding.
        condition => condition as usize - ConditionCode::o as usize,
    };
    if insn.is_jcc_short_or_near() {
        return handlers::<M>(|of| of.jump, number);
    }
    match (insn.op_kind(0), insn.op_count()) {
        (OpKind::Register | OpKind::Memory, 1) => handlers::<M>(|of| of.set, number),
        (OpKind::Register, 2) => handlers::<M>(|of| of.select, number),
        _ => None,
    }
}

/// The functions for a condition.
struct Conditional<M: Memory> {
    jump: Handler<M>,
    set: Handler<M>,
    select: Handler<M>,
}

/// One of the functions for condition `number`, 0 to 15.
fn handlers<M: Memory>(which: impl Fn(Conditional<M>) -> Handler<M>, number: usize) -> Option<Handler<M>> {
    macro_rules! of {
        ($($number:literal)*) => {
            [$(Conditional {
                jump: jcc::<M, $number>,
                set: setcc::<M, $number>,
                select: cmovcc::<M, $number>,
            }),*]
        };
    }
    of!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15).into_iter().nth(number).map(which)
}

/// True if the flags meet the condition with this number. An odd number is the opposite of the one before it.
#[inline]
fn meets(rflags: u64, number: u8) -> bool {
    let has = |flag: u64| rflags & flag != 0;
    let less = has(flag::SF) != has(flag::OF);
    let met = match number >> 1 {
        0 => has(flag::OF),
        1 => has(flag::CF),
        2 => has(flag::ZF),
        3 => has(flag::CF | flag::ZF),
        4 => has(flag::SF),
        5 => has(flag::PF),
        6 => less,
        _ => less || has(flag::ZF),
    };
    met != (number & 1 != 0)
}

fn jcc<M: Memory, const CONDITION: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if meets(cpu.state.rflags, CONDITION) {
        return cpu.jump(op.immediate);
    }
    Ok(())
}

fn setcc<M: Memory, const CONDITION: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.set(op, 0, meets(cpu.state.rflags, CONDITION).into())
}

/// CMOVcc reads its source in any case. A 32-bit destination is zero-extended in any case.
fn cmovcc<M: Memory, const CONDITION: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (old, new) = (cpu.get(op, 0)?, cpu.get(op, 1)?);
    cpu.set(op, 0, if meets(cpu.state.rflags, CONDITION) { new } else { old })
}
