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
        Mnemonic::Push if super::data::is_plain(insn) => push,
        Mnemonic::Pop if super::data::is_plain(insn) => pop,
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

impl<M: Memory> Op<M> {
    /// The size of the value that the instruction pushes or pops.
    #[inline]
    pub(super) fn stack_size(&self) -> u8 {
        self.insn.stack_pointer_increment().unsigned_abs() as u8
    }

    /// The size of the return address that RET pops.
    #[inline]
    pub(super) fn return_size(&self) -> u8 {
        (self.insn.stack_pointer_increment() as u64).wrapping_sub(self.immediate) as u8
    }
}

fn push<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 0)?;
    cpu.push(op.stack_size(), value)
}

fn pop<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.stack_size();
    let value = cpu.peek(size, 0)?;
    let pointer = cpu.state.gpr[gpr::SP];
    // The address of a memory operand is computed with the stack pointer after the pop.
    cpu.drop_stack(size.into());
    let result = cpu.set(op, 0, value);
    if result.is_err() && op.operands[0].kind == Kind::Memory {
        cpu.state.gpr[gpr::SP] = pointer;
    }
    result
}

/// PUSHA and PUSHAD. All eight places are checked before the first is written.
fn push_all<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let width = cpu.stack_size();
    let top = cpu.gpr(gpr::SP, width);
    let place = |index: u64| top.wrapping_sub((index + 1) * u64::from(SIZE)) & mask(width);
    for index in 0..8 {
        cpu.check_stack_write(place(index), SIZE)?;
    }
    for index in 0..8 {
        let value = cpu.gpr(index as usize, SIZE);
        cpu.store(seg::SS, place(index), SIZE, value)?;
    }
    cpu.set_gpr(gpr::SP, width, place(7));
    Ok(())
}

/// POPA and POPAD. The value for the stack pointer is read and dropped.
fn pop_all<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let mut values = [0; 8];
    for (index, value) in values.iter_mut().rev().enumerate() {
        *value = cpu.peek(SIZE, index as u64 * u64::from(SIZE))?;
    }
    cpu.drop_stack(8 * u64::from(SIZE));
    for (index, value) in values.into_iter().enumerate().filter(|(index, _)| *index != gpr::SP) {
        cpu.set_gpr(index, SIZE, value);
    }
    Ok(())
}

impl<M: Memory> Cpu<M> {
    /// Raises the fault that a write of `size` bytes at an offset in the stack segment would raise.
    fn check_stack_write(&mut self, offset: u64, size: u8) -> Result<(), Trap> {
        let linear = self.linear(seg::SS, offset, size.into(), Access::Write)?;
        self.check_write(linear, size.into(), self.is_user())
    }

    /// Raises the fault that a read of a byte at an offset in a segment would raise.
    pub(super) fn check_read(&mut self, segment: usize, offset: u64) -> Result<(), Trap> {
        let linear = self.linear(segment, offset, 1, Access::Read)?;
        self.translate(linear, Access::Read, self.is_user()).map(drop)
    }
}

/// ENTER. It writes nothing before all its accesses are checked.
fn enter<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (space, level) = (op.insn.immediate(0), op.insn.immediate(1) & 31);
    let width = cpu.stack_size();
    let size = match op.insn.mnemonic() {
        _ if op.insn.code() == iced_x86::Code::Enterw_imm16_imm8 => 2,
        _ if op.insn.code() == iced_x86::Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let top = cpu.gpr(gpr::SP, width);
    let place = |index: u64| top.wrapping_sub((index + 1) * u64::from(size)) & mask(width);
    let frame = place(0);
    // The old frame pointer, the pointers of the outer frames, and the pointer to the new frame.
    let mut values = [0; 33];
    let count = if level == 0 { 1 } else { level + 1 };
    values[0] = cpu.gpr(gpr::BP, size);
    for (index, value) in (1..level).zip(values.iter_mut().skip(1)) {
        let from = cpu.state.gpr[gpr::BP].wrapping_sub(index * u64::from(size)) & mask(width);
        *value = cpu.load(seg::SS, from, size)?;
    }
    if level != 0 {
        values[level as usize & 31] = frame;
    }
    for index in 0..count {
        cpu.check_stack_write(place(index), size)?;
    }
    let end = place(count - 1).wrapping_sub(space) & mask(width);
    cpu.check_stack_write(end, size)?;
    for (index, value) in (0..count).zip(values) {
        cpu.store(seg::SS, place(index), size, value)?;
    }
    cpu.set_gpr(gpr::SP, width, end);
    cpu.set_gpr(gpr::BP, size, frame);
    Ok(())
}

fn leave<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = match op.insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let width = cpu.stack_size();
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
