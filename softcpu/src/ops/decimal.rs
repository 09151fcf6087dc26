//! Decimal arithmetic (SDM volume 1, section 5.1.3). The flags that the SDM leaves undefined are as processors of Intel
//! set them.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{flag, gpr};
use crate::trap::{DE, Trap};
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    })
}

/// The flags in `carries`, and those of the result in AL.
fn set_al<M: Memory>(cpu: &mut Cpu<M>, result: u64, carries: u64) {
    cpu.set_gpr(gpr::AX, 1, result);
    cpu.set_status(flags::of_result(result, 1) | carries);
}

/// DAA and DAS: adds a multiple of 6 to AL, or subtracts it.
fn adjust<M: Memory>(cpu: &mut Cpu<M>, adjusted: impl Fn(u64, u64) -> u64, borrows: bool) {
    let al = cpu.gpr(gpr::AX, 1);
    let (mut result, mut carries) = (al, 0);
    if al & 0xf > 9 || cpu.state.has(flag::AF) {
        result = adjusted(result, 6);
        carries |= flag::AF;
        if borrows && al < 6 {
            carries |= flag::CF;
        }
    }
    if al > 0x99 || cpu.state.has(flag::CF) {
        result = adjusted(result, 0x60);
        carries |= flag::CF;
    }
    set_al(cpu, result & 0xff, carries);
}

fn daa<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    adjust(cpu, u64::wrapping_add, false);
    Ok(())
}

fn das<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    adjust(cpu, u64::wrapping_sub, true);
    Ok(())
}

/// AAA and AAS: adds `step` to AX if AL is not a decimal digit.
fn adjust_digit<M: Memory>(cpu: &mut Cpu<M>, step: u64) {
    let ax = cpu.gpr(gpr::AX, 2);
    let is_carry = ax & 0xf > 9 || cpu.state.has(flag::AF);
    let result = if is_carry { ax.wrapping_add(step) } else { ax };
    cpu.set_gpr(gpr::AX, 2, result & 0xff0f);
    let carries = if is_carry { flag::AF | flag::CF } else { 0 };
    cpu.set_status(flags::of_result(result & 0xf, 1) | carries);
}

fn aaa<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    adjust_digit(cpu, 0x106);
    Ok(())
}

fn aas<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    adjust_digit(cpu, 0u64.wrapping_sub(0x106));
    Ok(())
}

fn aam<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (al, base) = (cpu.gpr(gpr::AX, 1), op.immediate & 0xff);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Trap::fault(DE));
    };
    cpu.set_gpr(gpr::AX, 2, high << 8 | low);
    cpu.set_status(flags::of_result(low, 1));
    Ok(())
}

fn aad<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let ax = cpu.gpr(gpr::AX, 2);
    let (a, b) = (ax & 0xff, ((ax >> 8) * (op.immediate & 0xff)) & 0xff);
    let result = (a + b) & 0xff;
    cpu.set_gpr(gpr::AX, 2, result);
    cpu.set_status(flags::of_add(a, b, result, 1));
    Ok(())
}
