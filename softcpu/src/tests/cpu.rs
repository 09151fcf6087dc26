//! Code that changes, that crosses pages, and that is not valid; and a run in small steps.

use crate::cpuid::supported_cpuid;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{State, cr4, flag, seg};
use crate::testing::{CODE, PML4, assemble, finish, in_mode, long_mode, protected_mode, real_mode, vector};
use crate::{Cpu, Memory};
use iced_x86::code_asm::*;
use proptest::prelude::*;

/// A store into the next instruction counts at once (SDM volume 3, section 12.6).
#[test]
fn a_store_changes_its_own_block() {
    let code = assemble(32, CODE, |a| {
        a.mov(byte_ptr(CODE + 8), 0x55).unwrap();
        a.mov(al, 0x11).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = protected_mode(&code, 0);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[0], 0x55);
}

/// An instruction is executed again after its exit, but its block was entered only once for it.
#[test]
fn an_exit_is_one_entry_of_its_block() {
    let code = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.in_(al, 0x60u32).unwrap();
        a.jmp(top).unwrap();
    });
    let mut cpu = long_mode(&code, 0);
    for _ in 0..10 {
        assert!(matches!(cpu.run(1000), Exit::PortIn { port: 0x60, .. }));
        cpu.answer(7);
    }
    assert_eq!(cpu.block(CODE).map(|(_, entered)| entered), Some(10));
    assert_eq!(cpu.block(CODE + 2).map(|(_, entered)| entered), Some(9));
    assert!(cpu.recent().eq([CODE, CODE + 2].into_iter().cycle().take(19)));
}

/// A loop changes a block that was already decoded, also through another mapping of the page.
#[test]
fn a_store_changes_another_block() {
    for alias in [0u64, 0x20_0000] {
        let code = assemble(64, CODE, |a| {
            let (mut top, mut target) = (a.create_label(), a.create_label());
            a.set_label(&mut top).unwrap();
            a.lea(rbx, ptr(target)).unwrap();
            a.jmp(target).unwrap();
            a.set_label(&mut target).unwrap();
            a.add(eax, 1).unwrap();
            a.mov(byte_ptr(rbx + (1 + alias as i32)), 0x10).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = long_mode(&code, 0);
        cpu.memory().write((PML4 + 0x2008) as usize, &0x87u64.to_le_bytes());
        cpu.state_changed();
        cpu.state.gpr[1] = 3;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[0], 0x21, "{alias:#x}");
    }
}

#[test]
fn the_host_changes_code_between_runs() {
    let mut cpu = protected_mode(&[0xb0, 0x11, 0xeb, 0xfc], 0); // mov al, 0x11; jmp back
    cpu.run(10);
    assert_eq!(cpu.state.gpr[0], 0x11);
    cpu.memory().write(0x1001, &[0x22]);
    cpu.run(10);
    assert_eq!(cpu.state.gpr[0], 0x22);
}

/// The same code at two addresses: what is relative to RIP differs.
#[test]
fn a_page_is_mapped_twice() {
    let mut cpu = long_mode(&[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4], 0); // lea rax, [rip]; hlt
    cpu.memory().write((PML4 + 0x2008) as usize, &0x87u64.to_le_bytes());
    cpu.state_changed();
    for at in [0x1000, 0x20_1000, 0x1000] {
        cpu.state.rip = at;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[0], at + 7);
    }
}

/// An instruction in two pages, which are not neighbours in memory. Its bytes change, and its second page goes away.
#[test]
fn an_instruction_crosses_pages() {
    let mut cpu = long_mode(&[], 0);
    let page_table = PML4 + 0x3000;
    cpu.memory().write((PML4 + 0x2000) as usize, &(page_table | 7).to_le_bytes());
    for (page, frame) in [(1u64, 1u64), (2, 5)] {
        cpu.memory().write((page_table + 8 * page) as usize, &(frame << 12 | 7).to_le_bytes());
    }
    cpu.state_changed();
    cpu.memory().write(0x1ffe, &[0xb8, 0x11]); // mov eax, 0x44332211
    cpu.memory().write(0x5000, &[0x22, 0x33, 0x44, 0xf4]);
    for second in [0x22, 0x99] {
        cpu.memory().write(0x5000, &[second]);
        cpu.state.rip = 0x1ffe;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[0], 0x4433_0011 | u64::from(second) << 8);
    }
    cpu.memory().write((page_table + 16) as usize, &[0; 8]);
    cpu.state_changed();
    cpu.state.rip = 0x1ffd;
    cpu.memory().write(0x1ffd, &[0x90]);
    cpu.state.gpr[0] = 0;
    assert_eq!(finish(&mut cpu), Exit::Shutdown);
    let death = cpu.death().unwrap();
    assert_eq!((death.faults[0].vector, death.faults[0].error, death.rip), (14, Some(0), 0x1ffe));
}

