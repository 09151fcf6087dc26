//! The instructions, a file for each group. Each group has a function `handler` that finds the function for an
//! instruction.

mod absent;
mod arithmetic;
mod bits;
mod bmi;
mod branch;
mod condition;
mod control;
mod data;
mod decimal;
mod exchange;
mod far;
mod flag;
mod gates;
mod interrupt;
mod multiply;
mod port;
mod returns;
mod rotate;
mod segments;
mod selectors;
mod shift;
mod sse;
mod stack;
mod string;
mod string_fast;
mod syscall;
mod system;
mod tables;
mod x87;

use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};

/// Finds the function for an instruction of a group.
type Group<M> = fn(&Instruction) -> Option<Handler<M>>;

/// Finds the function that executes an instruction.
pub(crate) fn handler<M: Memory>(insn: &Instruction) -> Handler<M> {
    if insn.code() == Code::INVALID {
        return undefined;
    }
    present(insn).or_else(|| absent::handler(insn)).unwrap_or(unsupported)
}

/// The function that executes an instruction which this processor has.
fn present<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let groups: &[Group<M>] = &[
        arithmetic::handler,
        data::handler,
        condition::handler,
        branch::handler,
        stack::handler,
        shift::handler,
        rotate::handler,
        multiply::handler,
        bits::handler,
        exchange::handler,
        string::handler,
        bmi::handler,
        decimal::handler,
        port::handler,
        control::handler,
        flag::handler,
        sse::handler,
        x87::handler,
        system::handler,
        segments::handler,
        interrupt::handler,
        far::handler,
        returns::handler,
        selectors::handler,
        tables::handler,
        syscall::handler,
    ];
    groups.iter().find_map(|group| group(insn))
}

impl<M: Memory> Cpu<M> {
    /// True if this processor has the instruction with which `code` begins, which is 16, 32 or 64 `bits` wide.
    pub fn has_instruction(bits: u32, code: &[u8]) -> bool {
        let insn = Decoder::new(bits, code, DecoderOptions::NONE).decode();
        !insn.is_invalid() && present::<M>(&insn).is_some()
    }
}

/// True if the instruction after this one is not always the next to be executed, or is decoded in another way.
pub(crate) fn ends_block(insn: &Instruction) -> bool {
    insn.flow_control() != FlowControl::Next
}

/// An undefined instruction.
fn undefined<M: Memory>(_: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    Err(Trap::ud())
}

/// An instruction that this processor does not implement.
fn unsupported<M: Memory>(_: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    Err(Trap::Unsupported(Missing::Instruction))
}
