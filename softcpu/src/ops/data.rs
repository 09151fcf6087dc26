//! Moves, conversions and flags (SDM volume 1, sections 5.1.1 and 5.1.11).

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::{mask, sign_bit, sign_extend};
use crate::shape::{self, Any, Operation, Source, Target, binary};
use crate::state::{flag, gpr};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic, Register};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti if is_plain(insn) => binary::<M, Mov>(insn),
        Mnemonic::Movsx | Mnemonic::Movsxd => movsx,
        Mnemonic::Movbe => movbe,
        Mnemonic::Bswap => bswap,
        Mnemonic::Lea if insn.op0_register().is_gpr64() => lea::<M, shape::Register<8>>,
        Mnemonic::Lea => lea::<M, Any>,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Cbw => widen::<M, 1>,
        Mnemonic::Cwde => widen::<M, 2>,
        Mnemonic::Cdqe => widen::<M, 4>,
        Mnemonic::Cwd => widen_to_dx::<M, 2>,
        Mnemonic::Cdq => widen_to_dx::<M, 4>,
        Mnemonic::Cqo => widen_to_dx::<M, 8>,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Stc => change::<M, { flag::CF }, 1>,
        Mnemonic::Clc => change::<M, { flag::CF }, 0>,
        Mnemonic::Std => change::<M, { flag::DF }, 1>,
        Mnemonic::Cld => change::<M, { flag::DF }, 0>,
        Mnemonic::Cmc => cmc,
        Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Pause => nop,
        Mnemonic::Endbr32 | Mnemonic::Endbr64 | Mnemonic::Rdsspd | Mnemonic::Rdsspq => nop,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => nop,
        Mnemonic::Prefetch | Mnemonic::Prefetchw | Mnemonic::Prefetchwt1 => nop,
        Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 => nop,
        Mnemonic::Prefetchit0 | Mnemonic::Prefetchit1 | Mnemonic::Cldemote => nop,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => clflush,
        _ => return None,
    })
}

/// True if no operand is a segment, control or debug register.
pub(super) fn is_plain(insn: &Instruction) -> bool {
    let special = |register: Register| {
        register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
    };
    !special(insn.op0_register()) && !special(insn.op1_register())
}

/// MOV, and MOVZX, whose source is shorter.
struct Mov;

impl Operation for Mov {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        let value = S::get(cpu, op, 1)?;
        T::set(cpu, op, value)
    }
}

fn movsx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = sign_extend(cpu.get(op, 1)?, op.operands[1].size);
    cpu.set(op, 0, value)
}

fn movbe<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?.swap_bytes() >> (64 - 8 * u32::from(op.size & 15).clamp(1, 8));
    cpu.set(op, 0, value)
}

/// BSWAP. With a 16-bit register, which the SDM leaves undefined, the result is zero.
fn bswap<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 0)?;
    let result = match op.size {
        2 => 0,
        4 => (value as u32).swap_bytes().into(),
        _ => value.swap_bytes(),
    };
    cpu.set(op, 0, result)
}

fn lea<M: Memory, T: Target>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let offset = cpu.effective_address(op);
    T::set(cpu, op, offset)
}

fn xlat<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let offset = cpu.state.gpr[gpr::BX].wrapping_add(cpu.gpr(gpr::AX, 1)) & op.address.mask;
    let value = cpu.load(op.address.segment.into(), offset, 1)?;
    cpu.set_gpr(gpr::AX, 1, value);
    Ok(())
}

/// CBW, CWDE and CDQE: extends the accumulator from `SIZE` bytes to twice the size.
fn widen<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let value = sign_extend(cpu.gpr(gpr::AX, SIZE), SIZE);
    cpu.set_gpr(gpr::AX, SIZE.wrapping_mul(2), value);
    Ok(())
}

/// CWD, CDQ and CQO: fills the data register with the sign of the accumulator.
fn widen_to_dx<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let is_negative = cpu.gpr(gpr::AX, SIZE) & sign_bit(SIZE) != 0;
    cpu.set_gpr(gpr::DX, SIZE, if is_negative { mask(SIZE) } else { 0 });
    Ok(())
}

/// The flags that LAHF and SAHF move.
const LOW: u64 = flag::CF | flag::PF | flag::AF | flag::ZF | flag::SF;

fn lahf<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let low = cpu.state.rflags & LOW | flag::ONE;
    let value = cpu.gpr(gpr::AX, 1) | low << 8;
    cpu.set_gpr(gpr::AX, 2, value);
    Ok(())
}

fn sahf<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let ah = cpu.gpr(gpr::AX, 2) >> 8;
    cpu.set_flags(LOW, ah);
    Ok(())
}

/// SALC: sets AL to all ones if CF is set, else to zero.
fn salc<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let value = if cpu.state.has(flag::CF) { 0xff } else { 0 };
    cpu.set_gpr(gpr::AX, 1, value);
    Ok(())
}

/// Sets the flag `FLAG` if `VALUE` is 1, else clears it.
fn change<M: Memory, const FLAG: u64, const VALUE: u64>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.set_flags(FLAG, FLAG * VALUE);
    Ok(())
}

fn cmc<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.state.rflags ^= flag::CF;
    Ok(())
}

fn nop<M: Memory>(_: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    Ok(())
}

/// CLFLUSH: faults as a read of a byte does. There is no cache.
fn clflush<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_read(op.address.segment.into(), cpu.effective_address(op))
}
