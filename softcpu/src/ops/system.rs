//! Model-specific registers, the time-stamp counter and CPUID (SDM volume 3, section 2.8).

use crate::cpu::Cpu;
use crate::cpuid::feature;
use crate::exit::Exit;
use crate::memory::Memory;
use crate::msr::Write;
use crate::op::{Handler, Op};
use crate::state::{cr4, gpr};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Rdpmc => rdpmc,
        Mnemonic::Cpuid => cpuid,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Writes a value of 64 bits to EDX and EAX.
    fn set_pair(&mut self, value: u64) {
        self.set_gpr(gpr::AX, 4, value);
        self.set_gpr(gpr::DX, 4, value >> 32);
    }

    fn require_time_stamp(&self) -> Result<(), Trap> {
        if self.state.cr4 & cr4::TSD == 0 { Ok(()) } else { self.require_ring_0() }
    }
}

fn rdmsr<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    let index = cpu.gpr(gpr::CX, 4) as u32;
    let known = if cpu.trapped_msrs.contains(&index) { None } else { cpu.msr(index) };
    let value = match known {
        Some(value) => value,
        None => cpu.exchange(Exit::RdMsr { index })?,
    };
    cpu.set_pair(value);
    Ok(())
}

fn wrmsr<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_ring_0()?;
    let index = cpu.gpr(gpr::CX, 4) as u32;
    let data = cpu.gpr(gpr::DX, 4) << 32 | cpu.gpr(gpr::AX, 4);
    let is_trapped = cpu.trapped_msrs.contains(&index);
    match if is_trapped { Write::Unknown } else { cpu.write_msr(index, data, false) } {
        Write::Done => Ok(()),
        Write::Refused => Err(Trap::gp()),
        Write::Unknown => cpu.exchange(Exit::WrMsr { index, data }).map(drop),
    }
}

fn rdtsc<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    cpu.require_time_stamp()?;
    cpu.set_pair(cpu.tsc());
    Ok(())
}

fn rdtscp<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if !cpu.has_feature(feature::RDTSCP) {
        return Err(Trap::ud());
    }
    cpu.require_time_stamp()?;
    cpu.set_pair(cpu.tsc());
    cpu.set_gpr(gpr::CX, 4, cpu.state.tsc_aux);
    Ok(())
}

fn rdpid<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    if !cpu.has_feature(feature::RDPID) {
        return Err(Trap::ud());
    }
    cpu.set(op, 0, cpu.state.tsc_aux)
}

/// There are no performance counters.
fn rdpmc<M: Memory>(_: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    Err(Trap::gp())
}

fn cpuid<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let (leaf, subleaf) = (cpu.gpr(gpr::AX, 4) as u32, cpu.gpr(gpr::CX, 4) as u32);
    let registers = cpu.cpuid_registers(leaf, subleaf);
    for (index, value) in [gpr::AX, gpr::BX, gpr::CX, gpr::DX].into_iter().zip(registers) {
        cpu.set_gpr(index, 4, value.into());
    }
    Ok(())
}
