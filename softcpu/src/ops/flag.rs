//! The interrupt flag, and RFLAGS on the stack (SDM volume 2, CLI, STI, PUSHF and POPF).

use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::flags::merge;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{State, cr4, flag};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

/// The flags that POPF changes in every ring. VIF and VIP stay as they are.
const ORDINARY: u64 = flag::STATUS | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID | flag::RF;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => pushf,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => popf,
        _ => return None,
    })
}

/// The privilege that IOPL grants to use ports and the interrupt flag.
fn has_io_privilege(state: &State) -> bool {
    u64::from(state.cpl()) <= (state.rflags & flag::IOPL) >> 12
}

/// The flag that CLI and STI change: IF, or with protected-mode virtual interrupts VIF.
fn interrupt_flag(state: &State) -> Result<u64, Trap> {
    if state.has(flag::VM) {
        return Err(Trap::Unsupported(Missing::Virtual8086));
    }
    match has_io_privilege(state) {
        true => Ok(flag::IF),
        false if state.cpl() == 3 && state.cr4 & cr4::PVI != 0 => Ok(flag::VIF),
        false => Err(Trap::gp()),
    }
}

fn cli<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let flag = interrupt_flag(&cpu.state)?;
    cpu.state.rflags &= !flag;
    Ok(())
}

fn sti<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let which = interrupt_flag(&cpu.state)?;
    if which == flag::VIF && cpu.state.has(flag::VIP) {
        return Err(Trap::gp());
    }
    if which == flag::IF && !cpu.state.has(flag::IF) {
        cpu.shadow = true;
        cpu.leave_block = true;
    }
    cpu.state.rflags |= which;
    Ok(())
}

/// The size of the value that PUSHF and POPF move, in bytes.
fn size<M: Memory>(op: &Op<M>) -> u8 {
    op.insn.stack_pointer_increment().unsigned_abs() as u8
}

fn pushf<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if cpu.state.has(flag::VM) {
        return Err(Trap::Unsupported(Missing::Virtual8086));
    }
    cpu.push(size(op), cpu.state.rflags & !(flag::VM | flag::RF))
}

fn popf<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if cpu.state.has(flag::VM) {
        return Err(Trap::Unsupported(Missing::Virtual8086));
    }
    let size = size(op);
    let value = cpu.peek(size, 0)?;
    let mut changed = ORDINARY;
    if has_io_privilege(&cpu.state) {
        changed |= flag::IF;
    }
    if cpu.state.cpl() == 0 {
        changed |= flag::IOPL;
    }
    if size == 2 {
        changed &= 0xffff;
    }
    // RF becomes 0.
    cpu.state.rflags = merge(cpu.state.rflags, changed, value & !flag::RF);
    cpu.drop_stack(size.into());
    cpu.leave_block = true;
    Ok(())
}

#[cfg(test)]
#[path = "../tests/flag.rs"]
mod tests;
