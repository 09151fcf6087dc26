//! The instructions, a file for each group. Each group has a function `handler` that finds the function for an
//! instruction.

mod arithmetic;
mod branch;
mod data;
mod port;
mod sse;
mod x87;

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use iced_x86::{Code, FlowControl, Instruction};

/// Finds the function that executes an instruction.
pub(crate) fn handler<M: Memory>(insn: &Instruction) -> Handler<M> {
    if insn.code() == Code::INVALID {
        return undefined;
    }
    let groups: [fn(&Instruction) -> Option<Handler<M>>; 6] =
        [arithmetic::handler, data::handler, branch::handler, port::handler, sse::handler, x87::handler];
    groups.into_iter().find_map(|group| group(insn)).unwrap_or(unsupported)
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
    Err(Trap::Unsupported)
}
