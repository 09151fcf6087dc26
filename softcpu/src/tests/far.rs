//! Tests of far jumps and calls.

use crate::cpu::Cpu;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{cr0, gpr, seg};
use crate::tests::machine::{
    CODE, DATA, Mode, STACK, TSS, USER_STACK, descriptor, gate, machine, machine_with, read, run, selector,
    set_descriptor, stack, write,
};

/// The bytes of a far jump or call with an immediate pointer, in 32-bit code.
fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    [&[opcode][..], &offset.to_le_bytes(), &selector.to_le_bytes()].concat()
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

/// A processor about to execute a far jump or call, with HLT in ring 0 and a loop in ring 3 at the target.
fn transfer(mode: Mode, opcode: u8, selector: u16) -> Cpu<VecMemory> {
    let cpu = machine_with(mode, &far(opcode, selector, DATA as u32));
    let code: &[u8] = if mode == Mode::Protected { &[0xf4] } else { &[0xeb, 0xfe] };
    cpu.memory().write(DATA as usize, code);
    cpu
}

#[test]
fn real_mode_jump_and_call() {
    let mut cpu = machine_with(Mode::Real, &[0xea, 5, 0, 0, 0x40]); // jmp 4000h:5
    cpu.memory().write(0x4_0005, &[0xf4]);
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.segments[seg::CS].base, cpu.state.rip), (0x4_0000, 6));
    let mut cpu = machine_with(Mode::Real, &[0x66, 0x9a, 5, 0, 0, 0, 0, 0x40]);
    cpu.memory().write(0x4_0005, &[0xf4]);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(stack(&cpu, 4, 2), [8, 0x1000]);
    // The target is outside of the segment.
    let mut cpu = machine_with(Mode::Real, &[0x66, 0x9a, 5, 0, 1, 0, 0, 0x40]);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(stack(&cpu, 2, 1), [0]);
}

#[test]
fn jump_to_code_of_other_privilege() {
    // The selector, and the error code of #GP or #NP.
    let cases = [
        (Mode::Protected, selector::CODE_32, None),
        (Mode::Protected, selector::CODE_32 | 3, Some((13, 0x18))),
        (Mode::Protected, selector::USER_CODE_32, Some((13, 0x20))),
        (Mode::Protected, selector::CONFORMING_32, None),
        (Mode::Protected, selector::CONFORMING_32 | 3, None),
        (Mode::Protected, selector::DATA, Some((13, 0x10))),
        (Mode::Protected, 3, Some((13, 0))),
        (Mode::Protected, 0x1000, Some((13, 0x1000))),
        (Mode::Protected, 0x84, Some((13, 0x84))),
        (Mode::Protected, selector::FREE, Some((11, 0x80))),
        (Mode::ProtectedUser, selector::CODE_32, Some((13, 0x18))),
        (Mode::ProtectedUser, selector::USER_CODE_32, None),
        (Mode::ProtectedUser, selector::USER_CODE_32 & !3, None),
        (Mode::ProtectedUser, selector::CONFORMING_32, None),
        (Mode::Protected, selector::LDT, Some((13, 0x60))),
        (Mode::ProtectedUser, selector::TSS, Some((13, 0x38))),
    ];
    for (mode, selector, fault) in cases {
        for opcode in [JMP, CALL] {
            let mut cpu = transfer(mode, opcode, selector);
            set_descriptor(&cpu, selector::FREE, descriptor(0, 0xf_ffff, 0x1a, 0xc));
            let exit = cpu.run(10);
            let Some((vector, error)) = fault else {
                let expected = if mode == Mode::Protected { Exit::Halted } else { Exit::SliceEnd };
                assert_eq!(exit, expected, "{selector:#x}");
                let code = cpu.state.segments[seg::CS];
                assert_eq!(code.selector, selector & !3 | u16::from(cpu.state.cpl()), "{selector:#x}");
                assert_eq!(cpu.state.rip & !1, DATA);
                continue;
            };
            assert_eq!(crate::tests::machine::halted_in(&cpu), Some(vector), "{selector:#x}");
            assert_eq!(stack(&cpu, 4, 2), [error, CODE], "{selector:#x}");
        }
    }
}

