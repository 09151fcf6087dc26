//! Tests of errors that `make differ` found. The expected values are those of an Intel processor.

use crate::exit::Exit;
use crate::state::{flag, seg};
use crate::testing::{CODE, MEMORY, PML4, fault, finish, in_mode, long_mode, vector};

const DEVICE: u64 = MEMORY as u64;

#[test]
fn byte_registers_of_rex_are_the_low_bytes() {
    // mov spl, 5; mov r13b, r12b; mov ah, 7; hlt
    let mut cpu = long_mode(&[0x40, 0xb4, 5, 0x45, 0x88, 0xe5, 0xb4, 7, 0xf4], 0);
    (cpu.state.gpr[4], cpu.state.gpr[12], cpu.state.gpr[13]) = (0x8000, 0x99, 0x1234);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[4], cpu.state.gpr[13], cpu.state.gpr[0]), (0x8005, 0x1299, 0x700));
}

/// 64-bit mode ignores CS, DS, ES and SS as prefixes: their bases, and the choice between #GP and #SS.
#[test]
fn segment_prefixes_are_ignored_in_64_bit_mode() {
    for prefix in [0x26, 0x2e, 0x36, 0x3e] {
        let code = [prefix, 0x8b, 0x03, 0xf4];
        let mut cpu = long_mode(&code, 0);
        cpu.state.segments.iter_mut().for_each(|segment| segment.base = 0x100);
        cpu.state.gpr[3] = 0x3000;
        cpu.memory().write(0x3000, &7u32.to_le_bytes());
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[0], 7, "{prefix:x}");
        // mov eax, [rbx] and mov eax, [rbp]
        for (modrm, number) in [(0x03, 13), (0x45, 12)] {
            let mut cpu = long_mode(&[prefix, 0x8b, modrm, 0, 0xf4], 0);
            (cpu.state.gpr[3], cpu.state.gpr[5]) = (1 << 63, 1 << 63);
            assert_eq!(vector(&mut cpu), (number, Some(0)), "{prefix:x}");
        }
    }
}

#[test]
fn cr2_is_the_first_byte_that_is_not_mapped() {
    for (first, cr2) in [(0x1f_fff9, 0x20_0000), (0x20_0004, 0x20_0004)] {
        // movups xmm0, [rbx]
        let mut cpu = long_mode(&[0x0f, 0x10, 0x03], 0);
        cpu.state.cr4 |= 1 << 9;
        cpu.state_changed();
        cpu.memory().write(PML4 as usize + 0x2008, &[0; 8]);
        cpu.state.gpr[3] = first;
        assert_eq!(fault(&mut cpu).vector, 14);
        assert_eq!(cpu.death().unwrap().faults.first().map(|first| first.vector), Some(14));
        assert_eq!(cpu.state.cr2, cr2);
    }
}

/// 16 bytes of memory-mapped I/O: from the first to the last, at most 8 bytes at once, none across a page.
#[test]
fn wide_accesses_to_devices_are_split() {
    let exits = |start: u64, code: &[u8]| {
        let mut cpu = long_mode(code, 0);
        cpu.state.cr4 |= 1 << 9;
        cpu.state_changed();
        cpu.state.xmm[0] = 0x100f_0e0d_0c0b_0a09_0807_0605_0403_0201;
        cpu.state.gpr[3] = start;
        let mut seen = Vec::new();
        loop {
            match cpu.run(10) {
                Exit::MmioWrite { address, size, data } => {
                    seen.push((address - start, size));
                    let first = u128::from(data) << (8 * (address - start));
                    assert_eq!(
                        cpu.state.xmm[0] & u128::from(u64::MAX >> (64 - 8 * size)) << (8 * (address - start)),
                        first
                    );
                }
                Exit::MmioRead { address, size } => {
                    seen.push((address - start, size));
                    cpu.answer((cpu.state.xmm[0] >> (8 * (address - start))) as u64);
                }
                exit => {
                    assert_eq!(exit, Exit::Halted);
                    assert_eq!(cpu.state.xmm[0], cpu.state.xmm[1]);
                    return (seen, cpu.memory().read(MEMORY - 5, 5));
                }
            }
        }
    };
    // movups [rbx], xmm0; movaps xmm1, xmm0; hlt
    let store = [0x0f, 0x11, 0x03, 0x0f, 0x28, 0xc8, 0xf4];
    assert_eq!(exits(DEVICE, &store).0, [(0, 8), (8, 8)]);
    assert_eq!(exits(DEVICE + 0xffb, &store).0, [(0, 5), (5, 8), (13, 3)]);
    // movups xmm1, [rbx]; hlt
    let load = [0x0f, 0x10, 0x0b, 0xf4];
    assert_eq!(exits(DEVICE, &load).0, [(0, 8), (8, 8)]);
    assert_eq!(exits(DEVICE + 0xff5, &load).0, [(0, 8), (8, 3), (11, 5)]);
    // Memory in the first page.
    assert_eq!(exits(DEVICE - 5, &store), (vec![(5, 8), (13, 3)], vec![1, 2, 3, 4, 5]));
}

