//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS, as Intel processors execute them (SDM volume 3, section 5.8.7 and 5.8.8).

use crate::cpu::Cpu;
use crate::interrupts::debug;
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{Segment, efer, flag, gpr, seg};
use crate::trap::Trap;
use iced_x86::{Code, Instruction};

/// The flags that SYSRET loads from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;
/// The number of R11.
const R11: usize = 11;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.code() {
        Code::Syscall => syscall,
        Code::Sysretd => sysret::<M, false>,
        Code::Sysretq => sysret::<M, true>,
        Code::Sysenter => sysenter,
        Code::Sysexitd => sysexit::<M, false>,
        Code::Sysexitq => sysexit::<M, true>,
        Code::Swapgs => swapgs,
        // CR4.FSGSBASE cannot be set.
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Rdgsbase_r32 | Code::Rdgsbase_r64 => super::undefined,
        Code::Wrfsbase_r32 | Code::Wrfsbase_r64 | Code::Wrgsbase_r32 | Code::Wrgsbase_r64 => super::undefined,
        _ => return None,
    })
}

impl<M: Memory> Cpu<M> {
    /// Loads CS and SS with flat segments of the privilege `cpl`, without a look at the descriptor tables.
    fn load_flat(&mut self, cs: u16, ss: u16, cpl: u8, is_64: bool) {
        let flat = Segment {
            selector: ss & 0xfffc | u16::from(cpl),
            base: 0,
            limit: u32::MAX,
            kind: 0b0011,
            code_or_data: true,
            dpl: cpl,
            present: true,
            available: false,
            long: false,
            big: true,
            pages: true,
            unusable: false,
        };
        self.state.segments[seg::SS] = flat;
        let selector = cs & 0xfffc | u16::from(cpl);
        self.state.segments[seg::CS] = Segment { selector, kind: 0b1011, long: is_64, big: !is_64, ..flat };
    }
}

fn syscall<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if !cpu.state.is_64() || cpu.state.efer & efer::SCE == 0 {
        return Err(Trap::ud());
    }
    let [star, lstar, _, mask] = cpu.state.syscall;
    let flags = cpu.state.rflags;
    cpu.state.gpr[gpr::CX] = cpu.next_rip;
    cpu.state.gpr[R11] = flags;
    cpu.state.rflags = flags & !mask | flag::ONE;
    cpu.next_rip = lstar;
    let selector = (star >> 32) as u16;
    cpu.load_flat(selector, (selector & 0xfffc).wrapping_add(8), 0, true);
    // The mask decides about the single-step trap.
    cpu.skip_single_step = !cpu.state.has(flag::TF);
    Ok(())
}

fn sysret<M: Memory, const WIDE: bool>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if !cpu.state.is_64() || cpu.state.efer & efer::SCE == 0 {
        return Err(Trap::ud());
    }
    let target = cpu.state.gpr[gpr::CX];
    if cpu.state.cpl() != 0 || WIDE && !is_canonical(target) {
        return Err(Trap::gp());
    }
    let had_trap_flag = cpu.state.has(flag::TF);
    cpu.next_rip = if WIDE { target } else { target & 0xffff_ffff };
    cpu.state.rflags = cpu.state.gpr[R11] & SYSRET_FLAGS | flag::ONE;
    let selector = (cpu.state.syscall[0] >> 48) as u16;
    let cs = if WIDE { selector.wrapping_add(16) } else { selector };
    cpu.load_flat(cs, selector.wrapping_add(8), 3, WIDE);
    cpu.skip_single_step = !cpu.state.has(flag::TF);
    if cpu.skip_single_step || had_trap_flag {
        return Ok(());
    }
    // A single-step trap follows at once, other than after IRET.
    cpu.state.rip = cpu.next_rip;
    cpu.left = cpu.left.saturating_sub(1);
    Err(Trap::debug(debug::SINGLE_STEP))
}

fn sysenter<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let [selector, pointer, target] = cpu.state.sysenter;
    if !cpu.state.is_protected() || selector & 0xfffc == 0 {
        return Err(Trap::gp());
    }
    let is_long = cpu.state.is_long();
    let mask = if is_long { u64::MAX } else { 0xffff_ffff };
    cpu.state.rflags &= !(flag::VM | flag::IF);
    cpu.state.gpr[gpr::SP] = pointer & mask;
    cpu.next_rip = target & mask;
    let selector = selector as u16 & 0xfffc;
    cpu.load_flat(selector, selector.wrapping_add(8), 0, is_long);
    Ok(())
}

fn sysexit<M: Memory, const WIDE: bool>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.state.sysenter[0];
    let (pointer, target) = (cpu.state.gpr[gpr::CX], cpu.state.gpr[gpr::DX]);
    if !cpu.state.is_protected() || selector & 0xfffc == 0 || cpu.state.cpl() != 0 {
        return Err(Trap::gp());
    }
    if WIDE && !(is_canonical(pointer) && is_canonical(target)) {
        return Err(Trap::gp());
    }
    let mask = if WIDE { u64::MAX } else { 0xffff_ffff };
    cpu.state.gpr[gpr::SP] = pointer & mask;
    cpu.next_rip = target & mask;
    let selector = selector as u16;
    let cs = selector.wrapping_add(if WIDE { 32 } else { 16 });
    cpu.load_flat(cs, cs.wrapping_add(8), 3, WIDE);
    Ok(())
}

fn swapgs<M: Memory>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    if cpu.state.cpl() != 0 {
        return Err(Trap::gp());
    }
    let state = &mut cpu.state;
    std::mem::swap(&mut state.segments[seg::GS].base, &mut state.kernel_gs_base);
    Ok(())
}
