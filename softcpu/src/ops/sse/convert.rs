//! Conversions (SDM volume 1, sections 10.4.1, 11.4.1 and 11.4.2).

use super::lanes::{dwords, from_dwords, from_qwords, qwords};
use super::{low, replace_low};
use crate::cpu::Cpu;
use crate::float::{Double, Env, Single, double_to_single, from_integer, single_to_double, to_integer};
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::sign_extend;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Cvtss2sd => |cpu, op| to_scalar(cpu, op, 8, |env, b| single_to_double(env, low(b, 4))),
        Mnemonic::Cvtsd2ss => |cpu, op| to_scalar(cpu, op, 4, |env, b| double_to_single(env, b as u64)),
        Mnemonic::Cvtsi2ss => |cpu, op| {
            let size = op.operands[1].size;
            to_scalar(cpu, op, 4, |env, b| from_integer::<Single>(env, sign_extend(b as u64, size) as i64))
        },
        Mnemonic::Cvtsi2sd => |cpu, op| {
            let size = op.operands[1].size;
            to_scalar(cpu, op, 8, |env, b| from_integer::<Double>(env, sign_extend(b as u64, size) as i64))
        },
        Mnemonic::Cvtss2si => {
            |cpu, op| to_gpr(cpu, op, |env, b, width| to_integer::<Single>(env, low(b, 4), width, false))
        }
        Mnemonic::Cvttss2si => {
            |cpu, op| to_gpr(cpu, op, |env, b, width| to_integer::<Single>(env, low(b, 4), width, true))
        }
        Mnemonic::Cvtsd2si => {
            |cpu, op| to_gpr(cpu, op, |env, b, width| to_integer::<Double>(env, b as u64, width, false))
        }
        Mnemonic::Cvttsd2si => {
            |cpu, op| to_gpr(cpu, op, |env, b, width| to_integer::<Double>(env, b as u64, width, true))
        }
        Mnemonic::Cvtps2pd => |cpu, op| {
            to_packed(cpu, op, |env, b| {
                from_qwords([b as u32, (b >> 32) as u32].map(|bits| single_to_double(env, bits.into())))
            })
        },
        Mnemonic::Cvtdq2pd => |cpu, op| {
            to_packed(cpu, op, |env, b| {
                from_qwords(
                    [b as i32, (b >> 32) as i32].map(|value| from_integer::<Double>(env, value.into())),
                )
            })
        },
        Mnemonic::Cvtpd2ps => {
            |cpu, op| to_packed(cpu, op, |env, b| from_doubles(b, |b| double_to_single(env, b)))
        }
        Mnemonic::Cvtpd2dq => |cpu, op| {
            to_packed(cpu, op, |env, b| from_doubles(b, |b| to_integer::<Double>(env, b, 32, false)))
        },
        Mnemonic::Cvttpd2dq => {
            |cpu, op| to_packed(cpu, op, |env, b| from_doubles(b, |b| to_integer::<Double>(env, b, 32, true)))
        }
        Mnemonic::Cvtdq2ps => |cpu, op| {
            to_packed(cpu, op, |env, b| {
                from_dwords(
                    dwords(b).map(|value| from_integer::<Single>(env, i64::from(value as i32)) as u32),
                )
            })
        },
        Mnemonic::Cvtps2dq => |cpu, op| to_packed(cpu, op, |env, b| singles_to_integers(env, b, false)),
        Mnemonic::Cvttps2dq => |cpu, op| to_packed(cpu, op, |env, b| singles_to_integers(env, b, true)),
        _ => return None,
    })
}

/// Makes two elements of 32 bits of two doubles. The rest is zero.
fn from_doubles(value: u128, mut convert: impl FnMut(u64) -> u64) -> u128 {
    let [first, second] = qwords(value).map(|bits| convert(bits) as u32);
    from_dwords([first, second, 0, 0])
}

fn singles_to_integers(env: &mut Env, value: u128, truncates: bool) -> u128 {
    from_dwords(dwords(value).map(|bits| to_integer::<Single>(env, bits.into(), 32, truncates) as u32))
}

/// Converts the second operand to the lowest element of the first, which has `size` bytes.
#[inline]
fn to_scalar<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    size: u8,
    convert: impl Fn(&mut Env, u128) -> u64,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    let mut env = Env::new(cpu.state.mxcsr);
    let result = convert(&mut env, b);
    cpu.end_float(&env)?;
    cpu.set_xmm(op, 0, replace_low(a, size, result));
    Ok(())
}

/// Converts the second operand to a general register.
#[inline]
fn to_gpr<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    convert: impl Fn(&mut Env, u128, u32) -> u64,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = cpu.sse_source(op, 1)?;
    let mut env = Env::new(cpu.state.mxcsr);
    let result = convert(&mut env, b, u32::from(op.operands[0].size) * 8);
    cpu.end_float(&env)?;
    cpu.set(op, 0, result)
}

/// Converts the second operand to the whole of the first.
#[inline]
fn to_packed<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    convert: impl Fn(&mut Env, u128) -> u128,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = cpu.sse_source(op, 1)?;
    let mut env = Env::new(cpu.state.mxcsr);
    let result = convert(&mut env, b);
    cpu.end_float(&env)?;
    cpu.set_xmm(op, 0, result);
    Ok(())
}
