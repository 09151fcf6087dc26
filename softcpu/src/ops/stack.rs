//! The stack (SDM volume 1, chapter 6).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::operands::{mask, sign_extend};
use crate::paging::Access;
use crate::state::{gpr, seg};
use crate::trap::{BR, Trap};
use iced_x86::{Code, Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Push if super::data::is_plain(insn) => match moved_bytes(insn) {
            2 => push::<M, 2>,
            4 => push::<M, 4>,
            _ => push::<M, 8>,
        },
        Mnemonic::Pop if super::data::is_plain(insn) => match moved_bytes(insn) {
            2 => pop::<M, 2>,
            4 => pop::<M, 4>,
            _ => pop::<M, 8>,
        },
        Mnemonic::Pusha => push_all::<M, 2>,
        Mnemonic::Pushad => push_all::<M, 4>,
        Mnemonic::Popa => pop_all::<M, 2>,
        Mnemonic::Popad => pop_all::<M, 4>,
        Mnemonic::Enter => enter,
        Mnemonic::Leave => leave,
        Mnemonic::Bound => bound,
        _ => return None,
    })
}

/// The number of bytes by which an instruction moves the stack pointer.
pub(super) fn moved_bytes(insn: &Instruction) -> u32 {
    insn.stack_pointer_increment().unsigned_abs()
}

fn push<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 0)?;
    cpu.push(SIZE, value)
}

fn pop<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.peek(SIZE, 0)?;
    let pointer = cpu.state.gpr[gpr::SP];
    // The address of a memory operand is computed with the stack pointer after the pop.
    cpu.drop_stack(SIZE.into());
    let result = cpu.set(op, 0, value);
    if result.is_err() && op.operands[0].kind == Kind::Memory {
        cpu.state.gpr[gpr::SP] = pointer;
    }
    result
}

/// PUSHA and PUSHAD. If a fault ends it, what it has written below the stack pointer remains.
fn push_all<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let width = cpu.stack_size();
    let mut pointer = cpu.gpr(gpr::SP, width);
    for index in 0..8 {
        pointer = pointer.wrapping_sub(SIZE.into()) & mask(width);
        let value = cpu.gpr(index, SIZE);
        cpu.store(seg::SS, pointer, SIZE, value)?;
    }
    cpu.set_gpr(gpr::SP, width, pointer);
    Ok(())
}

/// POPA and POPAD. The value for the stack pointer is read and dropped. If a fault ends it, the registers that are done
/// have their values, but not the stack pointer, as on processors of Intel.
fn pop_all<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    for index in 0..8u8 {
        let value = cpu.peek(SIZE, u64::from(index) * u64::from(SIZE))?;
        let register = usize::from(7 - index);
        if register != gpr::SP {
            cpu.set_gpr(register, SIZE, value);
        }
    }
    cpu.drop_stack(8 * u64::from(SIZE));
    Ok(())
}

impl<M: Memory> Cpu<M> {
    /// Raises the fault that a write of `size` bytes at an offset in the stack segment would raise.
    fn check_stack_write(&mut self, offset: u64, size: u8) -> Result<(), Trap> {
        let linear = self.linear(seg::SS, offset, size.into(), Access::Write)?;
        self.check_alignment(linear, size)?;
        self.check_write(linear, size.into(), self.is_user())
    }

    /// Raises the fault that a read of a byte at an offset in a segment would raise.
    pub(super) fn check_read(&mut self, segment: usize, offset: u64) -> Result<(), Trap> {
        let linear = self.linear(segment, offset, 1, Access::Read)?;
        self.translate(linear, Access::Read, self.is_user()).map(drop)
    }
}

/// ENTER. A frame pointer that it copies may be one that it has just pushed. If a fault ends it, what it has written below
/// the stack pointer remains.
fn enter<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (space, level) = (op.insn.immediate(0), op.insn.immediate(1) & 31);
    let width = cpu.stack_size();
    let size = match op.insn.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let step = u64::from(size);
    let mut pointer = cpu.gpr(gpr::SP, width);
    let mut push = |cpu: &mut Cpu<M>, value| {
        pointer = pointer.wrapping_sub(step) & mask(width);
        cpu.store(seg::SS, pointer, size, value).map(|()| pointer)
    };
    let mut last = push(cpu, cpu.state.gpr[gpr::BP])?;
    // The whole stack pointer, also where the stack has 16 bits.
    let frame = cpu.state.gpr[gpr::SP] & !mask(width) | last;
    for index in 1..level {
        let outer = cpu.state.gpr[gpr::BP].wrapping_sub(index * step) & mask(width);
        let value = cpu.load(seg::SS, outer, size)?;
        push(cpu, value)?;
    }
    if level != 0 {
        last = push(cpu, frame)?;
    }
    let end = last.wrapping_sub(space) & mask(width);
    cpu.check_stack_write(end, size)?;
    cpu.set_gpr(gpr::SP, width, end);
    cpu.set_gpr(gpr::BP, size, frame);
    Ok(())
}

fn leave<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let width = cpu.stack_size();
    let size = match op.insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let frame = cpu.gpr(gpr::BP, width);
    let value = cpu.load(seg::SS, frame, size)?;
    cpu.set_gpr(gpr::SP, width, frame.wrapping_add(size.into()));
    cpu.set_gpr(gpr::BP, size, value);
    Ok(())
}

fn bound<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (segment, offset) = (op.address.segment.into(), cpu.effective_address(op));
    let low = cpu.load(segment, offset, op.size)?;
    let high = cpu.load(segment, offset.wrapping_add(op.size.into()) & op.address.mask, op.size)?;
    let signed = |value| sign_extend(value, op.size) as i64;
    let index = signed(cpu.get(op, 0)?);
    if index < signed(low) || index > signed(high) {
        return Err(Trap::fault(BR));
    }
    Ok(())
}
