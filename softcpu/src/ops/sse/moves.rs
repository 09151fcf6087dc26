//! Moves (SDM volume 1, sections 10.4.1.1 and 11.4.1).

use super::replace_low;
use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op, segment_index};
use crate::paging::Access;
use crate::state::gpr;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq => move_aligned,
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu => move_unaligned,
        Mnemonic::Movss | Mnemonic::Movsd => move_scalar,
        Mnemonic::Movd | Mnemonic::Movq => move_extended,
        Mnemonic::Movlps | Mnemonic::Movlpd => move_low,
        Mnemonic::Movhps | Mnemonic::Movhpd => move_high,
        Mnemonic::Movhlps => |cpu, op| super::combine(cpu, op, |a, b| a & !u128::from(u64::MAX) | b >> 64),
        Mnemonic::Movlhps => |cpu, op| super::combine(cpu, op, |a, b| a & u128::from(u64::MAX) | b << 64),
        Mnemonic::Movmskps => |cpu, op| move_mask(cpu, op, 4),
        Mnemonic::Movmskpd => |cpu, op| move_mask(cpu, op, 8),
        Mnemonic::Pmovmskb => |cpu, op| move_mask(cpu, op, 1),
        Mnemonic::Maskmovdqu => move_selected,
        _ => return None,
    })
}

/// Moves 16 bytes.
#[inline]
fn move_wide<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, aligned: bool) -> Result<(), Trap> {
    cpu.check_sse()?;
    let segment = op.address.segment.into();
    if op.operands[0].kind == Kind::Memory {
        let (offset, value) = (cpu.effective_address(op), cpu.xmm(op, 1));
        return cpu.store_wide(segment, offset, value, aligned);
    }
    let value = match op.operands[1].kind {
        Kind::Memory => {
            let offset = cpu.effective_address(op);
            cpu.load_wide(segment, offset, aligned)?
        }
        _ => cpu.xmm(op, 1),
    };
    cpu.set_xmm(op, 0, value);
    Ok(())
}

fn move_aligned<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    move_wide(cpu, op, true)
}

fn move_unaligned<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    move_wide(cpu, op, false)
}

/// MOVSS and MOVSD. Between registers, the rest of the destination is kept; a load clears it.
fn move_scalar<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let is_load = op.operands[1].kind == Kind::Memory;
    if op.operands[0].kind == Kind::Memory || is_load {
        return move_extended(cpu, op);
    }
    let size = if op.insn.mnemonic() == Mnemonic::Movss { 4 } else { 8 };
    super::combine(cpu, op, |a, b| replace_low(a, size, b as u64))
}

/// MOVD, MOVQ, and loads and stores of scalars: a load clears the rest of the register.
fn move_extended<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = cpu.sse_source(op, 1)? as u64;
    if op.operands[0].kind == Kind::Xmm {
        cpu.set_xmm(op, 0, value.into());
        return Ok(());
    }
    cpu.set(op, 0, value)
}

fn move_low<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if op.operands[0].kind == Kind::Xmm {
        return super::combine(cpu, op, |a, b| replace_low(a, 8, b as u64));
    }
    move_extended(cpu, op)
}

fn move_high<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if op.operands[0].kind == Kind::Xmm {
        return super::combine(cpu, op, |a, b| a & u128::from(u64::MAX) | b << 64);
    }
    cpu.check_sse()?;
    let value = (cpu.xmm(op, 1) >> 64) as u64;
    cpu.set(op, 0, value)
}

/// Collects the sign bits of the elements, which have `size` bytes.
fn move_mask<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, size: u32) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = cpu.xmm(op, 1);
    let signs =
        (0..16 / size).fold(0, |signs, lane| signs | (value >> (8 * size * (lane + 1) - 1) & 1) << lane);
    cpu.set(op, 0, signs as u64)
}

/// MASKMOVDQU: stores the bytes whose mask has its highest bit set. The others are checked, too.
fn move_selected<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_sse()?;
    let size = match op.insn.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    let (offset, segment) = (cpu.gpr(gpr::DI, size), segment_index(op.insn.memory_segment()));
    let (value, selected, user) = (cpu.xmm(op, 1), cpu.xmm(op, 2), cpu.is_user());
    let start = cpu.linear(segment, offset, 16, Access::Write)?;
    cpu.check_alignment(start, 8)?;
    cpu.check_write(start, 16, user)?;
    for byte in (0..16).filter(|byte| selected >> (8 * byte + 7) & 1 != 0) {
        let at = start.wrapping_add(byte) & cpu.linear_mask();
        cpu.store_linear(at, 1, (value >> (8 * byte)) as u64 & 0xff, user)?;
    }
    Ok(())
}
