use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{flag, gpr, seg};
use crate::testing::{assemble, finish, in_mode, long_mode, real_mode};
use crate::{Cpu, State};

const FROM: u64 = 0x2000;
const TO: u64 = 0x6000;

/// A processor in 64-bit mode, at a string instruction with this count.
fn string(code: &[u8], count: u64) -> Cpu<VecMemory> {
    let mut cpu = long_mode(code, 0);
    let pattern: Vec<u8> = (0..0x3000u32).map(|at| (at * 7 + (at >> 8)) as u8).collect();
    cpu.memory().write(FROM as usize, &pattern);
    let state = &mut cpu.state;
    (state.gpr[gpr::CX], state.gpr[gpr::SI], state.gpr[gpr::DI]) = (count, FROM, TO);
    cpu
}

/// The registers that a string instruction counts with.
fn counters(state: &State) -> [u64; 3] {
    [state.gpr[gpr::CX], state.gpr[gpr::SI], state.gpr[gpr::DI]]
}

const REP_MOVSB: &[u8] = &[0xf3, 0xa4, 0xf4];
const REP_MOVSQ: &[u8] = &[0xf3, 0x48, 0xa5, 0xf4];
const REP_STOSD: &[u8] = &[0xf3, 0xab, 0xf4];
const REPE_CMPSB: &[u8] = &[0xf3, 0xa6, 0xf4];
const REPNE_SCASB: &[u8] = &[0xf2, 0xae, 0xf4];

#[test]
fn a_repetition_counts_each_element() {
    for slice in [1, 2, 3, 7, 100, 5000, 20_000] {
        let mut cpu = string(REP_MOVSB, 9000);
        let mut executed = 0;
        loop {
            let exit = cpu.run(slice);
            executed += 1;
            if exit == Exit::Halted {
                break;
            }
            assert_eq!(exit, Exit::SliceEnd);
            assert_eq!(cpu.instructions(), executed * slice, "slice {slice}");
        }
        assert_eq!(cpu.instructions(), 9001);
        assert_eq!(counters(&cpu.state), [0, FROM + 9000, TO + 9000]);
        // The source ends where the target begins to overwrite it.
        let source = string(REP_MOVSB, 0).memory().read(FROM as usize, 0x3000);
        assert_eq!(cpu.memory().read(TO as usize, 9000), source[..9000], "slice {slice}");
    }
}

#[test]
fn the_largest_count_ends_with_the_slice() {
    let mut cpu = string(REP_STOSD, u64::MAX);
    cpu.state.gpr[gpr::AX] = 0x0403_0201;
    assert_eq!(cpu.run(1000), Exit::SliceEnd);
    assert_eq!(counters(&cpu.state), [u64::MAX - 1000, FROM, TO + 4000]);
    assert_eq!(cpu.memory().read(TO as usize + 3998, 4), [3, 4, 0, 0]);
}

#[test]
fn a_copy_over_itself_repeats_the_beginning() {
    let mut cpu = string(REP_MOVSB, 500);
    cpu.state.gpr[gpr::DI] = FROM + 3;
    let start = cpu.memory().read(FROM as usize, 3);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    let copy = cpu.memory().read(FROM as usize, 503);
    assert!(copy.iter().enumerate().all(|(at, byte)| *byte == start[at % 3]));
}

#[test]
fn a_copy_downwards_crosses_pages() {
    let mut cpu = string(REP_MOVSQ, 600);
    cpu.state.rflags |= flag::DF;
    (cpu.state.gpr[gpr::SI], cpu.state.gpr[gpr::DI]) = (FROM + 599 * 8, TO + 3 + 599 * 8);
    let source = cpu.memory().read(FROM as usize, 4800);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.memory().read(TO as usize + 3, 4800), source);
    assert_eq!(counters(&cpu.state), [0, FROM - 8, TO + 3 - 8]);
}

#[test]
fn a_fault_in_the_middle_keeps_the_elements_before_it() {
    let mut cpu = string(REP_STOSD, 100);
    // The limit of ES ends after 10 elements in protected mode.
    cpu = {
        let mut protected = crate::testing::protected_mode(REP_STOSD, 0);
        protected.state.gpr = cpu.state.gpr;
        protected.state.segments[seg::ES].limit = TO as u32 + 41;
        protected.state_changed();
        protected
    };
    assert_eq!(finish(&mut cpu), Exit::Shutdown);
    assert_eq!(cpu.death().unwrap().faults[0].vector, 13);
    assert_eq!(counters(&cpu.state), [90, FROM, TO + 40]);
}

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut cpu = real_mode(REP_MOVSB);
    cpu.memory().write(0xfff0, &[1; 16]);
    cpu.memory().write(0, &[2; 4]);
    let state = &mut cpu.state;
    (state.gpr[gpr::CX], state.gpr[gpr::SI], state.gpr[gpr::DI]) = (0xabcd_0014, 0x1111_fff0, 0x2222_3000);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.memory().read(0x3000, 21), [[1; 16].as_slice(), &[2; 4], &[0]].concat());
    assert_eq!(counters(&cpu.state), [0xabcd_0000, 0x1111_0004, 0x2222_3014]);
}

