//! Tests of RET far and IRET.

use crate::cpu::Cpu;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{flag, gpr, seg};
use crate::tests::machine::{
    CODE, DATA, Mode, STACK, USER_STACK, descriptor, machine_with, read, run, selector, set_descriptor, write,
};

const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];
const RETF: &[u8] = &[0xcb];

/// A processor about to execute `code` with these values of `size` bytes on its stack, and a loop at the target.
fn returning(mode: Mode, code: &[u8], size: usize, values: &[u64]) -> Cpu<VecMemory> {
    let cpu = machine_with(mode, code);
    let pointer = cpu.state.gpr[gpr::SP] as usize;
    for (index, value) in values.iter().enumerate() {
        cpu.memory().write(pointer + index * size, &value.to_le_bytes()[..size]);
    }
    cpu.memory().write(DATA as usize, &[0xeb, 0xfe]);
    cpu
}

/// The error code and the address in the frame of an exception.
fn frame(cpu: &Cpu<VecMemory>, size: u64) -> (u64, u64) {
    let pointer = cpu.state.gpr[gpr::SP];
    (read(cpu, pointer, size as usize), read(cpu, pointer + size, size as usize))
}

#[test]
fn to_the_same_privilege() {
    let flags = flag::CF | flag::IF | flag::IOPL | flag::RF | flag::VIP | flag::ID;
    let mut cpu = returning(Mode::Protected, IRET, 4, &[DATA, 0x18, flags]);
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.rflags), (DATA, flags | 2));
    assert_eq!(cpu.state.gpr[gpr::SP], STACK + 12);
    let mut cpu = returning(Mode::Protected, &[0x66, 0xcf], 2, &[0x9000, 0x18, 0x4007]);
    cpu.state.rflags |= flag::AC;
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.rflags), (0x9000, 0x4007 | flag::AC));
}

#[test]
fn ring_3_cannot_change_iopl_and_if() {
    let flags = flag::CF | flag::IF | flag::IOPL | flag::VIP | flag::VM | flag::ID;
    let mut cpu = returning(Mode::ProtectedUser, IRET, 4, &[DATA, 0x23, flags]);
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.rflags), (DATA, flag::CF | flag::ID | 2));
    // IF with IOPL 3.
    let mut cpu = returning(Mode::ProtectedUser, IRET, 4, &[DATA, 0x23, flag::IF]);
    cpu.state.rflags |= flag::IOPL;
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!(cpu.state.rflags, flag::IF | flag::IOPL | 2);
}

#[test]
fn to_ring_3_unloads_inner_segments() {
    for (code, values) in [
        (IRET, &[DATA, 0x23, 0x202, USER_STACK, 0x2b][..]),
        (RETF, &[DATA, 0x23, USER_STACK, 0x2b]),
        (&[0xca, 8, 0], &[DATA, 0x23, 0, 0, USER_STACK - 8, 0x2b]),
    ] {
        let mut cpu = returning(Mode::Protected, code, 4, values);
        cpu.state.segments[seg::FS].dpl = 3;
        cpu.state.segments[seg::GS].selector = 3;
        cpu.state.segments[seg::GS].unusable = true;
        assert_eq!(cpu.run(1), Exit::SliceEnd);
        let segments = cpu.state.segments;
        assert_eq!((cpu.state.rip, cpu.state.cpl()), (DATA, 3));
        assert_eq!(cpu.state.gpr[gpr::SP], USER_STACK);
        assert_eq!(segments.map(|segment| segment.selector), [0, 0x23, 0x2b, 0, 0x10, 0]);
        assert!(segments[seg::DS].unusable && segments[seg::ES].unusable && !segments[seg::FS].unusable);
    }
}

#[test]
fn to_a_stack_of_16_bits_changes_only_sp() {
    let mut cpu = returning(Mode::Protected, IRET, 4, &[DATA, 0x23, 2, 0x1111_2222, 0x83]);
    set_descriptor(&cpu, selector::FREE, descriptor(0, 0xffff, 0xf2, 0));
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!(cpu.state.gpr[gpr::SP], STACK & 0xffff_0000 | 0x2222);
}

