//! Shifts (SDM volume 1, section 7.3.6.1). The flags that the SDM leaves undefined are as processors of Intel set them.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::{mask, sign_bit, sign_extend};
use crate::shape::{Operation, Source, Target, unary};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => unary::<M, Shl>(insn),
        Mnemonic::Shr => unary::<M, Shr>(insn),
        Mnemonic::Sar => unary::<M, Sar>(insn),
        Mnemonic::Shld => shld,
        Mnemonic::Shrd => shrd,
        _ => return None,
    })
}

/// The bits of a shift count that count.
#[inline]
pub(super) fn count_mask(size: u8) -> u64 {
    if size == 8 { 63 } else { 31 }
}

/// The flag `flag` if bit 0 of `value` is set.
#[inline]
pub(super) fn flag_if(value: u64, flag: u64) -> u64 {
    if value & 1 != 0 { flag } else { 0 }
}

/// OF of a shift to the left by 1: the two highest bits of the value are not equal.
#[inline]
pub(super) fn overflow_of_top(value: u64, size: u8) -> u64 {
    if (value ^ value << 1) & sign_bit(size) != 0 { flag::OF } else { 0 }
}

/// OF of a shift to the right by 1: the sign of the value is not equal to the bit that comes in.
#[inline]
pub(super) fn overflow_of_sign(value: u64, new: u64, size: u8) -> u64 {
    if (value & sign_bit(size) != 0) != (new != 0) { flag::OF } else { 0 }
}

/// Executes a shift. `shifted` has the result, CF and OF for a value and a count that is not 0.
#[inline]
fn shift<M: Memory, T: Target, S: Source>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    shifted: impl Fn(u64, u32, u8) -> (u64, u64, u64),
) -> Result<(), Trap> {
    let size = T::size(op);
    let count = (S::get(cpu, op, 1)? & count_mask(size)) as u32;
    T::update(cpu, op, |value, rflags| {
        if count == 0 {
            return (value, rflags);
        }
        let (result, carry, overflow) = shifted(value, count, size);
        let result = result & mask(size);
        let status = flags::of_result(result, size) | carry | overflow;
        (result, flags::merge(rflags, flag::STATUS, status))
    })
}

struct Shl;
struct Shr;
struct Sar;

impl Operation for Shl {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        shift::<M, T, S>(cpu, op, |value, count, size| {
            let last = value << (count - 1);
            let carry = if last & sign_bit(size) != 0 { flag::CF } else { 0 };
            (last << 1, carry, overflow_of_top(value, size))
        })
    }
}

impl Operation for Shr {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        shift::<M, T, S>(cpu, op, |value, count, size| {
            let last = value >> (count - 1);
            (last >> 1, flag_if(last, flag::CF), overflow_of_sign(value, 0, size))
        })
    }
}

impl Operation for Sar {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        shift::<M, T, S>(cpu, op, |value, count, size| {
            let last = sign_extend(value, size) as i64 >> (count - 1);
            ((last >> 1) as u64, flag_if(last as u64, flag::CF), 0)
        })
    }
}

/// The count of a double shift.
#[inline]
fn double_count<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<u32, Trap> {
    Ok((cpu.get(op, 2)? & count_mask(op.size)) as u32)
}

/// SHLD. A 16-bit operand that is shifted by more than 16, which the SDM leaves undefined, is followed by the second
/// operand and by itself again.
fn shld<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let (high, low) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)?);
    let count = double_count(cpu, op)?;
    if count == 0 {
        return cpu.set(op, 0, high);
    }
    let bits = 8 * u32::from(size & 15);
    let wide = match size {
        2 => u128::from(high << 32 | low << 16 | high) << 80,
        _ => (u128::from(high) << bits | u128::from(low)) << (128 - 2 * bits),
    };
    let last = wide << (count - 1);
    let carry = if last >> 127 != 0 { flag::CF } else { 0 };
    let result = (last << 1 >> (128 - bits)) as u64;
    cpu.set(op, 0, result)?;
    cpu.set_status(flags::of_result(result, size) | carry | overflow_of_top(high, size));
    Ok(())
}

/// SHRD. See [`shld`].
fn shrd<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let (low, high) = (cpu.get_for_update(op, 0)?, cpu.get(op, 1)?);
    let count = double_count(cpu, op)?;
    if count == 0 {
        return cpu.set(op, 0, low);
    }
    let wide = match size {
        2 => u128::from(low << 32 | high << 16 | low),
        _ => u128::from(high) << (8 * u32::from(size & 15)) | u128::from(low),
    };
    let last = wide >> (count - 1);
    let result = (last >> 1) as u64 & mask(size);
    let carry = flag_if(last as u64, flag::CF);
    cpu.set(op, 0, result)?;
    cpu.set_status(flags::of_result(result, size) | carry | overflow_of_sign(low, high & 1, size));
    Ok(())
}
