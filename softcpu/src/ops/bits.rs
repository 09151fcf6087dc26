//! Bits (SDM volume 1, section 7.3.7). The flags that the SDM leaves undefined are as processors of Intel set them.

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::operands::{mask, sign_extend};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Bt => bt,
        Mnemonic::Bts => bts,
        Mnemonic::Btr => btr,
        Mnemonic::Btc => btc,
        Mnemonic::Bsf => bsf,
        Mnemonic::Bsr => bsr,
        Mnemonic::Popcnt => popcnt,
        Mnemonic::Lzcnt => lzcnt,
        Mnemonic::Tzcnt => tzcnt,
        Mnemonic::Crc32 => crc32,
        _ => return None,
    })
}

/// Tests a bit, and replaces the operand by `changed` of it and of the bit. A bit number in a register selects a bit of
/// memory far from the operand's address (SDM volume 2, section 3.1.1.9).
#[inline]
fn test_bit<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    changed: Option<fn(u64, u64) -> u64>,
) -> Result<(), Trap> {
    let size = op.size;
    let bits = 8 * u64::from(size);
    let number = cpu.get(op, 1)?;
    let bit = 1 << (number & (bits - 1));
    let value = if op.operands[0].kind == Kind::Memory {
        let mut offset = cpu.effective_address(op);
        if op.operands[1].kind == Kind::Gpr {
            let units = sign_extend(number, size) as i64 >> bits.trailing_zeros();
            offset = offset.wrapping_add((units as u64).wrapping_mul(size.into())) & op.address.mask;
        }
        let segment = op.address.segment.into();
        match changed {
            Some(changed) => {
                let value = cpu.load_for_update(segment, offset, size)?;
                cpu.store(segment, offset, size, changed(value, bit))?;
                value
            }
            None => cpu.load(segment, offset, size)?,
        }
    } else {
        let value = cpu.get(op, 0)?;
        if let Some(changed) = changed {
            cpu.set(op, 0, changed(value, bit))?;
        }
        value
    };
    cpu.set_flags(flag::CF, if value & bit != 0 { flag::CF } else { 0 });
    Ok(())
}

fn bt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    test_bit(cpu, op, None)
}

fn bts<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    test_bit(cpu, op, Some(|value, bit| value | bit))
}

fn btr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    test_bit(cpu, op, Some(|value, bit| value & !bit))
}

fn btc<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    test_bit(cpu, op, Some(|value, bit| value ^ bit))
}

/// BSF and BSR. A source of zero leaves the destination.
fn scan<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, found: impl Fn(u64) -> u32) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    if value == 0 {
        cpu.set_status(flag::ZF | flag::PF);
        return Ok(());
    }
    let position = u64::from(found(value));
    cpu.set(op, 0, position)?;
    cpu.set_status(flags::of_result(position, 1) & flag::PF);
    Ok(())
}

fn bsf<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    scan(cpu, op, u64::trailing_zeros)
}

fn bsr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    scan(cpu, op, |value| 63 - value.leading_zeros())
}

fn popcnt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    cpu.set(op, 0, value.count_ones().into())?;
    cpu.set_status(if value == 0 { flag::ZF } else { 0 });
    Ok(())
}

/// LZCNT and TZCNT: writes a count of zero bits, which is the operand's width for a source of zero.
fn count_zeros<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, value: u64, count: u32) -> Result<(), Trap> {
    cpu.set(op, 0, count.into())?;
    let carry = if value == 0 { flag::CF } else { 0 };
    let zero = if count == 0 { flag::ZF } else { 0 };
    cpu.set_status(carry | zero);
    Ok(())
}

fn lzcnt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    let unused = mask(op.size).leading_zeros();
    count_zeros(cpu, op, value, value.leading_zeros() - unused)
}

fn tzcnt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    count_zeros(cpu, op, value, value.trailing_zeros().min(8 * u32::from(op.size)))
}

/// CRC32 with the polynomial 0x11edc6f41, reflected.
fn crc32<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    let mut crc = cpu.get(op, 0)? as u32;
    for byte in value.to_le_bytes().into_iter().take(op.operands[1].size.into()) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    cpu.set(op, 0, crc.into())
}