#[test]
fn faults() {
    // The frame, the vector and the error code.
    let cases: [(&[u64], u8, u64); 12] = [
        (&[DATA, 0, 2], 13, 0),
        (&[DATA, 0x10, 2], 13, 0x10),
        (&[DATA, 0x1000, 2], 13, 0x1000),
        (&[DATA, 0x20, 2], 13, 0x20),
        (&[DATA, 0x1b, 2], 13, 0x18),
        (&[DATA, 0x80, 2], 11, 0x80),
        (&[0x1_0000, 0x48, 2], 13, 0),
        (&[DATA, 0x23, 2, USER_STACK, 0], 13, 0),
        (&[DATA, 0x23, 2, USER_STACK, 0x10], 13, 0x10),
        (&[DATA, 0x23, 2, USER_STACK, 0x28], 13, 0x28),
        (&[DATA, 0x23, 2, USER_STACK, 0x8b], 12, 0x88),
        (&[DATA, 0x5b, 2, USER_STACK, 0x33], 13, 0x30),
    ];
    for (values, vector, error) in cases {
        let mut cpu = returning(Mode::Protected, IRET, 4, values);
        set_descriptor(&cpu, selector::FREE, descriptor(0, 0xf_ffff, 0x1a, 0xc));
        set_descriptor(&cpu, selector::FREE + 8, descriptor(0, 0xf_ffff, 0x72, 0xc));
        assert_eq!(run(&mut cpu), Some(vector), "{values:x?}");
        assert_eq!(frame(&cpu, 4), (error, CODE), "{values:x?}");
        assert_eq!(cpu.state.gpr[gpr::SP], STACK - 16);
    }
}

#[test]
fn ring_3_cannot_return_inwards() {
    let mut cpu = returning(Mode::ProtectedUser, IRET, 4, &[DATA, 0x18, 2]);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(frame(&cpu, 4), (0x18, CODE));
}

#[test]
fn iretq_always_loads_the_stack() {
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 8, 0x202, 0x5_0000, 0x10]);
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::SP], cpu.state.rflags), (DATA, 0x5_0000, 0x202));
    // A null stack segment is allowed.
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 8, 2, 0x5_0000, 0]);
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert!(cpu.state.segments[seg::SS].unusable);
    assert_eq!(cpu.state.cpl(), 0);
}

#[test]
fn iretq_to_ring_3() {
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 0x33, 0x202, USER_STACK, 0x2b]);
    // The base of FS, whose selector is null, stays.
    cpu.state.segments[seg::FS].base = 0x1234;
    cpu.state.segments[seg::FS].unusable = true;
    cpu.state.segments[seg::FS].selector = 0;
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.cpl(), cpu.state.gpr[gpr::SP]), (DATA, 3, USER_STACK));
    assert!(cpu.state.is_64());
    assert_eq!(cpu.state.segments[seg::FS].base, 0x1234);
}

#[test]
fn iretq_to_compatibility_mode() {
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 0x23, 0x202, 0xffff_0000_0003_0000, 0x2b]);
    assert_eq!(cpu.run(1), Exit::SliceEnd);
    assert_eq!((cpu.state.rip, cpu.state.cpl(), cpu.state.gpr[gpr::SP]), (DATA, 3, USER_STACK));
    assert_eq!(cpu.state.code_bits(), 32);
    // A null stack segment is not allowed there.
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 0x18, 0x202, STACK, 0]);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(frame(&cpu, 8), (0, CODE));
}

#[test]
fn iretq_to_an_address_that_is_not_canonical() {
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[1 << 47, 0x33, 0x202, USER_STACK, 0x2b]);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(frame(&cpu, 8), (0, CODE));
    assert_eq!(read(&cpu, cpu.state.gpr[gpr::SP] + 16, 8), 8);
}

#[test]
fn nested_tasks_and_virtual_8086_mode_are_not_supported() {
    let mut cpu = returning(Mode::Protected, IRET, 4, &[DATA, 0x18, 2]);
    cpu.state.rflags |= flag::NT;
    assert_eq!(cpu.run(1), Exit::Unsupported(Missing::TaskSwitch));
    let mut cpu = returning(Mode::Protected, IRET, 4, &[DATA, 0x18, flag::VM]);
    assert_eq!(cpu.run(1), Exit::Unsupported(Missing::Virtual8086));
    assert_eq!(cpu.state.rip, CODE);
    let mut cpu = returning(Mode::Long, IRETQ, 8, &[DATA, 8, 2, STACK, 0x10]);
    cpu.state.rflags |= flag::NT;
    assert_eq!(run(&mut cpu), Some(13));
}

#[test]
fn real_mode_returns() {
    let mut cpu = machine_with(Mode::Real, &[0xca, 4, 0]); // retf 4
    write(&cpu, 0x2_0000, 0x4000_0005);
    cpu.memory().write(0x4_0005, &[0xf4]);
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::SP]), (6, 0x8008));
    // EIP is more than 16 bits.
    let mut cpu = machine_with(Mode::Real, &[0x66, 0xcf]);
    write(&cpu, 0x2_0000, 0x4000_0001_0005);
    assert_eq!(run(&mut cpu), Some(13));
}

#[test]
fn single_step_after_iret_comes_one_instruction_later() {
    let mut cpu = returning(Mode::Protected, IRET, 4, &[DATA, 0x18, flag::TF | 2]);
    cpu.memory().write(DATA as usize, &[0x90, 0x90]);
    assert_eq!(run(&mut cpu), Some(1));
    assert_eq!(read(&cpu, cpu.state.gpr[gpr::SP], 4), DATA + 1);
}
