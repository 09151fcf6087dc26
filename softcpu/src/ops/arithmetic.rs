//! Addition, subtraction and logic (SDM volume 1, sections 7.3.2 and 7.3.3).

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Add => add,
        Mnemonic::Sub => sub,
        Mnemonic::Cmp => cmp,
        Mnemonic::And => and,
        Mnemonic::Or => or,
        Mnemonic::Xor => xor,
        Mnemonic::Inc => inc,
        Mnemonic::Dec => dec,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Replaces the status flags.
    #[inline]
    pub(crate) fn set_status(&mut self, new: u64) {
        self.state.rflags = flags::merge(self.state.rflags, flag::STATUS, new);
    }
}

fn add<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (a, b) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)? & mask(op.size));
    let result = a.wrapping_add(b) & mask(op.size);
    cpu.set(op, 0, result)?;
    cpu.set_status(flags::of_add(a, b, result, op.size));
    Ok(())
}

fn sub<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (a, b) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)? & mask(op.size));
    let result = a.wrapping_sub(b) & mask(op.size);
    cpu.set(op, 0, result)?;
    cpu.set_status(flags::of_sub(a, b, result, op.size));
    Ok(())
}

fn cmp<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (a, b) = (cpu.get(op, 0)?, cpu.get(op, 1)? & mask(op.size));
    let result = a.wrapping_sub(b) & mask(op.size);
    cpu.set_status(flags::of_sub(a, b, result, op.size));
    Ok(())
}

/// Stores the result of a logical instruction.
#[inline]
fn logic<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, result: impl Fn(u64, u64) -> u64) -> Result<(), Trap> {
    let (a, b) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)? & mask(op.size));
    let result = result(a, b);
    cpu.set(op, 0, result)?;
    cpu.set_status(flags::of_result(result, op.size));
    Ok(())
}

fn and<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    logic(cpu, op, |a, b| a & b)
}

fn or<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    logic(cpu, op, |a, b| a | b)
}

fn xor<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    logic(cpu, op, |a, b| a ^ b)
}

fn inc<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    let result = a.wrapping_add(1) & mask(op.size);
    cpu.set(op, 0, result)?;
    let new = flags::of_add(a, 1, result, op.size);
    cpu.state.rflags = flags::merge(cpu.state.rflags, flag::STATUS & !flag::CF, new);
    Ok(())
}

fn dec<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    let result = a.wrapping_sub(1) & mask(op.size);
    cpu.set(op, 0, result)?;
    let new = flags::of_sub(a, 1, result, op.size);
    cpu.state.rflags = flags::merge(cpu.state.rflags, flag::STATUS & !flag::CF, new);
    Ok(())
}
