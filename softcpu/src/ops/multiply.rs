//! Multiplication and division (SDM volume 1, section 7.3.2.4). The flags that the SDM leaves undefined are as processors
//! of Intel set them.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::{mask, sign_extend};
use crate::state::{flag, gpr};
use crate::trap::{DE, Trap};
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match (insn.mnemonic(), insn.op_count()) {
        (Mnemonic::Mul, _) => mul,
        (Mnemonic::Imul, 1) => imul,
        (Mnemonic::Imul, count) => {
            if count == 2 {
                imul_two
            } else {
                imul_three
            }
        }
        (Mnemonic::Div, _) => div,
        (Mnemonic::Idiv, _) => idiv,
        _ => return None,
    })
}

/// The flags of a product. `is_wide`: it does not fit into the low half.
fn product_flags(low: u64, is_wide: bool, size: u8) -> u64 {
    let carries = if is_wide { flag::CF | flag::OF } else { 0 };
    flags::of_result(low, size) & !flag::ZF | carries
}

/// Writes a product, or the remainder and quotient, of twice `size` bytes: AX, or the data register and the accumulator.
fn set_pair<M: Memory>(cpu: &mut Cpu<M>, size: u8, high: u64, low: u64) {
    if size == 1 {
        cpu.set_gpr(gpr::AX, 2, (high & 0xff) << 8 | low & 0xff);
    } else {
        cpu.set_gpr(gpr::AX, size, low);
        cpu.set_gpr(gpr::DX, size, high);
    }
}

/// The dividend of twice `size` bytes.
fn dividend<M: Memory>(cpu: &Cpu<M>, size: u8) -> u128 {
    match size {
        1 => cpu.gpr(gpr::AX, 2).into(),
        _ => {
            let (high, low) = (cpu.gpr(gpr::DX, size), cpu.gpr(gpr::AX, size));
            u128::from(high) << (8 * u32::from(size & 15)) | u128::from(low)
        }
    }
}

fn mul<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let (a, b) = (cpu.gpr(gpr::AX, size), cpu.get(op, 0)?);
    let product = u128::from(a).wrapping_mul(b.into());
    let (low, high) = (product as u64 & mask(size), (product >> (8 * u32::from(size & 15))) as u64);
    set_pair(cpu, size, high, low);
    cpu.set_status(product_flags(low, high != 0, size));
    Ok(())
}

/// A signed product of values of `size` bytes, its low half, and true if it does not fit into that.
fn signed_product(a: u64, b: u64, size: u8) -> (i128, u64, bool) {
    let signed = |value| i128::from(sign_extend(value, size) as i64);
    let product = signed(a).wrapping_mul(signed(b));
    let low = product as u64 & mask(size);
    (product, low, signed(low) != product)
}

fn imul<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let (product, low, is_wide) = signed_product(cpu.gpr(gpr::AX, size), cpu.get(op, 0)?, size);
    set_pair(cpu, size, (product >> (8 * u32::from(size & 15))) as u64, low);
    cpu.set_status(product_flags(low, is_wide, size));
    Ok(())
}

/// IMUL with a destination: multiplies operands `first` and `second`.
fn imul_to<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, first: usize, second: usize) -> Result<(), Trap> {
    let (_, low, is_wide) = signed_product(cpu.get(op, first)?, cpu.get(op, second)?, op.size);
    cpu.set(op, 0, low)?;
    cpu.set_status(product_flags(low, is_wide, op.size));
    Ok(())
}

fn imul_two<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    imul_to(cpu, op, 0, 1)
}

fn imul_three<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    imul_to(cpu, op, 1, 2)
}

fn div<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let divisor = u128::from(cpu.get(op, 0)?);
    let dividend = dividend(cpu, size);
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return Err(Trap::fault(DE));
    };
    if quotient > mask(size).into() {
        return Err(Trap::fault(DE));
    }
    set_pair(cpu, size, remainder as u64, quotient as u64);
    Ok(())
}

fn idiv<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let size = op.size;
    let divisor = i128::from(sign_extend(cpu.get(op, 0)?, size) as i64);
    // The sign of the dividend, moved to bit 127 and back.
    let unused = 128 - 16 * u32::from(size & 15).clamp(1, 8);
    let dividend = (dividend(cpu, size) << unused) as i128 >> unused;
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return Err(Trap::fault(DE));
    };
    if i128::from(sign_extend(quotient as u64 & mask(size), size) as i64) != quotient {
        return Err(Trap::fault(DE));
    }
    set_pair(cpu, size, remainder as u64, quotient as u64);
    Ok(())
}