/// An instruction has at most 15 bytes.
#[test]
fn long_instructions() {
    for (bits, at) in [(16, 0x1000), (32, 0x1000), (64, 0x1000), (32, 0x1ffa), (64, 0x1ff8)] {
        for (prefixes, valid) in [(14, true), (15, false)] {
            let mut cpu = in_mode(bits, &[]);
            let bytes = [&[0x3e; 15][..prefixes], &[0x90, 0xf4]].concat();
            cpu.memory().write(at, &bytes);
            cpu.state.rip = at as u64;
            if valid {
                assert_eq!(finish(&mut cpu), Exit::Halted, "{bits}");
                assert_eq!(cpu.instructions(), 2);
            } else {
                assert_eq!(vector(&mut cpu).0, 13, "{bits} {at:#x}");
            }
        }
    }
}

/// A jump into the middle of an instruction decodes from there.
#[test]
fn a_jump_into_an_instruction() {
    // mov eax, 0xf402b090 holds nop; mov al, 2; hlt.
    let mut cpu = protected_mode(&[0xb8, 0x90, 0xb0, 0x02, 0xf4, 0xeb, 0xfa], 0);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[0], cpu.state.rip), (0xf402_b002, 0x1005));
}

/// Code at the end of a segment: execution past the limit is #GP, and a flat segment wraps at 4 GiB.
#[test]
fn code_at_the_end_of_its_segment() {
    let mut cpu = real_mode(&[]);
    cpu.memory().write(0xfffe, &[0x90, 0x90, 0xf4]);
    cpu.state.rip = 0xfffe;
    assert_eq!(vector(&mut cpu).0, 13);
    assert_eq!(cpu.death().unwrap().rip, 0x1_0000);
    // The instruction itself crosses the limit.
    let mut cpu = protected_mode(&[0x90, 0xb8, 1, 0, 0, 0, 0xf4], 0);
    cpu.state.segments[seg::CS].limit = 0x1004;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    assert_eq!(cpu.death().unwrap().rip, 0x1001);
    let mut cpu = protected_mode(&[0x90, 0xb8, 1, 0, 0, 0, 0xf4], 0);
    cpu.state.segments[seg::CS].limit = 0x1006;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    // A base moves the last bytes before 4 GiB into memory.
    let mut cpu = protected_mode(&[], 0);
    cpu.state.segments[seg::CS].base = 0x2000;
    cpu.memory().write(0x1ffe, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    cpu.state.rip = 0xffff_fffe;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[0], cpu.state.rip), (0x4433_2211, 4));
}

/// The number of blocks is bounded, and so is what is known of pages.
#[test]
fn memory_is_bounded() {
    let memory = VecMemory::new(64 << 20);
    let mut cpu = Cpu::new(memory);
    cpu.state = protected_mode(&[], 0).state;
    for page in 0..(64u64 << 8) {
        // jmp to the next page
        cpu.memory().write((page << 12) as usize, &[0xe9, 0xfb, 0x0f, 0, 0]);
    }
    cpu.state.rip = 0;
    assert_eq!(cpu.run(16_000), Exit::SliceEnd);
    assert_eq!(cpu.state.rip, 16_000 << 12);
    assert!(cpu.blocks.iter().count() <= 4096);
    assert!(cpu.blocks.pages() <= 8192, "{}", cpu.blocks.pages());
}

/// All that a guest can see, and all that it has written.
type Seen = (State, Vec<u8>, Vec<Exit>, u64);

/// Runs a guest for `total` instructions, in runs of `step`. Each access reads the same value.
fn observe(mut cpu: Cpu<VecMemory>, total: u64, step: u64) -> Seen {
    let mut exits = Vec::new();
    while cpu.instructions() < total {
        let before = cpu.instructions();
        let exit = cpu.run(step.min(total - before));
        assert!(exit != Exit::SliceEnd || cpu.left == 0);
        assert!(cpu.instructions() - before <= step, "too many instructions");
        match exit {
            Exit::SliceEnd => assert_ne!(cpu.instructions(), before, "no progress"),
            _ => exits.push(exit),
        }
        if matches!(exit, Exit::Halted | Exit::Shutdown | Exit::Unsupported(_)) || exits.len() > 300 {
            break;
        }
        cpu.answer(0x1234_5678_9abc_def0);
    }
    let instructions = cpu.instructions();
    (cpu.state.clone(), cpu.memory().read(0, cpu.memory().size()), exits, instructions)
}

