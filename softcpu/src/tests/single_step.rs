//! Tests of the single-step trap, and of RF.

use crate::exit::Exit;
use crate::state::{flag, gpr};
use crate::tests::machine::{CODE, Mode, machine, run, stack};
use iced_x86::code_asm::*;

#[test]
fn single_step_traps_after_each_instruction() {
    let mut cpu = machine(Mode::Long, |a| {
        a.nop()?;
        a.nop()
    });
    cpu.state.rflags |= flag::TF;
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(stack(&cpu, 8, 3), [CODE + 1, 8, 0x102]);
    assert_eq!(cpu.state.dr[6], 0xffff_4ff0);
    assert_eq!(cpu.state.rflags, 2);
}

#[test]
fn load_of_ss_delays_the_single_step_trap() {
    let mut cpu = machine(Mode::Protected, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    cpu.state.rip += 5;
    cpu.state.rflags |= flag::TF;
    cpu.state.gpr[gpr::AX] = 0x10;
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(stack(&cpu, 4, 1), [CODE + 8]);
    // A second load does not.
    let mut cpu = machine(Mode::Protected, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ss, eax)?;
        a.mov(ss, eax)?;
        a.nop()
    });
    cpu.state.rip += 5;
    cpu.state.rflags |= flag::TF;
    cpu.state.gpr[gpr::AX] = 0x10;
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(stack(&cpu, 4, 1), [CODE + 9]);
}

#[test]
fn software_interrupt_raises_no_single_step_trap() {
    let mut cpu = machine(Mode::Long, |a| a.int(0x40));
    cpu.state.rflags |= flag::TF;
    assert_eq!(run(&mut cpu), Some(0x40));
    assert_eq!(stack(&cpu, 8, 3), [CODE + 2, 8, 0x102]);
}

#[test]
fn fault_raises_no_single_step_trap() {
    let mut cpu = machine(Mode::Long, |a| a.ud2());
    cpu.state.rflags |= flag::TF;
    assert_eq!(run(&mut cpu), Some(6));
    assert_eq!(stack(&cpu, 8, 3), [CODE, 8, 0x1_0102]);
}

#[test]
fn single_step_trap_comes_after_the_answer_of_an_exit() {
    let mut cpu = machine(Mode::Long, |a| a.in_(al, 0x40));
    cpu.state.rflags |= flag::TF;
    assert!(matches!(cpu.run(10), Exit::PortIn { .. }));
    cpu.answer(7);
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(stack(&cpu, 8, 1), [CODE + 2]);
    assert_eq!(cpu.state.gpr[gpr::AX], 7);
}

#[test]
fn single_step_trap_comes_after_hlt() {
    let mut cpu = machine(Mode::Long, |a| a.hlt());
    cpu.state.rflags |= flag::TF;
    assert_eq!(cpu.run(10), Exit::Halted);
    assert_eq!(cpu.state.rip, CODE + 1);
    assert_eq!(run(&mut cpu), Some(1));
}

#[test]
fn iret_sets_rf_for_one_instruction() {
    let mut cpu = machine(Mode::Long, |a| {
        a.nop()?;
        a.hlt()
    });
    cpu.state.rflags |= flag::RF;
    assert_eq!(run(&mut cpu), None);
    assert_eq!(cpu.state.rflags, 2);
}