#[test]
fn call_pushes_the_return_address() {
    let mut cpu = transfer(Mode::Protected, CALL, selector::CODE_32);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(cpu.state.gpr[gpr::SP], STACK - 8);
    assert_eq!(stack(&cpu, 4, 2), [CODE + 7, 0x18]);
}

#[test]
fn jump_sets_the_accessed_bit() {
    let mut cpu = transfer(Mode::Protected, JMP, selector::CODE_32);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(read(&cpu, 0x101d, 1), 0x9b);
    assert_eq!(cpu.state.segments[seg::CS].kind, 0xb);
}

#[test]
fn task_switches_are_not_supported() {
    let mut cpu = transfer(Mode::Protected, JMP, selector::TSS);
    assert_eq!(cpu.run(10), Exit::Unsupported(Missing::TaskSwitch));
    assert_eq!(cpu.state.rip, CODE);
    let mut cpu = transfer(Mode::Compatibility, JMP, selector::TSS);
    cpu.memory().write(DATA as usize, &[0xf4]);
    assert_eq!(run(&mut cpu), Some(13));
}

#[test]
fn call_gate_to_ring_0_copies_parameters() {
    let mut cpu = machine(Mode::ProtectedUser, |a| {
        a.push(0x11)?;
        a.push(0x22)?;
        a.push(0x33)
    });
    cpu.memory().write(CODE as usize + 6, &far(CALL, selector::FREE | 3, 0x1234));
    set_descriptor(&cpu, selector::FREE, gate(selector::CODE_32, DATA, 0xec, 2)[0]);
    cpu.memory().write(DATA as usize, &[0xf4]);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(stack(&cpu, 4, 6), [CODE + 13, 0x23, 0x33, 0x22, USER_STACK - 12, 0x2b]);
    assert_eq!(cpu.state.gpr[gpr::SP], STACK - 24);
    assert_eq!((cpu.state.cpl(), cpu.state.segments[seg::CS].selector), (0, 0x18));
}

#[test]
fn call_gate_of_16_bits() {
    let mut cpu = transfer(Mode::ProtectedUser, CALL, selector::FREE | 3);
    set_descriptor(&cpu, selector::FREE, gate(selector::CODE_32, 0x9000, 0xe4, 1)[0]);
    write(&cpu, USER_STACK as usize, 0xabcd);
    cpu.memory().write(0x9000, &[0xf4]);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(stack(&cpu, 2, 5), [7, 0x23, 0xabcd, 0, 0x2b]);
}

#[test]
fn call_gate_in_long_mode() {
    for mode in [Mode::CompatibilityUser, Mode::LongUser] {
        let mut cpu = transfer(mode, CALL, selector::FREE | 3);
        if mode == Mode::LongUser {
            // call dword far [DATA + 16]
            cpu.memory().write(CODE as usize, &[0xff, 0x1c, 0x25, 0x10, 0, 4, 0]);
            write(&cpu, DATA as usize + 16, u64::from(selector::FREE | 3) << 32);
        }
        let [low, high] = gate(selector::CODE_64, DATA, 0xec, 0);
        set_descriptor(&cpu, selector::FREE, low);
        set_descriptor(&cpu, selector::FREE + 8, high);
        cpu.memory().write(DATA as usize, &[0xf4]);
        assert_eq!(run(&mut cpu), None);
        let code = if mode == Mode::LongUser { 0x33 } else { 0x23 };
        assert_eq!(stack(&cpu, 8, 4), [CODE + 7, code, USER_STACK, 0x2b]);
        assert!(cpu.state.is_64() && cpu.state.cpl() == 0);
        assert_eq!(cpu.state.segments[seg::SS].selector, 0);
    }
}

#[test]
fn gate_privilege_and_presence() {
    // The access byte of the gate, its code segment, and the fault.
    let cases = [
        (0x8c, selector::CODE_32, 13, 0x80),
        (0x6c, selector::CODE_32, 11, 0x80),
        (0xec, 0, 13, 0),
        (0xec, selector::DATA, 13, 0x10),
        (0xec, 0x1000, 13, 0x1000),
    ];
    for (access, target, vector, error) in cases {
        let mut cpu = transfer(Mode::ProtectedUser, CALL, selector::FREE | 3);
        set_descriptor(&cpu, selector::FREE, gate(target, DATA, access, 0)[0]);
        assert_eq!(run(&mut cpu), Some(vector), "{access:#x}");
        assert_eq!(stack(&cpu, 4, 2), [error, CODE], "{access:#x}");
    }
}

