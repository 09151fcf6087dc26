//! Rotations (SDM volume 1, section 7.3.6.3). OF after a rotation by more than 1, which the SDM leaves undefined, is as
//! processors of Intel set it.

use super::shift::{count_mask, flag_if, overflow_of_carry, overflow_of_top};
use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::{mask, sign_bit};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Rol => rol,
        Mnemonic::Ror => ror,
        Mnemonic::Rcl => rcl,
        Mnemonic::Rcr => rcr,
        _ => return None,
    })
}

/// Executes a rotation. `rotated` has the result, CF and OF for a value, the carry in and a count that is not 0.
#[inline]
fn rotate<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    rotated: impl Fn(u64, u64, u32, u8) -> (u64, u64, u64),
) -> Result<(), Trap> {
    let size = op.size;
    let value = cpu.get_for_update(op, 0)?;
    let count = (cpu.get(op, 1)? & count_mask(size)) as u32;
    if count == 0 {
        return cpu.set(op, 0, value);
    }
    let (result, carry, overflow) = rotated(value, cpu.state.rflags & flag::CF, count, size);
    cpu.set(op, 0, result)?;
    cpu.set_flags(flag::CF | flag::OF, carry | overflow);
    Ok(())
}

/// `value << count | value >> (bits - count)`, where a shift by 64 gives 0.
#[inline]
fn turn(value: u64, count: u32, bits: u32) -> u64 {
    value.checked_shl(count).unwrap_or(0) | value.checked_shr(bits - count).unwrap_or(0)
}

fn rol<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, _, count, size| {
        let bits = 8 * u32::from(size);
        let result = turn(value, count % bits, bits) & mask(size);
        let carry = flag_if(result, flag::CF);
        (result, carry, overflow_of_carry(result, carry, size))
    })
}

fn ror<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, _, count, size| {
        let bits = 8 * u32::from(size);
        let result = turn(value, bits - count % bits, bits) & mask(size);
        let carry = if result & sign_bit(size) != 0 { flag::CF } else { 0 };
        (result, carry, overflow_of_top(result, size))
    })
}

/// Rotates a value and CF above it left by `count`. Returns the result and CF.
#[inline]
fn turn_with_carry(value: u64, carry: u64, count: u32, size: u8) -> (u64, u64) {
    let bits = 8 * u32::from(size) + 1;
    let wide = u128::from(carry) << (bits - 1) | u128::from(value);
    let result = wide << count | wide >> (bits - count);
    (result as u64 & mask(size), (result >> (bits - 1)) as u64 & flag::CF)
}

fn rcl<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, carry, count, size| {
        let bits = 8 * u32::from(size) + 1;
        let (result, carry) = turn_with_carry(value, carry, count % bits, size);
        (result, carry, overflow_of_carry(result, carry, size))
    })
}

fn rcr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, carry, count, size| {
        let bits = 8 * u32::from(size) + 1;
        let (result, carry) = turn_with_carry(value, carry, bits - count % bits, size);
        (result, carry, overflow_of_top(result, size))
    })
}
