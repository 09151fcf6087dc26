//! Ports, and HLT (SDM volume 1, chapter 19).

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Op, segment_index};
use crate::operands::mask;
use crate::state::{flag, gpr, seg};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// The offset of the I/O map's base address in a task-state segment of 32 or 64 bits.
const IO_MAP_BASE: u64 = 102;
/// The smallest limit of a task-state segment of 32 or 64 bits.
const TSS_LIMIT: u32 = 103;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::In => input,
        Mnemonic::Out => output,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => input_string,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => output_string,
        Mnemonic::Hlt => hlt,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Checks that the code may access `size` ports from `port` (SDM volume 1, section 19.5).
    ///
    /// # Errors
    /// #GP(0), or a page fault of the read of the I/O permission bitmap.
    #[inline]
    fn check_port(&mut self, port: u16, size: u8) -> Result<(), Trap> {
        let state = &self.state;
        let privilege = (state.rflags & flag::IOPL) >> 12;
        if !state.is_protected() || (u64::from(state.cpl()) <= privilege && !state.has(flag::VM)) {
            return Ok(());
        }
        self.check_io_map(port, size)
    }

    fn check_io_map(&mut self, port: u16, size: u8) -> Result<(), Trap> {
        let tr = self.state.tr;
        // The types of an available and of a busy segment of 32 or 64 bits.
        if tr.unusable || !matches!(tr.kind, 0b1001 | 0b1011) || tr.limit < TSS_LIMIT {
            return Err(Trap::gp());
        }
        let width = if self.state.is_long() { u64::MAX } else { 0xffff_ffff };
        let map = self.load_linear(tr.base.wrapping_add(IO_MAP_BASE) & width, 2, false)?;
        // The processor reads two bytes for each access.
        let offset = map + u64::from(port >> 3);
        if offset + 1 > tr.limit.into() {
            return Err(Trap::gp());
        }
        let address = tr.base.wrapping_add(offset) & width;
        if !is_canonical(address) {
            return Err(Trap::gp());
        }
        let denied = self.load_linear(address, 2, false)? >> (port & 7);
        if denied & ((1 << size) - 1) != 0 { Err(Trap::gp()) } else { Ok(()) }
    }
}

fn input<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let port = port(cpu, op, 1)?;
    let size = op.operands[0].size;
    cpu.check_port(port, size)?;
    let value = cpu.exchange(Exit::PortIn { port, size })?;
    cpu.set(op, 0, value & mask(size))
}

fn output<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let port = port(cpu, op, 0)?;
    let size = op.operands[1].size;
    cpu.check_port(port, size)?;
    let data = cpu.get(op, 1)? as u32;
    cpu.exchange(Exit::PortOut { port, size, data }).map(drop)
}

/// The port number: DX, or an immediate byte.
fn port<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, number: usize) -> Result<u16, Trap> {
    Ok(cpu.get(op, number)? as u16)
}

/// The size of a string instruction's index and count registers, in bytes.
fn address_size(kind: OpKind) -> u8 {
    match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
        _ => 8,
    }
}

fn input_string<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let (port, size) = (cpu.gpr(gpr::DX, 2) as u16, op.operands[0].size);
    cpu.check_port(port, size)?;
    repeat(cpu, op, (gpr::DI, address_size(op.insn.op0_kind())), size, |cpu, offset| {
        cpu.check_store(seg::ES, offset, size)?;
        let value = cpu.exchange(Exit::PortIn { port, size })?;
        cpu.store(seg::ES, offset, size, value)
    })
}

fn output_string<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let segment = segment_index(op.insn.memory_segment());
    // The port is checked also if there is no element.
    let (port, size) = (cpu.gpr(gpr::DX, 2) as u16, op.operands[1].size);
    cpu.check_port(port, size)?;
    repeat(cpu, op, (gpr::SI, address_size(op.insn.op1_kind())), size, |cpu, offset| {
        let data = cpu.load(segment, offset, size)? as u32;
        cpu.exchange(Exit::PortOut { port, size, data }).map(drop)
    })
}

/// Executes `element` once, or with a repeat prefix as often as CX says. `index` is the register of the offset, with its
/// size in bytes. It moves by `size` bytes with each element.
fn repeat<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    index: (usize, u8),
    size: u8,
    element: impl Fn(&mut Cpu<M>, u64) -> Result<(), Trap>,
) -> Result<(), Trap> {
    let (register, width) = index;
    let repeats = op.insn.has_rep_prefix() || op.insn.has_repne_prefix();
    if repeats && width == 4 && cpu.state.is_64() {
        // A repetition with 32-bit addresses clears the upper half of RCX, also if the count is 0.
        cpu.set_gpr(gpr::CX, 4, cpu.gpr(gpr::CX, 4));
    }
    loop {
        let count = cpu.gpr(gpr::CX, width);
        if repeats && count == 0 {
            return Ok(());
        }
        let offset = cpu.gpr(register, width);
        element(cpu, offset)?;
        let size = u64::from(size);
        let step = if cpu.state.has(flag::DF) { size.wrapping_neg() } else { size };
        cpu.set_gpr(register, width, offset.wrapping_add(step));
        if !repeats {
            return Ok(());
        }
        cpu.set_gpr(gpr::CX, width, count.wrapping_sub(1));
        if count == 1 {
            return Ok(());
        }
        cpu.commit_answers();
        cpu.left = cpu.left.saturating_sub(1);
        // A trap follows each element.
        if cpu.left == 0 || cpu.leave_block || cpu.state.has(flag::TF) {
            return Err(Trap::Again);
        }
    }
}

fn hlt<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    // The guest goes on behind it.
    cpu.state.rip = cpu.next_rip;
    cpu.left = cpu.left.saturating_sub(1);
    Err(Trap::Halted)
}

#[cfg(test)]
#[path = "../tests/port.rs"]
mod tests;
