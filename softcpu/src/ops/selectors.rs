//! Instructions that examine selectors: LAR, LSL, VERR, VERW and ARPL (SDM volume 3, section 5.10).

use crate::cpu::Cpu;
use crate::descriptors::{Descriptor, is_null, rpl, system};
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Lar => lar,
        Mnemonic::Lsl => lsl,
        Mnemonic::Verr => verr,
        Mnemonic::Verw => verw,
        Mnemonic::Arpl => arpl,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    fn set_zero_flag(&mut self, set: bool) {
        self.state.rflags = self.state.rflags & !flag::ZF | if set { flag::ZF } else { 0 };
    }

    /// The descriptor of the selector that is operand `number`, if the current privilege may use it.
    fn visible_descriptor(&mut self, op: &Op<M>, number: usize) -> Result<Option<Descriptor>, Trap> {
        if !self.state.is_protected() {
            return Err(Trap::ud());
        }
        let selector = self.get(op, number)? as u16;
        if is_null(selector) {
            return Ok(None);
        }
        let level = rpl(selector).max(self.state.cpl());
        let descriptor = self.read_descriptor(selector)?;
        let visible = descriptor.filter(|found| found.is_conforming() || found.dpl() >= level);
        let is_wide = visible.is_some_and(|found| self.is_wide(found));
        if is_wide && self.read_upper_descriptor(selector)?.is_none() {
            return Ok(None);
        }
        Ok(visible)
    }

    /// True for a descriptor of 16 bytes.
    fn is_wide(&self, descriptor: Descriptor) -> bool {
        self.state.is_64() && !descriptor.is_code_or_data()
    }
}

/// True for a system descriptor whose limit LSL can load.
const fn has_limit(kind: u8, is_long: bool) -> bool {
    match kind {
        system::LDT | system::TSS_32 | system::BUSY_TSS_32 => true,
        system::TSS_16 | system::BUSY_TSS_16 => !is_long,
        _ => false,
    }
}

/// True for a system descriptor whose access rights LAR can load.
const fn has_rights(kind: u8, is_long: bool) -> bool {
    match kind {
        system::CALL_32 => true,
        system::CALL_16 | system::TASK => !is_long,
        _ => has_limit(kind, is_long),
    }
}

/// Stores `value` of a descriptor in operand 0, if there is one.
fn store<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    has_value: fn(u8, bool) -> bool,
    value: fn(Descriptor) -> u64,
) -> Result<(), Trap> {
    let is_long = cpu.state.is_long();
    let descriptor = cpu.visible_descriptor(op, 1)?;
    let found = descriptor.filter(|found| found.is_code_or_data() || has_value(found.kind(), is_long));
    if let Some(descriptor) = found {
        cpu.set(op, 0, value(descriptor))?;
    }
    cpu.set_zero_flag(found.is_some());
    Ok(())
}

fn lar<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    // Processors of Intel also load the bits of the limit.
    store(cpu, op, has_rights, |descriptor| descriptor.raw >> 32 & 0x00ff_ff00)
}

fn lsl<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    store(cpu, op, has_limit, |descriptor| descriptor.segment(0).limit.into())
}

fn verr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let descriptor = cpu.visible_descriptor(op, 0)?;
    cpu.set_zero_flag(descriptor.is_some_and(|found| found.segment(0).is_readable()));
    Ok(())
}

fn verw<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let descriptor = cpu.visible_descriptor(op, 0)?;
    cpu.set_zero_flag(descriptor.is_some_and(|found| found.segment(0).is_writable()));
    Ok(())
}

/// ARPL. A selector that keeps its level is not written: processors of Intel accept it in a page that is read-only.
fn arpl<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if !cpu.state.is_protected() {
        return Err(Trap::ud());
    }
    let (to, from) = (cpu.get(op, 0)?, cpu.get(op, 1)?);
    let raises = to & 3 < from & 3;
    if raises {
        cpu.set(op, 0, to & !3 | from & 3)?;
    }
    cpu.set_zero_flag(raises);
    Ok(())
}