#[test]
fn elements_in_io_memory_are_accessed_once_each() {
    let io = 0x10_0000;
    let mut cpu = string(REP_MOVSB, 3);
    cpu.state.gpr[gpr::DI] = io;
    for (address, byte) in (io..).zip(cpu.memory().read(FROM as usize, 3)) {
        assert_eq!(cpu.run(100), Exit::MmioWrite { address, size: 1, data: byte.into() });
        cpu.answer(0);
    }
    assert_eq!(cpu.run(100), Exit::Halted);
    let mut cpu = string(REP_MOVSQ, 2);
    (cpu.state.gpr[gpr::SI], cpu.state.gpr[gpr::DI]) = (io, io + 0x100);
    for index in 0..2 {
        assert_eq!(cpu.run(100), Exit::MmioRead { address: io + 8 * index, size: 8 });
        cpu.answer(0x1234 + index);
        let data = 0x1234 + index;
        assert_eq!(cpu.run(100), Exit::MmioWrite { address: io + 0x100 + 8 * index, size: 8, data });
        cpu.answer(0);
    }
    assert_eq!(cpu.run(100), Exit::Halted);
    assert_eq!(counters(&cpu.state), [0, io + 16, io + 0x110]);
}

#[test]
fn a_comparison_ends_at_a_difference() {
    for slice in [1, 2, 1000] {
        let mut cpu = string(REPE_CMPSB, 100);
        let source = cpu.memory().read(FROM as usize, 100);
        cpu.memory().write(TO as usize, &source);
        cpu.memory().write(TO as usize + 40, &[source[40].wrapping_add(1)]);
        while cpu.run(slice) == Exit::SliceEnd {}
        assert_eq!(counters(&cpu.state), [59, FROM + 41, TO + 41]);
        assert!(cpu.state.has(flag::CF) && !cpu.state.has(flag::ZF));
        assert_eq!(cpu.instructions(), 42);
    }
}

#[test]
fn a_search_ends_at_the_byte() {
    let mut cpu = string(REPNE_SCASB, 100);
    cpu.memory().write(TO as usize + 40, &[0x55]);
    cpu.state.gpr[gpr::AX] = 0xff55;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(counters(&cpu.state), [59, FROM, TO + 41]);
    assert!(cpu.state.has(flag::ZF));
}

#[test]
fn a_count_of_zero_accesses_nothing() {
    for code in [REP_MOVSB, REP_STOSD, REPE_CMPSB, REPNE_SCASB] {
        let mut cpu = string(code, 0);
        (cpu.state.gpr[gpr::SI], cpu.state.gpr[gpr::DI]) = (1 << 62, 1 << 62);
        cpu.state.rflags |= flag::CF;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(counters(&cpu.state), [0, 1 << 62, 1 << 62]);
        assert!(cpu.state.has(flag::CF));
    }
}

#[test]
fn code_that_a_repetition_writes_is_executed() {
    // The bytes behind the instruction become INC EAX.
    let code = assemble(32, 0x1000, |a| {
        a.mov(iced_x86::code_asm::ecx, 4).unwrap();
        a.rep().stosb().unwrap();
        (0..4).for_each(|_| a.nop().unwrap());
        a.hlt().unwrap();
    });
    let mut cpu = in_mode(32, &code);
    (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::DI]) = (0x40, 0x1007);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[gpr::AX], 0x44);
}

#[test]
fn a_segment_prefix_is_for_the_source() {
    let mut cpu = real_mode(&[0x64, 0xa4, 0xf4]);
    cpu.state.segments[seg::FS].base = 0x7000;
    cpu.state.segments[seg::ES].base = 0x9000;
    (cpu.state.gpr[gpr::SI], cpu.state.gpr[gpr::DI]) = (5, 6);
    cpu.memory().write(0x7005, &[0x77]);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.memory().read(0x9006, 1), [0x77]);
}
