//! Moves to and from segment registers (SDM volume 1, section 7.3.13).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op, segment_index};
use crate::operands::mask;
use crate::state::{gpr, seg};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic, Register};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let (to, from) = (insn.op0_register(), insn.op1_register());
    Some(match insn.mnemonic() {
        Mnemonic::Mov if to.is_segment_register() => mov_to,
        Mnemonic::Mov if from.is_segment_register() => mov_from,
        Mnemonic::Push if to.is_segment_register() => push,
        Mnemonic::Pop if to.is_segment_register() => pop,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => load_far_pointer,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// No trap or interrupt is taken between a load of SS and the next instruction, unless the instruction before the load
    /// had the same effect (SDM volume 3, section 6.8.3).
    fn shadow_after(&mut self, segment: usize) {
        if segment == seg::SS && !self.shadow {
            self.shadow = true;
            self.leave_block = true;
            self.skip_single_step = true;
        }
    }
}

/// The segment register that is operand 0.
fn destination<M: Memory>(op: &Op<M>) -> usize {
    segment_index(op.insn.op0_register())
}

fn mov_to<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if op.insn.op0_register() == Register::CS {
        return Err(Trap::ud());
    }
    let selector = cpu.get(op, 1)? as u16;
    let index = destination(op);
    cpu.load_segment(index, selector)?;
    cpu.shadow_after(index);
    Ok(())
}

fn mov_from<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.get(op, 1)?;
    cpu.set(op, 0, selector)
}

/// The number of bytes by which PUSH and POP move the stack pointer.
fn stack_bytes<M: Memory>(op: &Op<M>) -> u8 {
    op.insn.stack_pointer_increment().unsigned_abs() as u8
}

fn push<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.get(op, 0)?;
    let size = stack_bytes(op);
    let width = cpu.stack_size();
    let pointer = cpu.gpr(gpr::SP, width).wrapping_sub(size.into()) & mask(width);
    // Intel processors leave the upper half of a slot of 4 bytes as it is (SDM volume 2, PUSH).
    let stored = if size == 4 { 2 } else { size };
    cpu.store(seg::SS, pointer, stored, selector)?;
    cpu.set_gpr(gpr::SP, width, pointer);
    Ok(())
}

fn pop<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.peek(2, 0)? as u16;
    let index = destination(op);
    // The width of the stack pointer is that of the old stack.
    let segment = cpu.segment_for(index, selector)?;
    cpu.drop_stack(stack_bytes(op).into());
    cpu.state.segments[index] = segment;
    cpu.shadow_after(index);
    Ok(())
}

/// LDS, LES, LFS, LGS and LSS.
fn load_far_pointer<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let index = match op.insn.mnemonic() {
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        Mnemonic::Lss => seg::SS,
        _ => seg::DS,
    };
    let (offset, selector) = cpu.load_far_pointer(op, op.size)?;
    cpu.load_segment(index, selector)?;
    cpu.set(op, 0, offset)
}

impl<M: Memory> Cpu<M> {
    /// Reads the memory operand, an offset of `size` bytes and a selector behind it.
    pub(crate) fn load_far_pointer(&mut self, op: &Op<M>, size: u8) -> Result<(u64, u16), Trap> {
        let (segment, start) = (op.address.segment.into(), self.effective_address(op));
        let offset = self.load(segment, start, size)?;
        let selector = self.load(segment, start.wrapping_add(size.into()), 2)?;
        Ok((offset, selector as u16))
    }
}
