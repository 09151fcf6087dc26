//! Software interrupts, and UD (SDM volume 2, INT n/INTO/INT3/INT1 and UD).

use crate::cpu::Cpu;
use crate::interrupts::Event;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::flag;
use crate::trap::{BP, DB, OF, Trap};
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Int => int,
        Mnemonic::Int3 => int3,
        Mnemonic::Into => into,
        Mnemonic::Int1 => int1,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => super::undefined,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Delivers the interrupt of an instruction.
    fn interrupt(&mut self, vector: u8, is_software: bool) -> Result<(), Trap> {
        let (flags, rip) = (self.state.rflags, self.next_rip);
        let event = Event { vector, error: None, is_software, flags, rip, during: None };
        self.deliver(&event)?;
        // The delivery has cleared TF before the trap is taken.
        self.skip_single_step = true;
        Ok(())
    }
}

fn int<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.interrupt(op.insn.immediate8(), true)
}

fn int3<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.interrupt(BP, true)
}

fn into<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if cpu.state.has(flag::OF) { cpu.interrupt(OF, true) } else { Ok(()) }
}

/// INT1 (ICEBP) is delivered as an exception: the DPL of the gate does not matter.
fn int1<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.interrupt(DB, false)?;
    cpu.note_debug(0);
    Ok(())
}
