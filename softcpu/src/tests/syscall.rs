//! Tests of the fast system calls.

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{efer, flag, gpr, seg};
use crate::tests::machine::{CODE, DATA, Mode, STACK, USER_STACK, machine, machine_with, read, run};
use iced_x86::code_asm::*;

/// A processor with model-specific registers for system calls, and a loop at the target.
fn prepared(mode: Mode, code: &[u8]) -> Cpu<VecMemory> {
    let mut cpu = machine_with(mode, code);
    cpu.state.syscall = [0x0023_0008 << 32, DATA, 0, flag::IF | flag::TF | flag::DF];
    cpu.state.sysenter = [0x0b, 0xffff_8000_0000_0000 | STACK, DATA];
    cpu.memory().write(DATA as usize, &[0xeb, 0xfe]);
    cpu
}

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRET: &[u8] = &[0x0f, 0x07];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

fn selectors(cpu: &Cpu<VecMemory>) -> (u16, u16) {
    (cpu.state.segments[seg::CS].selector, cpu.state.segments[seg::SS].selector)
}

#[test]
fn syscall_enters_ring_0() {
    let mut cpu = prepared(Mode::LongUser, SYSCALL);
    cpu.state.rflags |= flag::IF | flag::TF | flag::CF | flag::DF;
    assert_eq!(cpu.run(2), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.cpl(), selectors(&cpu)), (DATA, 0, (8, 0x10)));
    assert_eq!((cpu.state.gpr[gpr::CX], cpu.state.gpr[11]), (CODE + 2, 0x703));
    assert_eq!(cpu.state.rflags, 3);
    assert_eq!(cpu.state.gpr[gpr::SP], USER_STACK);
}

#[test]
fn syscall_is_undefined_outside_of_64_bit_mode() {
    for mode in [Mode::Real, Mode::Protected, Mode::CompatibilityUser] {
        assert_eq!(run(&mut prepared(mode, SYSCALL)), Some(6));
    }
    for code in [SYSCALL, SYSRETQ] {
        let mut cpu = prepared(Mode::Long, code);
        cpu.state.efer &= !efer::SCE;
        assert_eq!(run(&mut cpu), Some(6));
    }
}

#[test]
fn sysret_returns_to_ring_3() {
    for (code, expected, bits) in [(SYSRET, (0x23, 0x2b), 32), (SYSRETQ, (0x33, 0x2b), 64)] {
        let mut cpu = prepared(Mode::Long, code);
        cpu.state.gpr[gpr::CX] = DATA;
        cpu.state.gpr[11] = flag::IF | flag::RF | flag::VM | flag::ID;
        assert_eq!(cpu.run(1), Exit::SliceEnd);
        assert_eq!((cpu.state.rip, cpu.state.cpl(), selectors(&cpu)), (DATA, 3, expected));
        assert_eq!((cpu.state.code_bits(), cpu.state.rflags), (bits, flag::IF | flag::ID | 2));
    }
}

#[test]
fn sysret_with_tf_traps_at_once() {
    let mut cpu = prepared(Mode::Long, SYSRETQ);
    cpu.state.gpr[gpr::CX] = DATA;
    cpu.state.gpr[11] = flag::TF;
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(read(&cpu, cpu.state.gpr[gpr::SP], 8), DATA);
    // SYSRET, and the HLT of the handler.
    assert_eq!(cpu.instructions(), 2);
}

#[test]
fn sysret_faults_in_ring_0() {
    let mut cpu = prepared(Mode::Long, SYSRETQ);
    cpu.state.gpr[gpr::CX] = 1 << 47;
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(read(&cpu, cpu.state.gpr[gpr::SP] + 16, 8), 8);
    assert_eq!(run(&mut prepared(Mode::LongUser, SYSRETQ)), Some(13));
}

#[test]
fn sysenter_enters_ring_0() {
    for mode in [Mode::ProtectedUser, Mode::CompatibilityUser, Mode::LongUser] {
        let mut cpu = prepared(mode, SYSENTER);
        cpu.state.rflags |= flag::IF;
        assert_eq!(cpu.run(1), Exit::SliceEnd);
        assert_eq!((cpu.state.rip, cpu.state.cpl(), selectors(&cpu)), (DATA, 0, (8, 0x10)));
        assert_eq!(cpu.state.rflags, 2);
        let is_long = mode != Mode::ProtectedUser;
        let mask = if is_long { u64::MAX } else { 0xffff_ffff };
        assert_eq!(cpu.state.gpr[gpr::SP], cpu.state.sysenter[1] & mask);
        assert_eq!(cpu.state.code_bits(), if is_long { 64 } else { 32 });
    }
}

#[test]
fn sysexit_returns_to_ring_3() {
    for (mode, code, expected, bits) in [
        (Mode::Protected, SYSEXIT, (0x1b, 0x23), 32),
        (Mode::Long, SYSEXIT, (0x1b, 0x23), 32),
        (Mode::Long, SYSEXITQ, (0x2b, 0x33), 64),
    ] {
        let mut cpu = prepared(mode, code);
        cpu.state.gpr[gpr::CX] = USER_STACK;
        cpu.state.gpr[gpr::DX] = DATA;
        assert_eq!(cpu.run(1), Exit::SliceEnd);
        assert_eq!((cpu.state.rip, cpu.state.cpl(), selectors(&cpu)), (DATA, 3, expected));
        assert_eq!((cpu.state.gpr[gpr::SP], cpu.state.code_bits()), (USER_STACK, bits));
    }
}

#[test]
fn sysenter_and_sysexit_fault() {
    assert_eq!(run(&mut prepared(Mode::Real, SYSENTER)), Some(13));
    let mut cpu = prepared(Mode::Protected, SYSENTER);
    cpu.state.sysenter[0] = 3;
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(run(&mut prepared(Mode::ProtectedUser, SYSEXIT)), Some(13));
    let mut cpu = prepared(Mode::Long, SYSEXITQ);
    cpu.state.gpr[gpr::DX] = 1 << 47;
    assert_eq!(run(&mut cpu), Some(13));
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut cpu = machine(Mode::Long, |a| {
        a.swapgs()?;
        a.hlt()
    });
    cpu.state.kernel_gs_base = 0x1234;
    cpu.state.segments[seg::GS].base = 0x5678;
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.segments[seg::GS].base, cpu.state.kernel_gs_base), (0x1234, 0x5678));
    assert_eq!(run(&mut machine(Mode::LongUser, |a| a.swapgs())), Some(13));
    assert_eq!(run(&mut machine(Mode::Protected, |a| a.db(&[0x0f, 0x01, 0xf8]))), Some(6));
    assert_eq!(run(&mut machine(Mode::Long, |a| a.rdfsbase(rax))), Some(6));
}
