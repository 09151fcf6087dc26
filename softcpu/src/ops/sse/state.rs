//! MXCSR, and hints to the caches (SDM volume 1, sections 10.4.5 and 10.4.6).

use crate::cpu::Cpu;
use crate::float::mxcsr;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Ldmxcsr => ldmxcsr,
        Mnemonic::Stmxcsr => stmxcsr,
        Mnemonic::Movnti => movnti,
        _ => return None,
    })
}

fn ldmxcsr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = cpu.get(op, 0)? as u32;
    if value & !mxcsr::VALID != 0 {
        return Err(Trap::gp());
    }
    cpu.state.mxcsr = value;
    Ok(())
}

fn stmxcsr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.set(op, 0, cpu.state.mxcsr.into())
}

/// MOVNTI, which needs no XMM register and is not subject to CR0.EM and CR4.OSFXSR.
fn movnti<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let value = cpu.get(op, 1)?;
    cpu.set(op, 0, value)
}
