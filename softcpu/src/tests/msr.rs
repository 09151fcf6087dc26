use super::Write;
use crate::cpuid::supported_cpuid;
use crate::exit::Exit;
use crate::state::{cr4, efer, flag, seg};
use crate::testing::{assemble, fault, finish, long_mode, protected_mode, vector};
use iced_x86::code_asm::*;

/// RDMSR of a register gives EDX and EAX, and clears their upper halves.
#[test]
fn a_register_is_read_and_written() {
    let code = assemble(64, 0x1000, |a| {
        a.mov(ecx, 0xc000_0102u32).unwrap();
        a.mov(rax, -1i64).unwrap();
        a.mov(rdx, 0xffff_ffff_0000_0012u64).unwrap();
        a.wrmsr().unwrap();
        a.rdmsr().unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = long_mode(&code, 0);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.kernel_gs_base, 0x12_ffff_ffff);
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[2]), (0xffff_ffff, 0x12));
}

#[test]
fn unknown_and_trapped_registers_are_exits() {
    let code = assemble(32, 0x1000, |a| {
        a.mov(ecx, 0xabdu32).unwrap();
        a.rdmsr().unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x174u32).unwrap();
        a.wrmsr().unwrap();
        a.rdmsr().unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = protected_mode(&code, 0);
    cpu.trap_msrs(vec![0x174]);
    assert_eq!(cpu.run(100), Exit::RdMsr { index: 0xabd });
    cpu.answer(0x1_0000_0002);
    assert_eq!(cpu.run(100), Exit::WrMsr { index: 0xabd, data: 0x1_0000_0002 });
    assert_eq!(cpu.run(100), Exit::WrMsr { index: 0x174, data: 0x1_0000_0002 });
    assert_eq!(cpu.state.sysenter[0], 0);
    assert_eq!(cpu.run(100), Exit::RdMsr { index: 0x174 });
    cpu.refuse();
    assert_eq!(vector(&mut cpu), (13, Some(0)));
}

#[test]
fn ring_3_has_no_access() {
    for code in [[0x0f, 0x32], [0x0f, 0x30]] {
        assert_eq!(vector(&mut long_mode(&code, 3)), (13, Some(0)));
    }
}

/// IA32_EFER takes LME only if CPUID shows long mode, and never while paging is on. LMA is read-only.
#[test]
fn efer_is_checked() {
    let mut cpu = protected_mode(&[], 0);
    let (lme, lma, nxe) = (efer::LME, efer::LMA, efer::NXE);
    assert_eq!(cpu.write_msr(0xc000_0080, lme, false), Write::Refused);
    assert_eq!(cpu.write_msr(0xc000_0080, nxe, false), Write::Refused);
    assert_eq!(cpu.write_msr(0xc000_0080, efer::SCE, false), Write::Done);
    cpu.set_cpuid(supported_cpuid());
    assert_eq!(cpu.write_msr(0xc000_0080, 1 << 12, false), Write::Refused);
    assert_eq!(cpu.write_msr(0xc000_0080, lme | lma | nxe, false), Write::Done);
    assert_eq!(cpu.msr(0xc000_0080), Some(lme | nxe));
    let mut cpu = long_mode(&[], 0);
    cpu.set_cpuid(supported_cpuid());
    assert_eq!(cpu.write_msr(0xc000_0080, 0, false), Write::Refused);
    assert_eq!(cpu.write_msr(0xc000_0080, lme, false), Write::Done);
    assert_eq!(cpu.msr(0xc000_0080), Some(lme | lma));
}

#[test]
fn values_are_checked() {
    let mut cpu = long_mode(&[], 0);
    cpu.set_cpuid(supported_cpuid());
    let bad = 0x8000_0000_0000;
    let refused = [
        (0xc000_0082, bad),
        (0xc000_0083, bad),
        (0xc000_0084, 1 << 32),
        (0xc000_0100, bad),
        (0xc000_0101, bad),
        (0xc000_0102, bad),
        (0xc000_0103, 1 << 32),
        (0x175, bad),
        (0x176, bad),
        (0x277, 2),
        (0x250, 2 << 8),
        (0x2ff, 2),
        (0x200, 0x700),
        (0x201, 0x400),
        (0x1b, 1 << 10),
        (0xfe, 0),
        (0x8b, 0),
    ];
    for (index, value) in refused {
        assert_eq!(cpu.write_msr(index, value, false), Write::Refused, "{index:#x}");
    }
    let done = [
        (0xc000_0081, u64::MAX),
        (0xc000_0100, 0xffff_8000_0000_0000),
        (0xc000_0103, 7),
        (0x174, 8),
        (0x175, 0x7fff_ffff_ffff),
        (0x277, 0x0007_0406_0007_0406),
        (0x26f, 0x0606_0606_0606_0606),
        (0x2ff, 0xc06),
        (0x20e, 0x1000_0006),
        (0x20f, 0xf_0000_0800),
        (0x1a0, 1),
        (0x1b, 0xfee0_0900),
    ];
    for (index, value) in done {
        assert_eq!(cpu.write_msr(index, value, false), Write::Done, "{index:#x}");
        assert_eq!(cpu.msr(index), Some(value), "{index:#x}");
    }
    assert_eq!(cpu.state.segments[seg::FS].base, 0xffff_8000_0000_0000);
}

/// The time-stamp counter counts instructions, and IA32_TSC_ADJUST follows its writes.
#[test]
fn the_time_stamp_counter_counts_instructions() {
    let code = assemble(32, 0x1000, |a| {
        a.mov(ecx, 0x10u32).unwrap();
        a.mov(eax, 1000u32).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.add(ebx, 1).unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = protected_mode(&code, 0);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[2]), (1002, 0));
    assert_eq!(cpu.msr(0x3b), Some(997));
    assert_eq!(cpu.msr(0x10), Some(1004));
    assert!(cpu.set_msr(0x3b, 0));
    assert_eq!(cpu.msr(0x10), Some(7));
}

#[test]
fn the_time_stamp_counter_can_be_forbidden() {
    let mut cpu = long_mode(&[0x0f, 0x31], 3);
    cpu.state.cr4 |= cr4::TSD;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    let mut cpu = long_mode(&[0x0f, 0x31, 0xf4], 3);
    assert_eq!(fault(&mut cpu).vector, 13, "the HLT behind it");
    assert_eq!(cpu.state.rip, 0x1002);
    let mut cpu = long_mode(&[0x0f, 0x31, 0xf4], 0);
    cpu.state.cr4 |= cr4::TSD;
    assert_eq!(finish(&mut cpu), Exit::Halted);
}

#[test]
fn tsc_aux_needs_its_feature() {
    let code = assemble(64, 0x1000, |a| {
        a.rdtscp().unwrap();
        a.rdpid(rbx).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = long_mode(&code, 0);
    assert_eq!(vector(&mut cpu), (6, None));
    let mut cpu = long_mode(&code, 0);
    cpu.set_cpuid(supported_cpuid());
    cpu.state.tsc_aux = 5;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[3]), (5, 5));
    assert!(!cpu.state.has(flag::CF));
}

/// A processor that starts in long mode without CPUID keeps it.
#[test]
fn the_host_sets_long_mode() {
    let mut cpu = protected_mode(&[], 0);
    assert!(cpu.set_msr(0xc000_0080, efer::LME | efer::LMA));
    assert_eq!(cpu.state.efer, efer::LME | efer::LMA);
    assert!(!cpu.set_msr(0xabd, 0));
    assert!(!cpu.set_msr(0xc000_0100, 1 << 63));
}
