use crate::cpu::Cpu;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{flag, gpr, seg};
use crate::testing::{CODE, finish, in_mode, long_mode, protected_mode, real_mode, vector};

#[test]
fn vex_is_undefined_in_real_mode() {
    // andn eax, ebx, ecx; hlt
    let code = [0xc4, 0xe2, 0x60, 0xf2, 0xc1, 0xf4];
    assert_eq!(vector(&mut real_mode(&code)), (6, None));
    let mut cpu = protected_mode(&code, 0);
    (cpu.state.gpr[gpr::BX], cpu.state.gpr[gpr::CX]) = (0b0011, 0b0101);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[gpr::AX], 0b0100);
}

#[test]
fn lock_is_for_memory_destinations_only() {
    // lock add [rbx], eax; lock add eax, [rbx]; lock mov [rbx], eax
    let run = |code: &[u8]| {
        let mut cpu = long_mode(code, 0);
        cpu.state.gpr[gpr::BX] = 0x3000;
        finish(&mut cpu)
    };
    assert_eq!(run(&[0xf0, 0x01, 0x03, 0xf4]), Exit::Halted);
    assert_eq!(run(&[0xf0, 0x03, 0x03, 0xf4]), Exit::Shutdown);
    assert_eq!(run(&[0xf0, 0x89, 0x03, 0xf4]), Exit::Shutdown);
}

#[test]
fn an_update_of_io_memory_reads_and_writes_once() {
    // lock xadd [rbx], eax; hlt
    let mut cpu = long_mode(&[0xf0, 0x0f, 0xc1, 0x03, 0xf4], 0);
    (cpu.state.gpr[gpr::BX], cpu.state.gpr[gpr::AX]) = (0x10_0000, 5);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: 0x10_0000, size: 4 });
    cpu.answer(100);
    assert_eq!(cpu.run(10), Exit::MmioWrite { address: 0x10_0000, size: 4, data: 105 });
    assert_eq!(cpu.state.gpr[gpr::AX], 5);
    cpu.answer(0);
    assert_eq!(cpu.run(10), Exit::Halted);
    assert_eq!(cpu.state.gpr[gpr::AX], 100);
}

#[test]
fn a_far_bit_is_beside_the_operand() {
    // bts [rbx], ecx; hlt
    let mut cpu = long_mode(&[0x0f, 0xab, 0x0b, 0xf4], 0);
    (cpu.state.gpr[gpr::BX], cpu.state.gpr[gpr::CX]) = (0x3000, -33i32 as u32 as u64);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.memory().read(0x2ff8, 8), [0, 0, 0, 0x80, 0, 0, 0, 0]);
}

#[test]
fn a_wide_exchange_needs_alignment() {
    // cmpxchg16b [rbx]; hlt
    let code = [0x48, 0x0f, 0xc7, 0x0b, 0xf4];
    let mut cpu = long_mode(&code, 0);
    cpu.state.gpr[gpr::BX] = 0x3008;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    let mut cpu = long_mode(&code, 0);
    cpu.memory().write(0x3000, &[1, 0, 0, 0, 0, 0, 0, 0, 2]);
    (cpu.state.gpr[gpr::BX], cpu.state.gpr[gpr::CX]) = (0x3000, 7);
    (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::DX]) = (1, 2);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert!(cpu.state.has(flag::ZF));
    assert_eq!(cpu.memory().read(0x3000, 9), [0, 0x30, 0, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn stack_pointers_wrap_in_sixteen_bits() {
    // push ax; hlt
    let mut cpu = real_mode(&[0x50, 0xf4]);
    (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::SP]) = (0x1234, 0xabcd_0000);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[gpr::SP], 0xabcd_fffe);
    assert_eq!(cpu.memory().read(0xfffe, 2), [0x34, 0x12]);
    // pusha with SP = 5: the word at 1 is the last.
    let mut cpu = real_mode(&[0x60, 0xf4]);
    cpu.state.gpr[gpr::SP] = 5;
    assert_eq!(vector(&mut cpu).0, 12);
    assert_eq!(cpu.state.gpr[gpr::SP], 5);
}

#[test]
fn enter_takes_the_whole_stack_pointer_as_the_frame() {
    // enter 0, 1; hlt
    let mut cpu = protected_mode(&[0xc8, 0, 0, 1, 0xf4], 0);
    cpu.state.segments[seg::SS].big = false;
    (cpu.state.gpr[gpr::SP], cpu.state.gpr[gpr::BP]) = (0x1_8000, 0x5555_aaaa);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[gpr::SP], cpu.state.gpr[gpr::BP]), (0x1_7ff8, 0x1_7ffc));
    assert_eq!(cpu.memory().read(0x7ff8, 8), [0xfc, 0x7f, 1, 0, 0xaa, 0xaa, 0x55, 0x55]);
}

