//! Tests of segment loads.

use crate::cpu::Cpu;
use crate::memory::VecMemory;
use crate::state::{gpr, seg};
use crate::tests::machine::{
    CODE, DATA, Mode, STACK, USER_STACK, descriptor, machine, machine_with, read, run, selector,
    set_descriptor, write,
};
use iced_x86::code_asm::*;

/// The error code and the address in the frame of an exception.
fn frame(cpu: &Cpu<VecMemory>, size: u64) -> (u64, u64) {
    let pointer = cpu.state.gpr[gpr::SP];
    (read(cpu, pointer, size as usize), read(cpu, pointer + size, size as usize))
}

/// MOV of AX to a segment register, and HLT in ring 0.
fn load(mode: Mode, register: AsmRegisterSegment, selector: u16) -> Cpu<VecMemory> {
    let mut cpu = machine(mode, |a| {
        a.mov(register, ax)?;
        a.jmp(CODE)
    });
    // Descriptors that are not present, read-only, execute-only, and expand-down.
    set_descriptor(&cpu, 0x80, descriptor(0x1000, 0x10, 0x72, 0));
    set_descriptor(&cpu, 0x88, descriptor(0x1000, 0x10, 0xf0, 0));
    set_descriptor(&cpu, 0x90, descriptor(0x1000, 0x10, 0xf8, 0));
    set_descriptor(&cpu, 0x98, descriptor(0x1234_5678, 0x10, 0xf6, 0xc));
    cpu.state.gpr[gpr::AX] = selector.into();
    cpu
}

#[test]
fn real_mode_load_changes_only_the_base() {
    let mut cpu = machine(Mode::Real, |a| {
        a.mov(ds, ax)?;
        a.mov(bx, ds)?;
        a.hlt()
    });
    cpu.state.gpr[gpr::AX] = 0x4321;
    cpu.state.segments[seg::DS].limit = u32::MAX;
    let old = cpu.state.segments[seg::DS];
    assert_eq!(run(&mut cpu), None);
    let new = cpu.state.segments[seg::DS];
    assert_eq!(new, crate::state::Segment { selector: 0x4321, base: 0x4_3210, ..old });
    assert_eq!(cpu.state.gpr[gpr::BX], 0x4321);
}

#[test]
fn loads_that_succeed() {
    let cases = [
        (Mode::Protected, ds, selector::DATA),
        (Mode::Protected, ds, selector::USER_DATA),
        (Mode::Protected, ds, selector::CODE_32),
        (Mode::Protected, es, 3),
        (Mode::Protected, ss, selector::DATA),
        (Mode::ProtectedUser, fs, selector::USER_DATA),
        (Mode::ProtectedUser, gs, selector::USER_DATA & !3),
        (Mode::ProtectedUser, gs, selector::CONFORMING_32),
        (Mode::ProtectedUser, gs, 0x8b),
        (Mode::ProtectedUser, ss, 0x9b),
        (Mode::Long, ss, 0),
    ];
    for (mode, register, selector) in cases {
        let mut cpu = load(mode, register, selector);
        assert_eq!(cpu.run(1), crate::Exit::SliceEnd);
        let index = crate::op::segment_index(register.into());
        assert_eq!(cpu.state.segments[index].selector, selector);
        assert_eq!(cpu.state.segments[index].unusable, selector < 4);
    }
}

#[test]
fn loads_that_fault() {
    let cases = [
        (Mode::Protected, ds, 0x1000, 13, 0x1000),
        (Mode::Protected, ds, 0x14, 13, 0x14),
        (Mode::Protected, ds, selector::DATA | 1, 13, 0x10),
        (Mode::Protected, ds, selector::TSS, 13, 0x38),
        (Mode::Protected, ds, 0x90, 13, 0x90),
        (Mode::Protected, ds, 0x80, 11, 0x80),
        (Mode::Protected, ss, 0, 13, 0),
        (Mode::Protected, ss, selector::USER_DATA, 13, 0x28),
        (Mode::Protected, ss, selector::CODE_32, 13, 0x18),
        (Mode::ProtectedUser, ss, 0x83, 12, 0x80),
        (Mode::ProtectedUser, ss, 0x8b, 13, 0x88),
        (Mode::ProtectedUser, ss, 3, 13, 0),
        (Mode::ProtectedUser, ds, selector::DATA, 13, 0x10),
        (Mode::ProtectedUser, ds, selector::CODE_32 | 3, 13, 0x18),
        (Mode::LongUser, ss, 3, 13, 0),
        (Mode::Long, ss, 1, 13, 0),
        (Mode::Compatibility, ss, 0, 13, 0),
    ];
    for (mode, register, selector, vector, error) in cases {
        let mut cpu = load(mode, register, selector);
        assert_eq!(run(&mut cpu), Some(vector), "{mode:?} {selector:#x}");
        let size = if cpu.state.is_long() { 8 } else { 4 };
        assert_eq!(frame(&cpu, size), (error, CODE), "{mode:?} {selector:#x}");
    }
}

