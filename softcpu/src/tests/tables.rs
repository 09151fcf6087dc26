//! Tests of the system tables, and of the instructions that examine selectors.

use crate::cpu::Cpu;
use crate::memory::VecMemory;
use crate::state::{Table, flag, gpr, seg};
use crate::tests::machine::{
    CODE, DATA, Mode, descriptor, machine, machine_with, read, run, selector, set_descriptor, write,
};
use iced_x86::code_asm::*;

/// The error code in the frame of an exception.
fn error_code(cpu: &Cpu<VecMemory>) -> u64 {
    read(cpu, cpu.state.gpr[gpr::SP], 4)
}

#[test]
fn table_registers_of_each_width() {
    let operand = 0x8765_4321_abcd;
    // lgdt [DATA] with an operand size of 16 and 32 bits.
    for (code, base) in [
        (&[0x66, 0x0f, 0x01, 0x15, 0, 0, 4, 0, 0xf4][..], 0x65_4321),
        (&[0x0f, 0x01, 0x15, 0, 0, 4, 0, 0xf4], 0x8765_4321),
    ] {
        let mut cpu = machine_with(Mode::Protected, code);
        write(&cpu, DATA as usize, operand);
        assert_eq!(run(&mut cpu), None);
        assert_eq!(cpu.state.gdtr, Table { base, limit: 0xabcd });
    }
    let mut cpu = machine(Mode::Long, |a| {
        a.lidt(ptr(DATA))?;
        a.sidt(ptr(DATA + 16))?;
        a.hlt()
    });
    write(&cpu, DATA as usize, operand | 0xffff << 48);
    write(&cpu, DATA as usize + 8, 0xffff);
    assert_eq!(run(&mut cpu), None);
    assert_eq!(cpu.state.idtr, Table { base: 0xffff_ffff_8765_4321, limit: 0xabcd });
    assert_eq!(cpu.memory().read(DATA as usize, 10), cpu.memory().read(DATA as usize + 16, 10));
}

#[test]
fn stores_of_a_table_with_16_bits_have_the_whole_base() {
    let mut cpu = machine_with(Mode::Protected, &[0x66, 0x0f, 0x01, 0x05, 0, 0, 4, 0, 0xf4]);
    cpu.state.gdtr.base = 0x8765_4321;
    assert_eq!(run(&mut cpu), None);
    assert_eq!(read(&cpu, DATA + 2, 4), 0x8765_4321);
}

#[test]
fn loads_of_tables_are_privileged() {
    let mut cpu = machine(Mode::LongUser, |a| a.lgdt(ptr(DATA)));
    assert_eq!(run(&mut cpu), Some(13));
    // The base is not canonical.
    let mut cpu = machine(Mode::Long, |a| a.lgdt(ptr(DATA)));
    write(&cpu, DATA as usize + 2, 1 << 47);
    assert_eq!(run(&mut cpu), Some(13));
    let mut cpu = machine(Mode::ProtectedUser, |a| a.ltr(ax));
    assert_eq!(run(&mut cpu), Some(13));
    let mut cpu = machine_with(Mode::Real, &[0x0f, 0x00, 0xd8]); // ltr ax
    assert_eq!(run(&mut cpu), Some(6));
}

#[test]
fn ltr_makes_the_tss_busy() {
    for mode in [Mode::Protected, Mode::Long] {
        let mut cpu = machine(mode, |a| {
            a.mov(eax, 0x38)?;
            a.ltr(ax)?;
            a.str(ecx)?;
            a.hlt()
        });
        cpu.state.tr = crate::state::Segment::default();
        assert_eq!(run(&mut cpu), None);
        assert_eq!((cpu.state.tr.selector, cpu.state.tr.base, cpu.state.tr.kind), (0x38, 0x3000, 11));
        assert_eq!(read(&cpu, 0x103d, 1), 0x8b);
        assert_eq!(cpu.state.gpr[gpr::CX], 0x38);
        // A busy TSS is refused.
        cpu.state.rip = CODE;
        assert_eq!(run(&mut cpu), Some(13));
        assert_eq!(error_code(&cpu), 0x38);
    }
}

#[test]
fn ltr_and_lldt_check_the_descriptor() {
    // The selector, the high half of the descriptor, and the fault.
    let cases = [
        (true, 0x10, 0, 13, 0x10),
        (true, 0x3c, 0, 13, 0x3c),
        (true, 0, 0, 13, 0),
        (true, 0x1000, 0, 13, 0x1000),
        (true, 0x60, 0, 13, 0x60),
        (false, 0x38, 0, 13, 0x38),
        (false, 0x80, 0, 11, 0x80),
        (false, 0x60, 0x1000_0000, 13, 0x60),
        (false, 0x60, 1 << 40, 13, 0x60),
    ];
    for (is_tss, selector, upper, vector, error) in cases {
        let mut cpu = machine(Mode::Long, |a| if is_tss { a.ltr(ax) } else { a.lldt(ax) });
        set_descriptor(&cpu, 0x80, descriptor(0, 0xff, 2, 0));
        set_descriptor(&cpu, 0x68, upper);
        cpu.state.gpr[gpr::AX] = selector;
        assert_eq!(run(&mut cpu), Some(vector), "{selector:#x}");
        assert_eq!(error_code(&cpu), error, "{selector:#x}");
    }
}

