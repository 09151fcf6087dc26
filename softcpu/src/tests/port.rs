use crate::Cpu;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::flag;
use crate::testing::{finish, in_mode, long_mode, protected_mode, real_mode, vector};

const OUT: Exit = Exit::PortOut { port: 0x1234, size: 1, data: 0 };

/// An OUT DX in ring 3 with an I/O permission bitmap in which one bit is set.
fn with_map(code: &[u8], denied: u16, limit: u32) -> Cpu<VecMemory> {
    let mut cpu = long_mode(&[code, &[0xf4]].concat(), 3);
    cpu.state.gpr[0] = 0;
    cpu.state.gpr[2] = 0x1234;
    (cpu.state.tr.base, cpu.state.tr.limit) = (0x3000, limit);
    cpu.memory().write(0x3066, &0x68u16.to_le_bytes());
    let place = 0x3068 + usize::from(denied >> 3);
    cpu.memory().write(place, &[1 << (denied & 7)]);
    cpu
}

/// SDM volume 1, section 19.5.2.
#[test]
fn ring_3_needs_iopl_or_the_bitmap() {
    let out = [0xee];
    assert_eq!(with_map(&out, 0x1233, 0x2068).run(10), OUT);
    assert_eq!(with_map(&out, 0x1235, 0x2068).run(10), OUT);
    assert_eq!(vector(&mut with_map(&out, 0x1234, 0x2068)), (13, Some(0)));
    // A wide access needs each of its bits, also across a byte.
    for (code, bytes) in [(&[0xef][..], 4), (&[0x66, 0xef], 2)] {
        for bit in 0x1230..0x123a {
            let mut cpu = with_map(code, bit, 0x2068);
            let denied = (0x1234..0x1234 + bytes).contains(&bit);
            assert_eq!(cpu.run(10) == Exit::Shutdown, denied, "{code:x?} {bit:x}");
        }
    }
    // The processor reads two bytes of the bitmap, which must be within the limit.
    assert_eq!(with_map(&out, 0, 0x68 + 0x1234 / 8 + 1).run(10), OUT);
    assert_eq!(vector(&mut with_map(&out, 0, 0x68 + 0x1234 / 8)), (13, Some(0)));
    assert_eq!(vector(&mut with_map(&out, 0, 0x66)), (13, Some(0)));
    // A 16-bit segment has no bitmap.
    let mut cpu = with_map(&out, 0, 0x2068);
    cpu.state.tr.kind = 0b0011;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    // IOPL is enough.
    let mut cpu = with_map(&out, 0x1234, 0x2068);
    cpu.state.rflags |= flag::IOPL;
    assert_eq!(cpu.run(10), OUT);
}

#[test]
fn ports_are_read_and_written_in_each_width() {
    for (code, size, want) in [
        (&[0xe5, 0x80][..], 4, 0x8765_4321),
        (&[0x66, 0xe5, 0x80], 2, 0xffff_ffff_ffff_4321),
        (&[0xe4, 0x80], 1, 0xffff_ffff_ffff_ff21),
    ] {
        let mut cpu = long_mode(&[code, &[0xf4]].concat(), 0);
        cpu.state.gpr[0] = u64::MAX;
        assert_eq!(cpu.run(10), Exit::PortIn { port: 0x80, size });
        assert_eq!((cpu.state.rip, cpu.state.gpr[0]), (0x1000, u64::MAX));
        cpu.answer(0x1_8765_4321);
        assert_eq!(cpu.run(10), Exit::Halted);
        assert_eq!(cpu.state.gpr[0], want);
        assert_eq!(cpu.instructions(), 2);
    }
    let mut cpu = real_mode(&[0x66, 0xef]);
    (cpu.state.gpr[0], cpu.state.gpr[2]) = (0xf_8765_4321, 0xf_ffff);
    assert_eq!(cpu.run(10), Exit::PortOut { port: 0xffff, size: 4, data: 0x8765_4321 });
}

