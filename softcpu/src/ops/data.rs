//! Moves between registers and memory (SDM volume 1, section 7.3.1).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::operands::sign_extend;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Mov if is_plain(insn) => mov,
        Mnemonic::Movzx => mov,
        Mnemonic::Movsx | Mnemonic::Movsxd => movsx,
        Mnemonic::Lea => lea,
        Mnemonic::Push if is_plain(insn) => push,
        Mnemonic::Pop if is_plain(insn) => pop,
        Mnemonic::Nop => nop,
        _ => return None,
    })
}

/// True if no operand is a segment, control or debug register.
fn is_plain(insn: &Instruction) -> bool {
    let special = |register: iced_x86::Register| {
        register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
    };
    !special(insn.op0_register()) && !special(insn.op1_register())
}

fn mov<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    cpu.set(op, 0, value)
}

fn movsx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = sign_extend(cpu.get(op, 1)?, op.operands[1].size);
    cpu.set(op, 0, value)
}

fn lea<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let offset = cpu.effective_address(op);
    cpu.set(op, 0, offset)
}

/// The size of the value that an instruction pushes or pops.
fn stack_operand_size<M: Memory>(op: &Op<M>) -> u8 {
    op.insn.stack_pointer_increment().unsigned_abs() as u8
}

fn push<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 0)?;
    cpu.push(stack_operand_size(op), value)
}

fn pop<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = stack_operand_size(op);
    let value = cpu.peek(size, 0)?;
    let pointer = cpu.state.gpr[4];
    // The address of a memory operand is computed with the stack pointer after the pop.
    cpu.drop_stack(size.into());
    let result = cpu.set(op, 0, value);
    if result.is_err() && op.operands[0].kind == Kind::Memory {
        cpu.state.gpr[4] = pointer;
    }
    result
}

fn nop<M: Memory>(_: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    Ok(())
}
