//! Arithmetic and comparison of floating-point values (SDM volume 1, sections 10.4.1 and 11.4.1).

use super::lanes::{each_dword, each_qword};
use super::{low, replace_low};
use crate::cpu::Cpu;
use crate::float::{self, Double, Env, Format, Single};
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};
use std::cmp::Ordering;

/// The four forms of an instruction.
macro_rules! forms {
    ($insn:expr, $($ps:ident $pd:ident $ss:ident $sd:ident => $element:ident;)*) => {
        match $insn.mnemonic() {
            $(
                Mnemonic::$ps => |cpu, op| packed_single(cpu, op, $element::<Single>),
                Mnemonic::$pd => |cpu, op| packed_double(cpu, op, $element::<Double>),
                Mnemonic::$ss => |cpu, op| scalar(cpu, op, 4, $element::<Single>),
                Mnemonic::$sd => |cpu, op| scalar(cpu, op, 8, $element::<Double>),
            )*
            Mnemonic::Cmpps => |cpu, op| {
                let predicate = op.insn.immediate8();
                packed_single(cpu, op, |env, a, b| compare::<Single>(env, a, b, predicate))
            },
            Mnemonic::Cmppd => |cpu, op| {
                let predicate = op.insn.immediate8();
                packed_double(cpu, op, |env, a, b| compare::<Double>(env, a, b, predicate))
            },
            Mnemonic::Cmpss => |cpu, op| {
                let predicate = op.insn.immediate8();
                scalar(cpu, op, 4, |env, a, b| compare::<Single>(env, a, b, predicate))
            },
            Mnemonic::Cmpsd => |cpu, op| {
                let predicate = op.insn.immediate8();
                scalar(cpu, op, 8, |env, a, b| compare::<Double>(env, a, b, predicate))
            },
            Mnemonic::Rcpps => |cpu, op| packed_single(cpu, op, |_, _, b| float::reciprocal(b)),
            Mnemonic::Rcpss => |cpu, op| scalar(cpu, op, 4, |_, _, b| float::reciprocal(b)),
            Mnemonic::Rsqrtps => |cpu, op| packed_single(cpu, op, |_, _, b| float::reciprocal_sqrt(b)),
            Mnemonic::Rsqrtss => |cpu, op| scalar(cpu, op, 4, |_, _, b| float::reciprocal_sqrt(b)),
            Mnemonic::Comiss => |cpu, op| compare_flags::<M, Single>(cpu, op, 4, true),
            Mnemonic::Comisd => |cpu, op| compare_flags::<M, Double>(cpu, op, 8, true),
            Mnemonic::Ucomiss => |cpu, op| compare_flags::<M, Single>(cpu, op, 4, false),
            Mnemonic::Ucomisd => |cpu, op| compare_flags::<M, Double>(cpu, op, 8, false),
            _ => return None,
        }
    };
}

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    use float::{add, div, max, min, mul, sub};
    Some(forms! { insn,
        Addps Addpd Addss Addsd => add;
        Subps Subpd Subss Subsd => sub;
        Mulps Mulpd Mulss Mulsd => mul;
        Divps Divpd Divss Divsd => div;
        Minps Minpd Minss Minsd => min;
        Maxps Maxpd Maxss Maxsd => max;
        Sqrtps Sqrtpd Sqrtss Sqrtsd => sqrt;
    })
}

/// The square root of the second operand.
fn sqrt<F: Format>(env: &mut Env, _: u64, b: u64) -> u64 {
    float::sqrt::<F>(env, b)
}

#[inline]
fn packed_single<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    element: impl Fn(&mut Env, u64, u64) -> u64,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    let mut env = Env::new(cpu.state.mxcsr);
    let result = each_dword(a, b, |a, b| element(&mut env, a.into(), b.into()) as u32);
    cpu.end_float(&env)?;
    cpu.set_xmm(op, 0, result);
    Ok(())
}

#[inline]
fn packed_double<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    element: impl Fn(&mut Env, u64, u64) -> u64,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    let mut env = Env::new(cpu.state.mxcsr);
    let result = each_qword(a, b, |a, b| element(&mut env, a, b));
    cpu.end_float(&env)?;
    cpu.set_xmm(op, 0, result);
    Ok(())
}

/// Computes the lowest element, which has `size` bytes. The others are kept.
#[inline]
fn scalar<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    size: u8,
    element: impl Fn(&mut Env, u64, u64) -> u64,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    let mut env = Env::new(cpu.state.mxcsr);
    let result = element(&mut env, low(a, size), low(b, size));
    cpu.end_float(&env)?;
    cpu.set_xmm(op, 0, replace_low(a, size, result));
    Ok(())
}

/// Compares two values: all ones if the predicate holds (SDM volume 2, table 3-1).
fn compare<F: Format>(env: &mut Env, a: u64, b: u64, predicate: u8) -> u64 {
    let signals = matches!(predicate & 3, 1 | 2);
    let order = float::compare::<F>(env, a, b, signals);
    let holds = match predicate & 3 {
        0 => order == Some(Ordering::Equal),
        1 => order == Some(Ordering::Less),
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        _ => order.is_none(),
    };
    if holds != (predicate & 4 != 0) { u64::MAX } else { 0 }
}

/// COMISS, UCOMISS and the like. `signals`: a quiet NaN raises the invalid-operation exception.
fn compare_flags<M: Memory, F: Format>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    size: u8,
    signals: bool,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    let mut env = Env::new(cpu.state.mxcsr);
    let order = float::compare::<F>(&mut env, low(a, size), low(b, size), signals);
    cpu.end_float(&env)?;
    cpu.set_status(match order {
        None => flag::ZF | flag::PF | flag::CF,
        Some(Ordering::Less) => flag::CF,
        Some(Ordering::Equal) => flag::ZF,
        Some(Ordering::Greater) => 0,
    });
    Ok(())
}