#[test]
fn leave_has_the_operand_size() {
    // o16 leave; hlt
    let mut cpu = long_mode(&[0x66, 0xc9, 0xf4], 0);
    cpu.state.gpr[5] = 0x3000;
    cpu.memory().write(0x3000, &[0x11, 0x22, 0x33]);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[4], cpu.state.gpr[5]), (0x3002, 0x2211));
    // LEAVE with a stack of 16 bits leaves the upper half of ESP.
    let mut cpu = in_mode(16, &[0xc9, 0xf4]);
    (cpu.state.gpr[4], cpu.state.gpr[5]) = (0x5_8000, 0x3000);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[4], 0x5_3002);
}

/// ENTER checks the alignment of the stack pointer at its end, too.
#[test]
fn enter_checks_the_alignment_of_its_end() {
    // enter 1, 0
    let mut cpu = long_mode(&[0xc8, 1, 0, 0], 3);
    cpu.state.rflags |= flag::AC;
    assert_eq!(vector(&mut cpu), (17, Some(0)));
    assert_eq!(cpu.state.gpr[4], 0x8000);
}

#[test]
fn string_output_moves_by_its_size() {
    // outsb; outsw; outsd; hlt
    let mut cpu = long_mode(&[0x6e, 0x66, 0x6f, 0x6f, 0xf4], 0);
    cpu.state.gpr[6] = 0x3000;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[6], 0x3007);
}

/// A repetition of no elements checks the port, and clears the upper half of RCX if its addresses have 32 bits.
#[test]
fn a_repetition_of_no_port_accesses() {
    for code in [[0xf3, 0x6c], [0xf3, 0x6e]] {
        let mut cpu = long_mode(&code, 3);
        cpu.state.tr.limit = 0;
        assert_eq!(vector(&mut cpu), (13, Some(0)));
        let mut cpu = long_mode(&[0x67, code[0], code[1], 0xf4], 0);
        cpu.state.gpr[1] = 0x1_0000_0000;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.gpr[1], 0);
    }
    // a32 rep stosb
    let mut cpu = long_mode(&[0x67, 0xf3, 0xaa, 0xf4], 0);
    (cpu.state.gpr[1], cpu.state.gpr[7]) = (0x1_0000_0000, 0x1_0000_3000);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[7]), (0, 0x3000));
}

#[test]
fn cmps_reads_its_second_operand_first() {
    // cmpsb; hlt
    let mut cpu = long_mode(&[0xa6, 0xf4], 0);
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (DEVICE, DEVICE + 0x10);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: DEVICE + 0x10, size: 1 });
    cpu.answer(2);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: DEVICE, size: 1 });
    cpu.answer(1);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert!(cpu.state.has(flag::CF));
}

/// The remaining bytes of an opcode that 64-bit mode does not have are not fetched.
#[test]
fn an_invalid_opcode_at_the_end_of_a_page_is_undefined() {
    for opcode in [0x06, 0x27, 0x60, 0x9a, 0xce, 0xd4] {
        // The page behind it is not mapped.
        let mut cpu = long_mode(&[], 0);
        let table = PML4 + 0x3000;
        cpu.memory().write(PML4 as usize + 0x2000, &(table | 7).to_le_bytes());
        cpu.memory().write(table as usize + 8, &(CODE | 7).to_le_bytes());
        cpu.memory().write(CODE as usize + 0xfff, &[opcode]);
        cpu.state.rip = CODE + 0xfff;
        cpu.state_changed();

        assert_eq!(fault(&mut cpu).vector, 6, "{opcode:x}");
    }
}

/// A comparison that BSF and CMPXCHG do not finish leaves the whole destination.
#[test]
fn a_destination_that_is_left_keeps_its_upper_half() {
    // bsf ebx, ecx; cmpxchg edx, esi; hlt
    let mut cpu = long_mode(&[0x0f, 0xbc, 0xd9, 0x0f, 0xb1, 0xf2, 0xf4], 0);
    (cpu.state.gpr[3], cpu.state.gpr[1]) = (u64::MAX, 0);
    (cpu.state.gpr[0], cpu.state.gpr[2]) = (5, 0xf161_3ca1_e83d_97fe);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.gpr[3], u64::MAX);
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[2]), (0xe83d_97fe, 0xf161_3ca1_e83d_97fe));
}

/// The access of a device before a fault of the code segment: there is none.
#[test]
fn a_write_to_code_accesses_nothing() {
    // bts [cs:ebx], edi
    let mut cpu = in_mode(32, &[0x2e, 0x0f, 0xab, 0x3b]);
    (cpu.state.gpr[3], cpu.state.gpr[7]) = (DEVICE, 0);
    cpu.state.segments[seg::CS].kind = 0b1011;
    assert_eq!(cpu.run(10), Exit::Shutdown);
}

/// An address whose last byte alone is not canonical: #AC comes before #GP.
#[test]
fn alignment_is_checked_before_the_last_byte() {
    for (address, ac, number) in [
        (0x7fff_ffff_ffff, false, 13),
        (0x7fff_ffff_ffff, true, 17),
        (0x7fff_ffff_fffe, true, 17),
        (0x8000_0000_0001, true, 13),
    ] {
        // mov eax, [rbx]
        let mut cpu = long_mode(&[0x8b, 0x03], 3);
        cpu.state.rflags |= if ac { flag::AC } else { 0 };
        cpu.state.gpr[3] = address;
        assert_eq!(vector(&mut cpu), (number, Some(0)));
    }
}
