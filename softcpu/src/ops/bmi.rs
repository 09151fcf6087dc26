//! BMI1 and BMI2 (SDM volume 1, section 5.1.16). AF and PF, which the SDM leaves undefined, are as processors of Intel set
//! them.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::{mask, sign_extend};
use crate::state::{flag, gpr};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Andn => andn,
        Mnemonic::Bextr => bextr,
        Mnemonic::Blsi => blsi,
        Mnemonic::Blsmsk => blsmsk,
        Mnemonic::Blsr => blsr,
        Mnemonic::Bzhi => bzhi,
        Mnemonic::Mulx => mulx,
        Mnemonic::Pdep => pdep,
        Mnemonic::Pext => pext,
        Mnemonic::Rorx => rorx,
        Mnemonic::Sarx => sarx,
        Mnemonic::Shlx => shlx,
        Mnemonic::Shrx => shrx,
        _ => return None,
    })
}

/// Raises #UD in real mode and virtual-8086 mode, where there is no VEX prefix (SDM volume 2, section 2.3.1).
fn check_vex<M: Memory>(cpu: &Cpu<M>) -> Result<(), Trap> {
    if cpu.state.is_protected() && !cpu.state.has(flag::VM) { Ok(()) } else { Err(Trap::ud()) }
}

/// Executes an instruction without flags: writes `result` of operands 1 and 2, and of the size.
#[inline]
fn quiet<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, result: impl Fn(u64, u64, u8) -> u64) -> Result<(), Trap> {
    check_vex(cpu)?;
    let (a, b) = (cpu.get(op, 1)?, cpu.get(op, 2)?);
    cpu.set(op, 0, result(a, b, op.size))
}

/// Writes a result, and its flags with CF.
fn finish<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, result: u64, carry: bool) -> Result<(), Trap> {
    let result = result & mask(op.size);
    cpu.set(op, 0, result)?;
    let carry = if carry { flag::CF } else { 0 };
    cpu.set_status(flags::of_result(result, op.size) & (flag::ZF | flag::SF) | carry);
    Ok(())
}

fn andn<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let (a, b) = (cpu.get(op, 1)?, cpu.get(op, 2)?);
    finish(cpu, op, !a & b, false)
}

fn bextr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let (value, control) = (cpu.get(op, 1)?, cpu.get(op, 2)?);
    let (start, len) = (control as u32 & 0xff, (control >> 8) as u32 & 0xff);
    let shifted = value.checked_shr(start).unwrap_or(0);
    finish(cpu, op, low_bits(shifted, len), false)?;
    cpu.set_flags(flag::SF, 0);
    Ok(())
}

/// The low `count` bits of a value.
fn low_bits(value: u64, count: u32) -> u64 {
    1u64.checked_shl(count).map_or(value, |end| value & (end - 1))
}

fn blsi<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let value = cpu.get(op, 1)?;
    finish(cpu, op, value & value.wrapping_neg(), value != 0)
}

fn blsmsk<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let value = cpu.get(op, 1)?;
    finish(cpu, op, value ^ value.wrapping_sub(1), value == 0)
}

fn blsr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let value = cpu.get(op, 1)?;
    finish(cpu, op, value & value.wrapping_sub(1), value == 0)
}

fn bzhi<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let (value, index) = (cpu.get(op, 1)?, cpu.get(op, 2)? as u32 & 0xff);
    finish(cpu, op, low_bits(value, index), index >= 8 * u32::from(op.size))
}

/// MULX. If both destinations are the same register, it gets the high half.
fn mulx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    check_vex(cpu)?;
    let (a, b) = (cpu.gpr(gpr::DX, op.size), cpu.get(op, 2)?);
    let product = u128::from(a) * u128::from(b);
    cpu.set(op, 1, product as u64)?;
    cpu.set(op, 0, (product >> (8 * u32::from(op.size & 15))) as u64)
}

/// The positions of the bits that are set in a value, from the lowest.
fn positions(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let position = bits.trailing_zeros();
            bits &= bits - 1;
            position
        })
    })
}

fn pdep<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, places, _| {
        positions(places).enumerate().fold(0, |result, (index, to)| result | (value >> index & 1) << to)
    })
}

fn pext<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, places, _| {
        positions(places).enumerate().fold(0, |result, (index, from)| result | (value >> from & 1) << index)
    })
}

fn rorx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, count, size| match size {
        4 => (value as u32).rotate_right(count as u32 & 31).into(),
        _ => value.rotate_right(count as u32 & 63),
    })
}

fn sarx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, count, size| {
        (sign_extend(value, size) as i64 >> (count & super::shift::count_mask(size))) as u64
    })
}

fn shlx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, count, size| value << (count & super::shift::count_mask(size)))
}

fn shrx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    quiet(cpu, op, |value, count, size| value >> (count & super::shift::count_mask(size)))
}
