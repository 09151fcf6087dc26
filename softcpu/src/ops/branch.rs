//! Near branches (SDM volume 1, section 7.3.8).

use super::stack::moved_bytes;
use crate::cpu::Cpu;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::state::{flag, gpr, seg};
use crate::trap::Trap;
use iced_x86::{Code, Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let code = insn.code();
    let loop_size = || match code {
        Code::Loop_rel8_16_CX | Code::Loop_rel8_32_CX | Code::Loope_rel8_16_CX | Code::Loope_rel8_32_CX => 2,
        Code::Loopne_rel8_16_CX | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_64_RCX | Code::Loope_rel8_64_RCX | Code::Loopne_rel8_64_RCX => 8,
        Code::Loop_rel8_16_RCX | Code::Loope_rel8_16_RCX | Code::Loopne_rel8_16_RCX => 8,
        _ => 4,
    };
    Some(match insn.mnemonic() {
        _ if code.is_jmp_short_or_near() => jmp,
        _ if code.is_jmp_near_indirect() => jmp_indirect,
        _ if code.is_call_near() => match moved_bytes(insn) {
            2 => call::<M, 2>,
            4 => call::<M, 4>,
            _ => call::<M, 8>,
        },
        _ if code.is_call_near_indirect() => match moved_bytes(insn) {
            2 => call_indirect::<M, 2>,
            4 => call_indirect::<M, 4>,
            _ => call_indirect::<M, 8>,
        },
        Mnemonic::Ret => match code {
            Code::Retnw | Code::Retnw_imm16 => ret::<M, 2>,
            Code::Retnd | Code::Retnd_imm16 => ret::<M, 4>,
            _ => ret::<M, 8>,
        },
        Mnemonic::Jcxz => jcxz::<M, 2>,
        Mnemonic::Jecxz => jcxz::<M, 4>,
        Mnemonic::Jrcxz => jcxz::<M, 8>,
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => match loop_size() {
            2 => loopcc::<M, 2>,
            4 => loopcc::<M, 4>,
            _ => loopcc::<M, 8>,
        },
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Continues at `target` in the same code segment, after this instruction.
    ///
    /// # Errors
    /// #GP(0): the target is not canonical, or is outside of the segment.
    #[inline]
    pub(crate) fn jump(&mut self, target: u64) -> Result<(), Trap> {
        let valid = match self.state.is_64() {
            true => is_canonical(target),
            false => target <= self.state.segments[seg::CS].limit.into(),
        };
        if !valid {
            return Err(Trap::gp());
        }
        self.next_rip = target;
        Ok(())
    }
}

fn jmp<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.jump(op.immediate)
}

fn jmp_indirect<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let target = cpu.get(op, 0)?;
    cpu.jump(target)
}

/// Calls `target`. The return address is written before the target is checked.
#[inline]
fn call_to<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, target: u64) -> Result<(), Trap> {
    let pointer = cpu.state.gpr[gpr::SP];
    cpu.push(SIZE, cpu.next_rip)?;
    cpu.jump(target).inspect_err(|_| cpu.state.gpr[gpr::SP] = pointer)
}

fn call<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    call_to::<M, SIZE>(cpu, op.immediate)
}

fn call_indirect<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let target = cpu.get(op, 0)?;
    call_to::<M, SIZE>(cpu, target)
}

/// RET, which also drops the immediate number of bytes from the stack.
fn ret<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let target = cpu.peek(SIZE, 0)?;
    cpu.jump(target)?;
    cpu.drop_stack(u64::from(SIZE).wrapping_add(op.immediate));
    Ok(())
}

fn jcxz<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if cpu.gpr(gpr::CX, SIZE) == 0 {
        return cpu.jump(op.immediate);
    }
    Ok(())
}

/// LOOP, LOOPE and LOOPNE with a counter of `SIZE` bytes.
fn loopcc<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let count = cpu.gpr(gpr::CX, SIZE).wrapping_sub(1) & mask(SIZE);
    let goes_on = match op.insn.mnemonic() {
        Mnemonic::Loope => cpu.state.has(flag::ZF),
        Mnemonic::Loopne => !cpu.state.has(flag::ZF),
        _ => true,
    };
    if count != 0 && goes_on {
        cpu.jump(op.immediate)?;
    }
    cpu.set_gpr(gpr::CX, SIZE, count);
    Ok(())
}