/// Each element is an exit, and commits the registers.
#[test]
fn strings_repeat() {
    let mut cpu = long_mode(&[0xf3, 0x6c, 0xf4], 0); // rep insb
    cpu.state.gpr = [0; 16];
    (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[7]) = (3, 0x55, 0x2000);
    for byte in 0x41..0x44 {
        assert_eq!(cpu.run(100), Exit::PortIn { port: 0x55, size: 1 });
        assert_eq!((cpu.state.gpr[1], cpu.state.gpr[7]), (0x44 - byte, 0x2000 + byte - 0x41));
        cpu.answer(byte);
    }
    assert_eq!(cpu.run(100), Exit::Halted);
    assert_eq!(cpu.memory().read(0x2000, 4), b"ABC\0");
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[7], cpu.instructions()), (0, 0x2003, 4));
}

#[test]
fn strings_go_down_and_wrap() {
    // rep outsw with 16-bit addresses: SI wraps, and the upper halves of the registers stay.
    let mut cpu = real_mode(&[0xf3, 0x6f, 0xf4]);
    cpu.state.rflags |= flag::DF;
    (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[6]) = (0xaaaa_0002, 0x80, 0xbbbb_0000);
    cpu.memory().write(0, &[1, 2]);
    cpu.memory().write(0xfffe, &[3, 4]);
    assert_eq!(cpu.run(100), Exit::PortOut { port: 0x80, size: 2, data: 0x201 });
    assert_eq!(cpu.run(100), Exit::PortOut { port: 0x80, size: 2, data: 0x403 });
    assert_eq!(cpu.run(100), Exit::Halted);
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[6]), (0xaaaa_0000, 0xbbbb_fffc));
    // A count of zero accesses nothing.
    let mut cpu = real_mode(&[0xf3, 0x6e, 0xf4]);
    cpu.state.gpr[1] = 0xffff_0000;
    assert_eq!(cpu.run(100), Exit::Halted);
}

/// A segment override of OUTS, and a store of INS that faults before the port is read.
#[test]
fn strings_check_memory() {
    let mut cpu = protected_mode(&[0x64, 0x6e, 0xf4], 0); // fs outsb
    cpu.state.segments[4].base = 0x2000;
    cpu.state.gpr[6] = 8;
    cpu.memory().write(0x2008, &[0x77]);
    assert_eq!(cpu.run(100), Exit::PortOut { port: 0x600, size: 1, data: 0x77 });
    assert_eq!((cpu.run(100), cpu.state.gpr[6]), (Exit::Halted, 9));
    let mut cpu = protected_mode(&[0x6c, 0xf4], 0); // insb
    cpu.state.segments[0].kind = 1;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    let mut cpu = long_mode(&[0x6d, 0xf4], 0); // insd to a page that is not present
    cpu.state.gpr[7] = 0x3fff_fffe;
    cpu.memory().write(0x4_2ff8, &[0; 8]);
    assert_eq!(vector(&mut cpu), (14, Some(2)));
}

/// INS to memory-mapped I/O: the port is read once, and then the store is an exit.
#[test]
fn a_string_goes_to_a_device() {
    let mut cpu = protected_mode(&[0xf3, 0x6d, 0xf4], 0);
    (cpu.state.gpr[1], cpu.state.gpr[7]) = (2, 0x20_0ffe);
    for offset in [0, 4] {
        let address = 0x20_0ffe + offset;
        assert_eq!(cpu.run(9), Exit::PortIn { port: 0x600, size: 4 });
        cpu.answer(0x0403_0201);
        if offset == 0 {
            assert_eq!(cpu.run(9), Exit::MmioWrite { address, size: 2, data: 0x201 });
            assert_eq!(cpu.run(9), Exit::MmioWrite { address: 0x20_1000, size: 2, data: 0x403 });
        } else {
            assert_eq!(cpu.run(9), Exit::MmioWrite { address, size: 4, data: 0x0403_0201 });
        }
    }
    assert_eq!(cpu.run(9), Exit::Halted);
    assert_eq!(cpu.state.gpr[1], 0);
}

/// A run ends within a long string instruction, and goes on there.
#[test]
fn a_string_is_interrupted() {
    let mut cpu = in_mode(64, &[0xf3, 0x6e, 0xf4]);
    cpu.state.gpr[1] = u64::MAX;
    cpu.state.gpr[6] = 0x2000;
    for done in 0..100 {
        assert!(matches!(cpu.run(2), Exit::PortOut { .. }));
        assert_eq!(cpu.state.gpr[1], u64::MAX - done);
    }
    assert_eq!(cpu.instructions(), 99);
    assert_eq!(finish(&mut in_mode(64, &[0xf4])), Exit::Halted);
}
