//! Exchanges (SDM volume 1, section 7.3.1.2). An instruction is never interrupted by another processor, so LOCK changes
//! nothing.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::operands::mask;
use crate::paging::Access;
use crate::state::{flag, gpr};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Xchg => xchg,
        Mnemonic::Xadd => xadd,
        Mnemonic::Cmpxchg => cmpxchg,
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    })
}

fn xchg<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    // The memory operand is the first or the second.
    let (first, second) = if op.operands[1].kind == Kind::Memory { (1, 0) } else { (0, 1) };
    let (a, b) = (cpu.get_for_update(op, first)?, cpu.get(op, second)?);
    cpu.set(op, first, b)?;
    cpu.set(op, second, a)
}

fn xadd<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (a, b) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)?);
    let result = a.wrapping_add(b) & mask(op.size);
    if op.operands[0].kind == Kind::Memory {
        cpu.set(op, 0, result)?;
        cpu.set(op, 1, a)?;
    } else {
        // If both are the same register, the sum remains.
        cpu.set(op, 1, a)?;
        cpu.set(op, 0, result)?;
    }
    cpu.set_status(flags::of_add(a, b, result, op.size));
    Ok(())
}

/// CMPXCHG. It writes its destination in any case.
fn cmpxchg<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (old, new) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)?);
    let expected = cpu.gpr(gpr::AX, op.size);
    let is_equal = expected == old;
    // A 32-bit register that is not equal keeps its upper half.
    if is_equal || op.operands[0].kind == Kind::Memory {
        cpu.set(op, 0, if is_equal { new } else { old })?;
    }
    if !is_equal {
        cpu.set_gpr(gpr::AX, op.size, old);
    }
    let result = expected.wrapping_sub(old) & mask(op.size);
    cpu.set_status(flags::of_sub(expected, old, result, op.size));
    Ok(())
}

fn cmpxchg8b<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let old = cpu.get_for_update(op, 0)?;
    let pair = |cpu: &Cpu<M>, high, low| cpu.gpr(high, 4) << 32 | cpu.gpr(low, 4);
    let is_equal = old == pair(cpu, gpr::DX, gpr::AX);
    let new = pair(cpu, gpr::CX, gpr::BX);
    cpu.set(op, 0, if is_equal { new } else { old })?;
    if !is_equal {
        cpu.set_gpr(gpr::AX, 4, old);
        cpu.set_gpr(gpr::DX, 4, old >> 32);
    }
    cpu.set_flags(flag::ZF, if is_equal { flag::ZF } else { 0 });
    Ok(())
}

fn cmpxchg16b<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (segment, offset) = (op.address.segment.into(), cpu.effective_address(op));
    let linear = cpu.linear(segment, offset, 16, Access::Write)?;
    if linear & 15 != 0 {
        return Err(Trap::gp());
    }
    cpu.check_write(linear, 16, cpu.is_user())?;
    let old = cpu.load_wide(segment, offset, true)?;
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let registers = cpu.state.gpr;
    let is_equal = old == pair(registers[gpr::DX], registers[gpr::AX]);
    let new = pair(registers[gpr::CX], registers[gpr::BX]);
    cpu.store_wide(segment, offset, if is_equal { new } else { old }, true)?;
    if !is_equal {
        cpu.state.gpr[gpr::AX] = old as u64;
        cpu.state.gpr[gpr::DX] = (old >> 64) as u64;
    }
    cpu.set_flags(flag::ZF, if is_equal { flag::ZF } else { 0 });
    Ok(())
}
