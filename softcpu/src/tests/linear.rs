use crate::Cpu;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::paging::Access;
use crate::state::{Segment, cr0, flag, seg};
use crate::testing::{MEMORY, PML4, finish, long_mode, protected_mode, real_mode};
use crate::trap::Trap;

const DEVICE: u64 = MEMORY as u64;

fn linear(cpu: &Cpu<VecMemory>, segment: usize, offset: u64, size: u64) -> Result<u64, Trap> {
    cpu.linear(segment, offset, size, Access::Write)
}

/// SDM volume 3, section 5.3.
#[test]
fn limits_are_checked() {
    let gp = Err(Trap::gp());
    let mut cpu = protected_mode(&[], 0);
    let set = |cpu: &mut Cpu<VecMemory>, limit: u32, kind: u8, big: bool| {
        let segment = &mut cpu.state.segments[seg::ES];
        *segment = Segment { base: 0x1_0000, limit, kind, big, ..Segment::real(8, 0, 0) };
    };
    set(&mut cpu, 0xff, 0b0010, true);
    assert_eq!(linear(&cpu, seg::ES, 0xfc, 4), Ok(0x1_00fc));
    assert_eq!(linear(&cpu, seg::ES, 0xfd, 4), gp);
    assert_eq!(linear(&cpu, seg::ES, 0x100, 1), gp);
    // Expand-down: the limit and all below it are outside, and the end depends on the B flag.
    set(&mut cpu, 0xff, 0b0110, false);
    assert_eq!(linear(&cpu, seg::ES, 0xff, 1), gp);
    assert_eq!(linear(&cpu, seg::ES, 0x100, 8), Ok(0x1_0100));
    assert_eq!(linear(&cpu, seg::ES, 0xfffc, 4), Ok(0x1_fffc));
    assert_eq!(linear(&cpu, seg::ES, 0xfffd, 4), gp);
    assert_eq!(linear(&cpu, seg::ES, 0x1_0000, 1), gp);
    set(&mut cpu, 0xff, 0b0110, true);
    assert_eq!(linear(&cpu, seg::ES, 0xffff_fffc, 4), Ok(0xfffc));
    assert_eq!(linear(&cpu, seg::ES, 0xffff_fffd, 4), gp);
    assert_eq!(linear(&cpu, seg::ES, 0xfe, 4), gp);
    // An expand-down segment with the limit of 4 GiB has no byte.
    set(&mut cpu, u32::MAX, 0b0110, true);
    assert_eq!(linear(&cpu, seg::ES, 0xffff_ffff, 1), gp);
    // A flat segment wraps at 4 GiB.
    set(&mut cpu, u32::MAX, 0b0010, true);
    assert_eq!(linear(&cpu, seg::ES, 0xffff_fffe, 4), Ok(0xfffe));
}

/// A segment that is not writable, not readable, or null. The stack segment has #SS.
#[test]
fn types_are_checked() {
    let mut cpu = protected_mode(&[], 0);
    let check = |cpu: &Cpu<VecMemory>, segment: usize, access| cpu.linear(segment, 0, 1, access).is_ok();
    for (kind, reads, writes) in [
        (0b0000, true, false),
        (0b0010, true, true),
        (0b0100, true, false),
        (0b1000, false, false),
        (0b1010, true, false),
        (0b1110, true, false),
    ] {
        cpu.state.segments[seg::ES] = Segment { kind, ..Segment::real(8, 0, 0) };
        let down = kind & 0b1100 == 0b0100;
        cpu.state.segments[seg::ES].limit = if down { 0 } else { 0xffff };
        let offset = u64::from(down);
        assert_eq!(cpu.linear(seg::ES, offset, 1, Access::Read).is_ok(), reads, "{kind:#b}");
        assert_eq!(cpu.linear(seg::ES, offset, 1, Access::Write).is_ok(), writes, "{kind:#b}");
    }
    cpu.state.segments[seg::ES].unusable = true;
    assert!(!check(&cpu, seg::ES, Access::Read));
    cpu.state.segments[seg::SS].limit = 0;
    assert_eq!(linear(&cpu, seg::SS, 1, 1), Err(Trap::coded(12, 0)));
    // In real mode, the type does not count.
    let mut cpu = real_mode(&[]);
    cpu.state.segments[seg::ES].kind = 0;
    assert!(check(&cpu, seg::ES, Access::Write));
    assert_eq!(linear(&cpu, seg::ES, 0xffff, 2), Err(Trap::gp()));
}