#[test]
fn jump_through_a_gate_keeps_the_privilege() {
    let mut cpu = transfer(Mode::ProtectedUser, JMP, selector::FREE | 3);
    set_descriptor(&cpu, selector::FREE, gate(selector::CODE_32, DATA, 0xec, 0)[0]);
    assert_eq!(run(&mut cpu), Some(13));
    assert_eq!(stack(&cpu, 4, 2), [0x18, CODE]);
    set_descriptor(&cpu, selector::FREE, gate(selector::CONFORMING_32, DATA, 0xec, 0)[0]);
    let mut cpu = transfer(Mode::ProtectedUser, JMP, selector::FREE | 3);
    set_descriptor(&cpu, selector::FREE, gate(selector::CONFORMING_32, DATA, 0xec, 0)[0]);
    assert_eq!(cpu.run(10), Exit::SliceEnd);
    assert_eq!((cpu.state.cpl(), cpu.state.segments[seg::CS].selector), (3, 0x5b));
}

#[test]
fn stack_fault_on_the_inner_stack_names_it() {
    let mut cpu = transfer(Mode::ProtectedUser, CALL, selector::FREE | 3);
    set_descriptor(&cpu, selector::FREE, gate(selector::CODE_32, DATA, 0xec, 0)[0]);
    // An expand-up segment of 4 KiB.
    set_descriptor(&cpu, 0x90, descriptor(0, 0xfff, 0x92, 4));
    write(&cpu, TSS + 4, 0x8000 | 0x90 << 32);
    // #SS is delivered on the same stack, and then the double fault.
    assert_eq!(cpu.run(10), Exit::Shutdown);
    let fault = cpu.death().unwrap().faults[0];
    assert_eq!((fault.vector, fault.error), (12, Some(0x90)));
}

#[test]
fn from_compatibility_mode_to_64_bit_mode_and_back() {
    let mut cpu = machine_with(Mode::Compatibility, &far(JMP, selector::CODE_64, DATA as u32));
    // jmp dword far [rip + 1]; hlt
    cpu.memory().write(DATA as usize, &[0xff, 0x2d, 1, 0, 0, 0, 0xf4]);
    cpu.memory().write(DATA as usize + 7, &[0, 0, 5, 0, 0x18, 0]);
    cpu.memory().write(0x5_0000, &[0x40, 0xf4]); // inc eax in 32-bit code, a prefix in 64-bit code
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.rip, cpu.state.code_bits(), cpu.state.gpr[gpr::AX]), (0x5_0002, 32, 1));
}

#[test]
fn far_pointer_of_64_bits() {
    let mut cpu = machine_with(Mode::Long, &[0x48, 0xff, 0x2c, 0x25, 0, 0, 4, 0]);
    write(&cpu, DATA as usize, 0x2_0000_0000 | DATA);
    write(&cpu, DATA as usize + 8, selector::CODE_64.into());
    cpu.state.gpr[gpr::AX] = 7;
    // The page is not mapped.
    assert_eq!(run(&mut cpu), Some(14));
    assert_eq!(cpu.state.cr2, 0x2_0000_0000 | DATA);
}

#[test]
fn real_mode_after_a_jump_with_the_old_attributes() {
    // The code runs with PE clear, and the 32-bit attributes of protected mode.
    let mut cpu = machine_with(Mode::Protected, &far(JMP, 0x1000, 0x10));
    cpu.memory().write(0x1_0010, &[0xb8, 1, 0, 0, 0, 0xf4]);
    cpu.state.cr0 &= !cr0::PE;
    cpu.state_changed();
    assert_eq!(run(&mut cpu), None);
    assert_eq!((cpu.state.rip, cpu.state.segments[seg::CS].base), (0x16, 0x1_0000));
}