/// A guest of random bytes: the mode, the registers, the flags, and the code.
fn guest(mode: usize, registers: &[u32], flags: u64, code: &[u8]) -> Cpu<VecMemory> {
    let mut cpu = match mode {
        0 => real_mode(code),
        1 => protected_mode(code, 0),
        2 => protected_mode(code, 3),
        3 => long_mode(code, 0),
        4 => long_mode(code, 3),
        _ => {
            // Compatibility mode.
            let mut cpu = long_mode(code, 0);
            let code = &mut cpu.state.segments[seg::CS];
            (code.long, code.big) = (false, true);
            cpu
        }
    };
    cpu.set_cpuid(supported_cpuid());
    cpu.state.cr4 |= cr4::OSFXSR;
    cpu.state.rflags = 2 | flags & (flag::STATUS | flag::DF | flag::AC | flag::TF);
    for (register, value) in cpu.state.gpr.iter_mut().zip(registers) {
        *register = u64::from(*value);
    }
    // Handlers for all vectors in real mode, at the code.
    cpu.state.idtr.limit = if mode == 0 { 0x3ff } else { 0 };
    for number in 0..if mode == 0 { 256 } else { 0 } {
        cpu.memory().write(4 * number, &[0x02, 0x10, 0, 0]);
    }
    cpu.state_changed();
    cpu
}

/// Bytes like an instruction: prefixes in any order, an opcode, and operands that often are in memory.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = prop::sample::select(vec![
        0x26u8, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x40, 0x48, 0x44, 0x41,
    ]);
    let opcode = prop_oneof![
        4 => any::<u8>().prop_map(|byte| vec![byte]),
        2 => any::<u8>().prop_map(|byte| vec![0x0f, byte]),
        // String instructions, short branches, flags and ports.
        1 => prop::sample::select(vec![0xa4u8, 0xa5, 0xa6, 0xaa, 0xab, 0xac, 0xae, 0x6c, 0x6e, 0x74, 0x75, 0xe2, 0xeb])
            .prop_map(|byte| vec![byte]),
        1 => prop::sample::select(vec![0x9cu8, 0x9d, 0xfa, 0xfb, 0x9b, 0xcf, 0xcb, 0xe4, 0xe6, 0xec, 0xee, 0xf1, 0xcc])
            .prop_map(|byte| vec![byte]),
    ];
    let rest = prop::collection::vec(prop_oneof![Just(0u8), 0u8..8, any::<u8>()], 0..6);
    (prop::collection::vec(prefixes, 0..3), opcode, rest)
        .prop_map(|(prefixes, opcode, rest)| [prefixes, opcode, rest].concat())
}

/// Code for [`guest`].
fn code() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 1..120),
        3 => prop::collection::vec(instruction(), 1..30).prop_map(|parts| parts.concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Random bytes do not hang or panic, and a run in steps of one instruction is the same as a run at once.
    #[test]
    fn steps_agree_with_a_run(
        mode in 0usize..6,
        registers in prop::collection::vec(prop_oneof![0u32..0x12_0000, any::<u32>(), 0x0ff0u32..0x1100], 16),
        flags in any::<u64>(),
        code in code(),
        step in 1u64..7,
    ) {
        let whole = observe(guest(mode, &registers, flags, &code), 600, 10_000);
        let single = observe(guest(mode, &registers, flags, &code), 600, 1);
        let text = |seen: &Seen| format!("{:x?}\n{:x?} {}", seen.0, seen.2, seen.3);
        prop_assert!(whole == single, "{}\n{}", text(&whole), text(&single));
        let some = observe(guest(mode, &registers, flags, &code), 600, step);
        prop_assert!(whole == some);
    }
}

/// A repetition that overwrites itself is decoded anew for the next element, also at the end of a page.
#[test]
fn a_repetition_changes_itself() {
    for at in [0x1000u64, 0x1fff] {
        let mut cpu = protected_mode(&[], 0);
        cpu.memory().write(at as usize, &[0xf3, 0xaa, 0xf4]); // rep stosb; hlt
        cpu.state.rip = at;
        (cpu.state.gpr[0], cpu.state.gpr[1], cpu.state.gpr[7]) = (0x90, 8, at + 1);
        assert_eq!(finish(&mut cpu), Exit::Halted);
        // The second byte is now that of PAUSE.
        assert_eq!((cpu.state.gpr[1], cpu.state.rip), (7, at + 3));
    }
}

/// Instructions after a repetition in the same run count, too.
#[test]
fn a_repetition_uses_its_share() {
    let code = [0xf3, 0xaa, 0x90, 0x90, 0x90, 0x90, 0xf4]; // rep stosb, and NOPs
    let mut cpu = protected_mode(&code, 0);
    (cpu.state.gpr[1], cpu.state.gpr[7]) = (8, 0x2000);
    assert_eq!(cpu.run(10), Exit::SliceEnd);
    assert_eq!((cpu.instructions(), cpu.state.rip), (10, 0x1004));
}

/// A page without code costs a store nothing.
#[test]
fn only_pages_of_code_are_watched() {
    let code = [0x88, 0x03, 0x88, 0x01, 0xf4]; // mov [ebx], al; mov [ecx], al
    let mut cpu = protected_mode(&code, 0);
    (cpu.state.gpr[3], cpu.state.gpr[1]) = (0x2000, 0x1800);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert!(cpu.blocks.code_of(0x1000) != 0 && cpu.blocks.code_of(0x2000) == 0);
    assert!(cpu.memory().page(0x1000).is_some());
}