#[test]
fn addresses_are_canonical() {
    let mut cpu = long_mode(&[], 0);
    let last = 0x7fff_ffff_ffff;
    assert_eq!(linear(&cpu, seg::DS, last, 1), Ok(last));
    assert_eq!(linear(&cpu, seg::DS, last, 2), Err(Trap::gp()));
    assert_eq!(linear(&cpu, seg::SS, last + 1, 1), Err(Trap::coded(12, 0)));
    assert_eq!(linear(&cpu, seg::DS, u64::MAX, 2), Ok(u64::MAX));
    // FS and GS have a base, the others do not.
    cpu.state.segments[seg::DS].base = 0x1000;
    cpu.state.segments[seg::GS].base = 0xffff_8000_0000_0000;
    assert_eq!(linear(&cpu, seg::DS, 5, 1), Ok(5));
    assert_eq!(linear(&cpu, seg::GS, 5, 1), Ok(0xffff_8000_0000_0005));
    assert_eq!(linear(&cpu, seg::GS, u64::MAX, 1), Err(Trap::gp()));
}

/// An access that faults in its second page has written nothing.
#[test]
fn a_fault_in_the_second_page_comes_first() {
    for code in [
        &[0x89, 0x03][..],   // mov [rbx], eax
        &[0x01, 0x03],       // add [rbx], eax
        &[0x0f, 0x11, 0x03], // movups [rbx], xmm0
        &[0x48, 0x89, 0x03], // mov [rbx], rax
    ] {
        let mut cpu = long_mode(code, 0);
        cpu.state.cr4 |= crate::state::cr4::OSFXSR;
        (cpu.state.gpr[0], cpu.state.gpr[3]) = (u64::MAX, 0x1f_fffe);
        // The first 2 MiB are memory up to 1 MiB only, so map the last page before the hole to memory.
        cpu.memory().write((PML4 + 0x2000) as usize, &(PML4 + 0x3007).to_le_bytes());
        for page in 0..512u64 {
            let entry = if page == 511 { 0x2007 } else { page << 12 | 7 };
            cpu.memory().write((PML4 + 0x3000 + 8 * page) as usize, &entry.to_le_bytes());
        }
        cpu.memory().write((PML4 + 0x2008) as usize, &[0; 8]);
        cpu.state_changed();
        let exit = finish(&mut cpu);
        if matches!(exit, Exit::Unsupported(_)) {
            continue;
        }
        let fault = cpu.death().unwrap().faults[0];
        assert_eq!((fault.vector, fault.error), (14, Some(2)), "{code:x?}");
        assert_eq!(cpu.memory().read(0x2ff0, 16), [0; 16]);
    }
}

/// An access of memory and a device is split at the end of the page, and done once.
#[test]
fn devices_across_pages() {
    // add [ebx], eax
    let mut cpu = protected_mode(&[0x01, 0x03, 0xf4], 0);
    (cpu.state.gpr[0], cpu.state.gpr[3]) = (0x0102_0304, DEVICE - 2);
    cpu.memory().write(MEMORY - 2, &[0x10, 0x20]);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: DEVICE, size: 2 });
    cpu.answer(0x4030);
    assert_eq!(cpu.run(10), Exit::MmioWrite { address: DEVICE, size: 2, data: 0x4132 });
    assert_eq!(cpu.run(10), Exit::Halted);
    assert_eq!(cpu.memory().read(MEMORY - 2, 2), [0x14, 0x23]);
    // Two pages of devices.
    let mut cpu = protected_mode(&[0x89, 0x03, 0xf4], 0);
    (cpu.state.gpr[0], cpu.state.gpr[3]) = (0x0403_0201, DEVICE + 0xfff);
    assert_eq!(cpu.run(10), Exit::MmioWrite { address: DEVICE + 0xfff, size: 1, data: 1 });
    assert_eq!(cpu.run(10), Exit::MmioWrite { address: DEVICE + 0x1000, size: 3, data: 0x04_0302 });
    assert_eq!(cpu.run(10), Exit::Halted);
    // Across 4 GiB.
    let mut cpu = protected_mode(&[0x8b, 0x03, 0xf4], 0);
    cpu.state.gpr[3] = 0xffff_ffff;
    cpu.memory().write(0, &[1, 2, 3]);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: 0xffff_ffff, size: 1 });
    cpu.answer(0xaa);
    assert_eq!(cpu.run(10), Exit::Halted);
    assert_eq!(cpu.state.gpr[0], 0x0302_01aa);
}

/// #AC needs CR0.AM, RFLAGS.AC and ring 3.
#[test]
fn alignment_is_checked() {
    for (ring, ac, am, faults) in
        [(3, true, true, true), (0, true, true, false), (3, false, true, false), (3, true, false, false)]
    {
        for (address, size, aligned) in
            [(0x2001, 1, true), (0x2001, 2, false), (0x2002, 4, false), (0x2008, 8, true)]
        {
            let mut cpu = protected_mode(&[], ring);
            cpu.state.cr0 |= if am { cr0::AM } else { 0 };
            cpu.state.rflags |= if ac { flag::AC } else { 0 };
            let fault = Err(Trap::coded(17, 0));
            let want = if faults && !aligned { fault } else { Ok(0) };
            assert_eq!(cpu.load(seg::DS, address, size), want);
            assert_eq!(cpu.store(seg::DS, address, size, 0), want.map(drop));
            assert_eq!(cpu.load_for_update(seg::DS, address, size), want);
        }
    }
}