#[test]
fn load_fills_the_hidden_part_and_sets_accessed() {
    let mut cpu = load(Mode::ProtectedUser, ds, 0x9b);
    cpu.run(1);
    let segment = cpu.state.segments[seg::DS];
    assert_eq!((segment.base, segment.limit, segment.kind, segment.dpl), (0x1234_5678, 0x1_0fff, 7, 3));
    assert!(segment.big && segment.pages && segment.present && !segment.long && !segment.available);
    assert_eq!(read(&cpu, 0x109d, 1), 0xf7);
}

#[test]
fn local_descriptor_table() {
    let mut cpu = load(Mode::Protected, ds, 0x0c);
    cpu.state.ldtr = descriptor_table(0x3800, 0xf);
    write(&cpu, 0x3808, descriptor(0x5000, 0xfff, 0x92, 4));
    cpu.run(1);
    assert_eq!(cpu.state.segments[seg::DS].base, 0x5000);
    let mut cpu = load(Mode::Protected, ds, 0x0c);
    cpu.state.ldtr = descriptor_table(0x3800, 0xe);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(frame(&cpu, 4).0, 0x0c);
}

fn descriptor_table(base: u64, limit: u32) -> crate::state::Segment {
    crate::state::Segment { base, limit, ..crate::state::Segment::default() }
}

#[test]
fn mov_to_cs_is_undefined() {
    let mut cpu = machine_with(Mode::Protected, &[0x8e, 0xc8]);
    assert_eq!(run(&mut cpu), Some(6));
}

#[test]
fn stores_of_each_width() {
    let mut cpu = machine(Mode::Long, |a| {
        a.mov(eax, ds)?;
        a.mov(cx, ds)?;
        a.mov(rdx, ds)?;
        a.mov(dword_ptr(DATA), ds)?;
        a.hlt()
    });
    cpu.state.gpr[..4].fill(u64::MAX);
    write(&cpu, DATA as usize, u64::MAX);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(cpu.state.gpr[..3], [0x10, 0xffff_ffff_ffff_0010, 0x10]);
    assert_eq!(read(&cpu, DATA, 8), 0xffff_ffff_ffff_0010);
}

#[test]
fn push_of_4_bytes_writes_only_the_selector() {
    let mut cpu = machine(Mode::Protected, |a| {
        a.push(ds)?;
        a.pop(es)?;
        a.push(gs)?;
        a.hlt()
    });
    write(&cpu, STACK as usize - 4, u64::MAX);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(read(&cpu, STACK - 4, 4), 0xffff_0010);
    assert_eq!(cpu.state.gpr[gpr::SP], STACK - 4);
}

#[test]
fn push_of_8_bytes_extends_the_selector() {
    let mut cpu = machine(Mode::Long, |a| {
        a.push(fs)?;
        a.hlt()
    });
    write(&cpu, STACK as usize - 8, u64::MAX);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(read(&cpu, STACK - 8, 8), 0x10);
}

#[test]
fn pop_that_faults_keeps_the_stack_pointer() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.pop(ds));
    write(&cpu, USER_STACK as usize, 0x10);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(read(&cpu, cpu.state.gpr[gpr::SP] + 16, 4), USER_STACK);
}

#[test]
fn far_pointers_are_loaded() {
    let mut cpu = machine(Mode::Protected, |a| {
        a.lss(esp, fword_ptr(DATA))?;
        a.les(ax, dword_ptr(DATA + 16))?;
        a.hlt()
    });
    write(&cpu, DATA as usize, 0x0010_0005_0000);
    write(&cpu, DATA as usize + 16, 0x002b_1234);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(cpu.state.gpr[gpr::SP], 0x5_0000);
    assert_eq!((cpu.state.gpr[gpr::AX], cpu.state.segments[seg::ES].selector), (0x1234, 0x2b));
}

#[test]
fn far_pointer_that_faults_changes_nothing() {
    let mut cpu = machine(Mode::ProtectedUser, |a| a.lds(eax, fword_ptr(DATA)));
    write(&cpu, DATA as usize, 0x0010_0005_0000);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(cpu.state.gpr[gpr::AX], 0);
}