#[test]
fn lldt_loads_16_bytes_in_64_bit_mode() {
    let mut cpu = machine(Mode::Long, |a| {
        a.lldt(ax)?;
        a.sldt(rcx)?;
        a.lldt(dx)?;
        a.hlt()
    });
    set_descriptor(&cpu, 0x68, 0xffff_8000);
    cpu.state.gpr[gpr::AX] = 0x60;
    cpu.run(2);
    assert_eq!((cpu.state.ldtr.base, cpu.state.ldtr.limit), (0xffff_8000_0000_3800, 0xff));
    assert_eq!(cpu.state.gpr[gpr::CX], 0x60);
    // A null selector.
    assert_eq!(run(&mut cpu), None);
    assert!(cpu.state.ldtr.unusable);
}

/// Runs LAR, LSL, VERR and VERW on a selector. Returns the rights and the limit if they are visible, and two flags.
fn examine(mode: Mode, selector: u16) -> (Option<u64>, Option<u64>, bool, bool) {
    let mut cpu = machine(mode, |a| {
        a.lar(eax, esi)?;
        a.sete(bl)?;
        a.lsl(ecx, esi)?;
        a.sete(bh)?;
        a.verr(si)?;
        a.sete(dl)?;
        a.verw(si)?;
        a.sete(dh)
    });
    set_descriptor(&cpu, 0x80, descriptor(0, 0x1_2345, 0x72, 0));
    set_descriptor(&cpu, 0x88, descriptor(0, 0x12, 0x85, 0));
    set_descriptor(&cpu, 0x90, descriptor(0, 0x12, 0xec, 0));
    set_descriptor(&cpu, 0xa0, descriptor(0, 0x12, 0xf8, 0));
    cpu.state.gpr[gpr::SI] = selector.into();
    let mut zero = Vec::new();
    for _ in 0..4 {
        cpu.state.rflags &= !flag::ZF;
        cpu.run(1);
        zero.push(cpu.state.has(flag::ZF));
        cpu.state.rip += 3;
    }
    (zero[0].then_some(cpu.state.gpr[0]), zero[1].then_some(cpu.state.gpr[1]), zero[2], zero[3])
}

#[test]
fn examination_of_selectors() {
    let cases = [
        (Mode::Protected, 0, (None, None, false, false)),
        (Mode::Protected, 0x1000, (None, None, false, false)),
        (Mode::Protected, selector::DATA, (Some(0xcf_9200), Some(0xffff_ffff), true, true)),
        (Mode::Protected, selector::DATA | 1, (None, None, false, false)),
        (Mode::Protected, selector::CODE_32, (Some(0xcf_9a00), Some(0xffff_ffff), true, false)),
        (Mode::Protected, selector::TSS, (Some(0x8900), Some(0x67), false, false)),
        (Mode::Protected, 0x80, (Some(0x1_7200), Some(0x1_2345), true, true)),
        (Mode::Protected, 0x88, (Some(0x8500), None, false, false)),
        (Mode::Protected, 0x90, (Some(0xec00), None, false, false)),
        (Mode::Protected, 0xa0, (Some(0xf800), Some(0x12), false, false)),
        (Mode::Long, 0x88, (None, None, false, false)),
        (Mode::Long, selector::TSS, (Some(0x8900), Some(0x67), false, false)),
        (Mode::LongUser, selector::DATA, (None, None, false, false)),
        (Mode::ProtectedUser, selector::CONFORMING_32, (Some(0xcf_9e00), Some(0xffff_ffff), true, false)),
    ];
    for (mode, selector, expected) in cases {
        assert_eq!(examine(mode, selector), expected, "{mode:?} {selector:#x}");
    }
}

#[test]
fn lar_and_lsl_are_undefined_in_real_mode() {
    for code in
        [[0x0f, 0x02, 0xc0], [0x0f, 0x03, 0xc0], [0x0f, 0x00, 0xe0], [0x0f, 0x00, 0xc0], [0x63, 0xc0, 0x90]]
    {
        let mut cpu = machine_with(Mode::Real, &code);
        assert_eq!(run(&mut cpu), Some(6), "{code:x?}");
    }
}

#[test]
fn arpl_raises_the_level() {
    for (to, from, result, zero) in [(0x10, 3, 0x13, true), (0x13, 2, 0x13, false), (0x12, 2, 0x12, false)] {
        let mut cpu = machine(Mode::Protected, |a| {
            a.arpl(ax, bx)?;
            a.hlt()
        });
        (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::BX]) = (to, from);
        assert_eq!(run(&mut cpu), None);
        assert_eq!((cpu.state.gpr[gpr::AX], cpu.state.has(flag::ZF)), (result, zero));
    }
}

#[test]
fn arpl_does_not_write_a_selector_that_keeps_its_level() {
    // A data segment that cannot be written.
    for (value, expected) in [(0xfff3, None), (0xfff1, Some(13))] {
        let mut cpu = machine(Mode::Protected, |a| {
            a.arpl(word_ptr(DATA), bx)?;
            a.hlt()
        });
        cpu.state.segments[seg::DS].kind = 0b0001;
        write(&cpu, DATA as usize, value);
        cpu.state.gpr[gpr::BX] = 2;
        assert_eq!(run(&mut cpu), expected);
        assert_eq!(read(&cpu, DATA, 2), value);
    }
}