#[test]
fn a_branch_outside_of_the_segment_faults_at_the_branch() {
    // jmp short +0x7d; a limit before the target.
    for code in [&[0xeb, 0x7d][..], &[0xe8, 0x7d, 0, 0, 0], &[0xe2, 0x7d], &[0x75, 0x7d]] {
        let mut cpu = protected_mode(code, 0);
        cpu.state.segments[seg::CS].limit = CODE as u32 + 0x40;
        (cpu.state.gpr[gpr::CX], cpu.state.gpr[gpr::SP]) = (9, 0x8000);
        cpu.state_changed();
        assert_eq!(vector(&mut cpu), (13, Some(0)));
        assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::CX], cpu.state.gpr[gpr::SP]), (CODE, 9, 0x8000));
    }
}

#[test]
fn a_branch_to_a_noncanonical_address_faults_at_the_branch() {
    // jmp rax; call rax; push rax and ret, which faults at the ret.
    for (code, at) in [(&[0xff, 0xe0][..], 0), (&[0xff, 0xd0], 0), (&[0x50, 0xc3], 1)] {
        let mut cpu = long_mode(code, 0);
        (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::SP]) = (1 << 47, 0x8000);
        assert_eq!(vector(&mut cpu), (13, Some(0)));
        assert_eq!(cpu.state.rip, CODE + at);
        assert_eq!(cpu.state.gpr[gpr::SP], 0x8000 - 8 * at);
    }
}

#[test]
fn a_loop_counts_in_the_address_size() {
    // 67 loop $: in 16-bit code it counts ECX, in 32-bit code CX, and in 64-bit code ECX.
    for (bits, left) in [(16, 0), (32, 0xffff_0000), (64, 0)] {
        let mut cpu = in_mode(bits, &[0x67, 0xe2, 0xfd, 0xf4]);
        cpu.state.gpr[gpr::CX] = if bits == 32 { 0xffff_0005 } else { 5 };
        if bits == 64 {
            cpu.state.gpr[gpr::CX] |= 1 << 40;
        }
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[gpr::CX], left, "{bits} bits");
        assert_eq!(cpu.instructions(), 6);
    }
}

#[test]
fn the_instructions_that_the_processor_has_are_known() {
    let has = |bits, code: &[u8]| Cpu::<VecMemory>::has_instruction(bits, code);
    // popcnt eax, eax; xorps xmm0, xmm0; int 0x80; clc and a nop
    for code in [&[0xf3, 0x0f, 0xb8, 0xc0][..], &[0x0f, 0x57, 0xc0], &[0xcd, 0x80], &[0xf8, 0x90]] {
        assert!(has(64, code), "{code:x?}");
    }
    // rdrand eax; fadd st0, st1; vmcall; a byte that is no instruction in 64-bit code; a part of an instruction
    for code in [&[0x0f, 0xc7, 0xf0][..], &[0xd8, 0xc1], &[0x0f, 0x01, 0xc1], &[0x06], &[0x0f]] {
        assert!(!has(64, code), "{code:x?}");
    }
    assert!(has(32, &[0x06]), "push es");
}

#[test]
fn missing_instructions_are_no_wrong_results() {
    // rdrand eax
    let mut cpu = long_mode(&[0x0f, 0xc7, 0xf0], 0);
    assert_eq!(cpu.run(1), Exit::Unsupported(Missing::Instruction));
}

#[test]
fn division_faults_leave_the_registers() {
    // div ebx; idiv ebx with the smallest dividend.
    for (code, dx, ax, bx) in [
        ([0xf7, 0xf3], 5, 0, 5),
        ([0xf7, 0xfb], 0xffff_ffff, 0x8000_0000, 0xffff_ffff),
        ([0xf7, 0xf3], 0, 1, 0),
    ] {
        let mut cpu = protected_mode(&code, 0);
        (cpu.state.gpr[gpr::DX], cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::BX]) = (dx, ax, bx);
        assert_eq!(vector(&mut cpu), (0, None));
        assert_eq!((cpu.state.gpr[gpr::DX], cpu.state.gpr[gpr::AX], cpu.state.rip), (dx, ax, CODE));
    }
}
