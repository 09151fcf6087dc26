//! Loads and stores of MXCSR (SDM volume 1, section 10.4.5).

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
