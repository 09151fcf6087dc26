//! Control and debug registers, the TLB and the caches (SDM volume 3, chapter 2).

use super::undefined;
use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::paging::Access;
use crate::state::{cr0, cr4};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

/// The bits of DR6 that a write changes, and those that are always set.
const DR6_BITS: u64 = 0xe00f;
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6.BD: an access to a debug register was detected.
const DR6_BD: u64 = 1 << 13;
/// The bits of DR7 that a write changes, and the one that is always set.
const DR7_BITS: u64 = 0xffff_2bff;
const DR7_ONE: u64 = 1 << 10;
/// DR7: the enable bits of the breakpoints.
const DR7_ENABLES: u64 = 0xff;
/// DR7.GD: accesses to debug registers raise #DB.
const DR7_GD: u64 = 1 << 13;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Mov if insn.op0_register().is_cr() => write_control,
        Mnemonic::Mov if insn.op1_register().is_cr() => read_control,
        Mnemonic::Mov if insn.op0_register().is_dr() => write_debug,
        Mnemonic::Mov if insn.op1_register().is_dr() => read_debug,
        // The test registers of the 80486.
        Mnemonic::Mov if insn.op0_register().is_tr() || insn.op1_register().is_tr() => undefined,
        Mnemonic::Clts => clts,
        Mnemonic::Lmsw => lmsw,
        Mnemonic::Smsw => smsw,
        Mnemonic::Invlpg => invlpg,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => wbinvd,
        Mnemonic::Clflush | Mnemonic::Clflushopt => clflush,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Raises #GP(0) outside of ring 0.
    #[inline]
    pub(crate) fn require_ring_0(&self) -> Result<(), Trap> {
        if self.state.cpl() == 0 { Ok(()) } else { Err(Trap::gp()) }
    }
}

fn write_control<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let number = op.operands[0].index;
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Trap::ud());
    }
    cpu.require_ring_0()?;
    let value = cpu.get(op, 1)?;
    match number {
        0 => return cpu.write_cr0(value),
        2 => cpu.state.cr2 = value,
        3 => return cpu.write_cr3(value),
        4 => return cpu.write_cr4(value),
        _ if value > 15 => return Err(Trap::gp()),
        _ => cpu.state.cr8 = value,
    }
    Ok(())
}

fn read_control<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let state = &cpu.state;
    let value = match op.operands[1].index {
        0 => state.cr0,
        2 => state.cr2,
        3 => state.cr3,
        4 => state.cr4,
        8 => state.cr8,
        _ => return Err(Trap::ud()),
    };
    cpu.require_ring_0()?;
    cpu.set(op, 0, value)
}

impl<M: Memory> Cpu<M> {
    /// Checks an access to debug register `number`. Returns its index in the state (SDM volume 3, section 18.2).
    fn debug_register(&self, number: u8) -> Result<usize, Trap> {
        let index = match number {
            4 | 5 if self.state.cr4 & cr4::DE != 0 => return Err(Trap::ud()),
            4 | 5 => number + 2,
            0..=7 => number,
            _ => return Err(Trap::ud()),
        };
        self.require_ring_0()?;
        if self.state.dr[7] & DR7_GD != 0 {
            return Err(Trap::debug(DR6_BD));
        }
        Ok(index.into())
    }
}

fn write_debug<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let index = cpu.debug_register(op.operands[0].index)?;
    let value = cpu.get(op, 1)?;
    let value = match index {
        6 | 7 if value >> 32 != 0 => return Err(Trap::gp()),
        6 => value & DR6_BITS | DR6_ONES,
        // There are no breakpoints.
        7 if value & DR7_ENABLES != 0 => return Err(Trap::Unsupported(Missing::Breakpoint)),
        7 => value & DR7_BITS | DR7_ONE,
        _ => value,
    };
    cpu.state.dr[index & 7] = value;
    Ok(())
}

fn read_debug<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let index = cpu.debug_register(op.operands[1].index)?;
    cpu.set(op, 0, cpu.state.dr[index & 7])
}

fn clts<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    cpu.state.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW can set CR0.PE, but not clear it.
fn lmsw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    let value = cpu.get(op, 0)?;
    let others = cpu.state.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    cpu.write_cr0(others | value & (cr0::PE | cr0::MP | cr0::EM | cr0::TS))
}

fn smsw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.set(op, 0, cpu.state.cr0)
}

fn invlpg<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    let base = cpu.state.segments[usize::from(op.address.segment) % 6].base;
    let is_flat = cpu.state.is_64() && op.address.segment < 4;
    let linear = cpu.effective_address(op).wrapping_add(if is_flat { 0 } else { base }) & cpu.linear_mask();
    if is_canonical(linear) {
        cpu.tlb.flush_page(linear);
        cpu.leave_block = true;
    }
    Ok(())
}

/// There are no caches to write back.
fn wbinvd<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()
}

/// CLFLUSH has the checks of a load of one byte.
fn clflush<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if op.operands[0].kind != Kind::Memory {
        return Err(Trap::ud());
    }
    let offset = cpu.effective_address(op);
    let linear = cpu.linear(op.address.segment.into(), offset, 1, Access::Read)?;
    cpu.translate(linear, Access::Read, cpu.is_user()).map(drop)
}

#[cfg(test)]
#[path = "../tests/control.rs"]
mod tests;
