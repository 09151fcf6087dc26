//! Ports, and HLT (SDM volume 1, chapter 19).

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::In => input,
        Mnemonic::Out => output,
        Mnemonic::Hlt => hlt,
        _ => return None,
    })
}

fn input<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let port = cpu.get(op, 1)? as u16;
    let size = op.operands[0].size;
    let value = cpu.exchange(Exit::PortIn { port, size })?;
    cpu.set(op, 0, value & mask(size))
}

fn output<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let port = cpu.get(op, 0)? as u16;
    let size = op.operands[1].size;
    let data = cpu.get(op, 1)? as u32;
    cpu.exchange(Exit::PortOut { port, size, data }).map(drop)
}

fn hlt<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if cpu.state.cpl() != 0 {
        return Err(Trap::gp());
    }
    // The guest goes on behind it.
    cpu.state.rip = cpu.next_rip;
    cpu.left = cpu.left.saturating_sub(1);
    Err(Trap::Halted)
}
