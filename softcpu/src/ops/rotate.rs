//! Rotations (SDM volume 1, section 7.3.6.3). OF after a rotation by more than 1, which the SDM leaves undefined, is as
//! processors of Intel set it.

use super::shift::{count_mask, flag_if, overflow_of_sign, overflow_of_top};
use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
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
    cpu.set_flags(changed(op, count), carry | overflow);
    Ok(())
}

/// The flags that a rotation changes. Processors of Intel leave OF alone in two cases: ROL and ROR of a register by an
/// immediate value that is not 1; RCL and RCR of 8 or 16 bits in full turns, which leave CF alone, too.
#[inline]
fn changed<M: Memory>(op: &Op<M>, count: u32) -> u64 {
    match op.insn.mnemonic() {
        Mnemonic::Rol | Mnemonic::Ror => {
            let is_short = op.operands[0].kind != Kind::Memory && op.operands[1].kind == Kind::Immediate;
            if is_short && count != 1 { flag::CF } else { flag::CF | flag::OF }
        }
        _ if count.is_multiple_of(8 * u32::from(op.size) + 1) => 0,
        _ => flag::CF | flag::OF,
    }
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
        (result, carry, overflow_of_top(value, size))
    })
}

fn ror<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, _, count, size| {
        let bits = 8 * u32::from(size);
        let result = turn(value, bits - count % bits, bits) & mask(size);
        let carry = if result & sign_bit(size) != 0 { flag::CF } else { 0 };
        (result, carry, overflow_of_sign(value, value & 1, size))
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
        (result, carry, overflow_of_top(value, size))
    })
}

fn rcr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    rotate(cpu, op, |value, old, count, size| {
        let bits = 8 * u32::from(size) + 1;
        let (result, carry) = turn_with_carry(value, old, bits - count % bits, size);
        (result, carry, overflow_of_sign(value, old, size))
    })
}
