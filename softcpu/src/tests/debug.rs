//! Tests of single steps and of watched addresses.

use crate::debug::Watch;
use crate::exit::Exit;
use crate::state::{flag, gpr};
use crate::tests::machine::{CODE, DATA, Mode, handler, machine};
use iced_x86::code_asm::*;

/// A watch of one word of 4 bytes.
fn watch(first: u64, reads: bool, writes: bool) -> Watch {
    Watch { first, last: first + 3, reads, writes }
}

#[test]
fn a_step_is_one_instruction_in_every_mode() {
    for mode in [Mode::Real, Mode::Protected, Mode::ProtectedUser, Mode::Long, Mode::LongUser] {
        let mut cpu = machine(mode, |a| {
            a.inc(ax)?;
            a.jmp(if mode == Mode::Real { 0 } else { CODE })
        });
        let start = cpu.linear_rip();
        let length = if mode == Mode::Real { 1 } else { 2 };
        assert_eq!(cpu.step(), Exit::SliceEnd);
        let next = cpu.linear_rip();
        assert!(next > start && next <= start + 1 + length, "{mode:?}");
        assert_eq!((cpu.step(), cpu.linear_rip()), (Exit::SliceEnd, start));
        assert_eq!(cpu.instructions(), 2);
    }
}

#[test]
fn the_instruction_after_a_load_of_ss_is_a_step_of_its_own() {
    let mut cpu = machine(Mode::Protected, |a| {
        a.mov(ss, eax)?;
        a.sti()?;
        a.nop()
    });
    cpu.state.gpr[gpr::AX] = 0x10;
    for next in [2, 3, 4] {
        assert_eq!((cpu.step(), cpu.state.rip), (Exit::SliceEnd, CODE + next));
    }
}

#[test]
fn a_step_that_faults_ends_at_the_handler() {
    let mut cpu = machine(Mode::Long, |a| a.ud2());
    assert_eq!((cpu.step(), cpu.state.rip), (Exit::SliceEnd, handler(6)));
    assert_eq!(cpu.step(), Exit::Halted);
}

#[test]
fn the_flag_that_a_popf_sets_traps_after_the_next_instruction() {
    let mut cpu = machine(Mode::Long, |a| {
        a.push(0x102)?;
        a.popf()?;
        a.nop()
    });
    assert_eq!((cpu.step(), cpu.step()), (Exit::SliceEnd, Exit::SliceEnd));
    assert!(cpu.state.has(flag::TF));
    assert_eq!((cpu.step(), cpu.state.rip), (Exit::SliceEnd, handler(1)));
}

#[test]
fn each_iteration_of_a_string_instruction_is_a_step() {
    let mut cpu = machine(Mode::Long, |a| {
        a.rep().stosb()?;
        a.nop()
    });
    (cpu.state.gpr[gpr::CX], cpu.state.gpr[gpr::DI]) = (3, DATA);
    for (again, rip) in [(true, CODE), (true, CODE), (false, CODE + 2)] {
        assert_eq!((cpu.step(), cpu.starts_again(), cpu.state.rip), (Exit::SliceEnd, again, rip));
    }
    assert!((cpu.step(), cpu.starts_again()) == (Exit::SliceEnd, false));
}

#[test]
fn an_access_is_complete_in_the_step_after_its_exit() {
    let mut cpu = machine(Mode::Long, |a| a.in_(al, 0x40));
    assert_eq!(cpu.step(), Exit::PortIn { port: 0x40, size: 1 });
    cpu.answer(7);
    assert_eq!((cpu.step(), cpu.state.rip, cpu.state.gpr[gpr::AX]), (Exit::SliceEnd, CODE + 2, 7));
}

#[test]
fn watches_tell_reads_from_writes() {
    for (reads, writes, hits) in [
        (true, false, [Some(0), None, Some(0), None]),
        (false, true, [None, Some(0), Some(0), None]),
        (true, true, [Some(0), Some(0), Some(0), None]),
        (false, false, [None; 4]),
    ] {
        let mut cpu = machine(Mode::Long, |a| {
            a.mov(eax, dword_ptr(DATA))?;
            a.mov(dword_ptr(DATA), ecx)?;
            a.add(dword_ptr(DATA), 1)?;
            a.mov(dword_ptr(DATA + 4), ecx)
        });
        cpu.state.gpr[gpr::CX] = 5;
        cpu.set_watches(vec![watch(DATA, reads, writes)]);
        for hit in hits {
            assert_eq!((cpu.step(), cpu.hit()), (Exit::SliceEnd, hit));
        }
        assert_eq!(cpu.memory().read(DATA as usize, 8), [6, 0, 0, 0, 5, 0, 0, 0]);
    }
}

#[test]
fn watches_see_unaligned_wide_and_implicit_accesses() {
    let mut cpu = machine(Mode::Long, |a| {
        a.mov(qword_ptr(DATA - 4), rcx)?;
        a.movups(xmmword_ptr(DATA - 12), xmm0)?;
        a.push(rax)?;
        a.int(0x40)
    });
    cpu.state.cr4 |= crate::state::cr4::OSFXSR;
    let stack = cpu.state.gpr[gpr::SP];
    cpu.set_watches(vec![
        watch(DATA, false, true),
        watch(stack - 8, false, true),
        watch(stack - 20, false, true),
    ]);
    for hit in [0, 0, 1, 2] {
        assert_eq!((cpu.step(), cpu.hit()), (Exit::SliceEnd, Some(hit)));
    }
}

#[test]
fn code_in_a_watched_page_runs_and_its_stores_are_seen() {
    // The second instruction is overwritten with nop.
    let mut cpu = machine(Mode::Long, |a| {
        a.mov(byte_ptr(CODE + 8), 0x90)?;
        a.hlt()?;
        a.hlt()
    });
    cpu.set_watches(vec![watch(CODE + 8, true, true)]);
    assert_eq!((cpu.step(), cpu.hit()), (Exit::SliceEnd, Some(0)));
    assert_eq!((cpu.step(), cpu.hit()), (Exit::SliceEnd, None));
    assert_eq!(cpu.step(), Exit::Halted);
}

#[test]
fn an_address_without_memory_can_be_watched() {
    const MMIO: u64 = 0x20_0000;
    let mut cpu = machine(Mode::Protected, |a| a.mov(eax, dword_ptr(MMIO)));
    cpu.set_watches(vec![watch(MMIO, true, false)]);
    assert_eq!(cpu.step(), Exit::MmioRead { address: MMIO, size: 4 });
    cpu.answer(3);
    assert_eq!((cpu.step(), cpu.hit(), cpu.state.gpr[gpr::AX]), (Exit::SliceEnd, Some(0), 3));
}
