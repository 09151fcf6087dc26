use crate::Cpu;
use crate::cpuid::supported_cpuid;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{cr0, cr4, efer, seg};
use crate::testing::{PML4, assemble, fault, finish, flat, long_mode, protected_mode, real_mode, vector};
use crate::trap::Trap;
use iced_x86::code_asm::*;

const PE: u64 = cr0::PE;
const PG: u64 = cr0::PG;

#[test]
fn cr0_is_checked() {
    let mut cpu = protected_mode(&[], 0);
    for value in [PG, PE | cr0::NW, 1 << 32 | PE] {
        assert_eq!(cpu.write_cr0(value), Err(Trap::gp()), "{value:#x}");
    }
    // Reserved bits stay zero, and ET stays one.
    assert_eq!(cpu.write_cr0(PE | 0x1ff8_ffc0), Ok(()));
    assert_eq!(cpu.state.cr0, PE | cr0::ET);
    // Protected mode can be left.
    assert_eq!(cpu.write_cr0(0), Ok(()));
    assert_eq!(cpu.state.cr0, cr0::ET);
}

/// Long mode begins when paging is switched on with LME, and ends with paging, which needs compatibility mode.
#[test]
fn paging_with_lme_is_long_mode() {
    let mut cpu = protected_mode(&[], 0);
    cpu.state.efer = efer::LME;
    assert_eq!(cpu.write_cr0(PE | PG), Err(Trap::gp()), "without PAE");
    cpu.state.cr4 = cr4::PAE;
    cpu.state.segments[seg::CS].long = true;
    assert_eq!(cpu.write_cr0(PE | PG), Err(Trap::gp()), "with CS.L");
    cpu.state.segments[seg::CS].long = false;
    cpu.state.tr.kind = 0b0011;
    assert_eq!(cpu.write_cr0(PE | PG), Err(Trap::gp()), "with a 16-bit TSS");
    cpu.state.tr.kind = 0b1011;
    assert_eq!(cpu.write_cr0(PE | PG), Ok(()));
    assert_eq!(cpu.state.efer, efer::LME | efer::LMA);
    assert_eq!(cpu.write_cr4(0), Err(Trap::gp()), "PAE is needed");
    cpu.state.segments[seg::CS].long = true;
    assert_eq!(cpu.write_cr0(PE), Err(Trap::gp()), "in 64-bit mode");
    cpu.state.segments[seg::CS].long = false;
    assert_eq!(cpu.write_cr0(PE), Ok(()));
    assert_eq!(cpu.state.efer, efer::LME);
}

#[test]
fn cr4_is_checked() {
    let mut cpu = protected_mode(&[], 0);
    for bit in 11..64 {
        assert_eq!(cpu.write_cr4(1 << bit), Err(Trap::gp()), "{bit}");
    }
    assert_eq!(cpu.write_cr4(0x7ff), Ok(()));
    assert_eq!(cpu.state.cr4, 0x7ff);
}

#[test]
fn cr3_is_checked_in_long_mode() {
    let mut cpu = long_mode(&[], 0);
    for bit in 46..64 {
        assert_eq!(cpu.write_cr3(PML4 | 1 << bit), Err(Trap::gp()), "{bit}");
    }
    // The low bits are ignored, and read back.
    assert_eq!(cpu.write_cr3(PML4 | 0xfff), Ok(()));
    assert_eq!(cpu.state.cr3, PML4 | 0xfff);
}

/// PAE paging keeps the four page-directory pointers, and checks them when they are loaded.
#[test]
fn pae_paging_loads_its_pointers() {
    let mut cpu = protected_mode(&[], 0);
    cpu.state.cr4 = cr4::PAE;
    cpu.state.cr3 = 0x5fe0;
    let set = |cpu: &mut Cpu<VecMemory>, index: usize, value: u64| {
        cpu.memory().write(0x5fe0 + 8 * index, &value.to_le_bytes());
    };
    for bit in [1, 2, 5, 6, 7, 8, 46, 62, 63] {
        set(&mut cpu, 3, 0x6001 | 1 << bit);
        assert_eq!(cpu.write_cr0(PE | PG), Err(Trap::gp()), "{bit}");
        assert_eq!(cpu.state.cr0 & PG, 0);
        // The bits of a pointer that is not present are ignored.
        set(&mut cpu, 3, 0x6000 | 1 << bit);
        assert_eq!(cpu.write_cr0(PE | PG), Ok(()), "{bit}");
        assert_eq!(cpu.write_cr0(PE), Ok(()));
    }
    set(&mut cpu, 3, 0x6e19);
    assert_eq!(cpu.write_cr0(PE | PG), Ok(()));
    assert_eq!(cpu.state.pdptrs, [0, 0, 0, 0x6e19]);
    // A pointer that changes in memory counts from the next load on.
    set(&mut cpu, 3, 0x7001);
    assert_eq!(cpu.write_cr4(cr4::PAE | cr4::TSD), Ok(()));
    assert_eq!(cpu.state.pdptrs[3], 0x6e19);
    assert_eq!(cpu.write_cr4(cr4::PAE | cr4::PGE), Ok(()));
    assert_eq!(cpu.state.pdptrs[3], 0x7001);
    set(&mut cpu, 3, 0x8001);
    assert_eq!(cpu.write_cr3(0x5fff), Ok(()));
    assert_eq!(cpu.state.pdptrs[3], 0x8001);
    set(&mut cpu, 3, 0x8003);
    assert_eq!(cpu.write_cr3(0x5fe0), Err(Trap::gp()));
    assert_eq!(cpu.state.cr3, 0x5fff);
    assert_eq!(cpu.write_cr3(0x8000_0000), Err(Trap::gp()), "no memory");
}

fn run_one(bits: u32, ring: u16, bytes: &[u8]) -> Cpu<VecMemory> {
    let code = [bytes, &[0xf4]].concat();
    let mut cpu = match bits {
        16 => real_mode(&code),
        32 => protected_mode(&code, ring),
        _ => long_mode(&code, ring),
    };
    cpu.state.gpr[0] = 0x1234_5678_9abc_def0;
    cpu
}

/// Each privileged instruction raises #GP(0) in ring 3, and those of absent features #UD in ring 0.
#[test]
fn privilege_and_absence() {
    let privileged: [&[u8]; 15] = [
        &[0x0f, 0x20, 0xc0],       // mov rax, cr0
        &[0x0f, 0x22, 0xd0],       // mov cr2, rax
        &[0x44, 0x0f, 0x20, 0xc0], // mov rax, cr8
        &[0x0f, 0x21, 0xc0],       // mov rax, dr0
        &[0x0f, 0x23, 0xf0],       // mov dr6, rax
        &[0x0f, 0x06],             // clts
        &[0x0f, 0x01, 0xf0],       // lmsw ax
        &[0x0f, 0x01, 0x38],       // invlpg [rax]
        &[0x0f, 0x08],             // invd
        &[0x0f, 0x09],             // wbinvd
        &[0xf4],                   // hlt
        &[0xfa],                   // cli
        &[0xfb],                   // sti
        &[0xe4, 0x10],             // in al, 0x10
        &[0x0f, 0x33],             // rdpmc
    ];
    for bytes in privileged {
        assert_eq!(vector(&mut run_one(64, 3, bytes)), (13, Some(0)), "{bytes:x?}");
    }
    let absent: [&[u8]; 21] = [
        &[0x0f, 0x20, 0xc8],             // mov rax, cr1
        &[0x0f, 0x22, 0xf8],             // mov cr7, rax
        &[0x44, 0x0f, 0x20, 0xc8],       // mov rax, cr9
        &[0x44, 0x0f, 0x21, 0xc0],       // mov rax, dr8
        &[0xf0, 0x0f, 0x20, 0xc0],       // lock mov rax, cr0
        &[0x0f, 0x01, 0xc1],             // vmcall
        &[0x0f, 0x01, 0xd9],             // vmmcall
        &[0x0f, 0x01, 0xd0],             // xgetbv
        &[0x0f, 0x01, 0xd1],             // xsetbv
        &[0x0f, 0x01, 0xc8],             // monitor
        &[0x0f, 0x01, 0xc9],             // mwait
        &[0x0f, 0x01, 0xca],             // clac
        &[0x0f, 0x37],                   // getsec
        &[0x0f, 0xaa],                   // rsm
        &[0x0f, 0x78, 0xc0],             // vmread
        &[0x0f, 0xae, 0x20],             // xsave [rax]
        &[0xf3, 0x0f, 0xae, 0xc0],       // rdfsbase eax
        &[0x66, 0x0f, 0x38, 0x82, 0x00], // invpcid rax, [rax]
        &[0xc5, 0xf8, 0x28, 0xc1],       // vmovaps xmm0, xmm1
        &[0x0f, 0x01, 0xee],             // rdpkru
        &[0xc7, 0xf8, 0, 0, 0, 0],       // xbegin
    ];
    for bytes in absent {
        assert_eq!(vector(&mut run_one(64, 0, bytes)), (6, None), "{bytes:x?}");
    }
}

/// A pointer in 64-bit mode has all its bits, and a MOV in 32-bit mode has 32.
#[test]
fn control_registers_are_read_and_written() {
    let code = assemble(64, 0x1000, |a| {
        a.mov(cr2, rax).unwrap();
        a.mov(rbx, cr2).unwrap();
        a.mov(rcx, cr3).unwrap();
        a.mov(rdx, cr4).unwrap();
        a.mov(eax, 9).unwrap();
        a.mov(cr8, rax).unwrap();
        a.mov(rsi, cr8).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = long_mode(&code, 0);
    cpu.state.gpr[0] = 0x1234_5678_9abc_def0;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    let registers = [3, 1, 2, 6].map(|number| cpu.state.gpr[number]);
    assert_eq!(registers, [0x1234_5678_9abc_def0, PML4, cr4::PAE, 9]);
    let mut cpu = run_one(64, 0, &[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    assert_eq!(vector(&mut cpu), (13, Some(0)));
}

#[test]
fn the_status_word_is_a_part_of_cr0() {
    // lmsw ax: PE, MP, EM and TS. It cannot leave protected mode.
    let mut cpu = run_one(16, 0, &[0x0f, 0x01, 0xf0]);
    cpu.state.gpr[0] = 0xffff_ffff;
    cpu.run(1);
    assert_eq!(cpu.state.cr0, 0x6000_001f);
    let mut cpu = run_one(32, 0, &[0x0f, 0x01, 0xf0]);
    cpu.state.gpr[0] = 0;
    cpu.run(1);
    assert_eq!(cpu.state.cr0, PE | cr0::ET | cr0::NE);
    // smsw in each width, also in ring 3.
    for (bytes, want) in [
        (&[0x0f, 0x01, 0xe0][..], 0x8005_0031),
        (&[0x66, 0x0f, 0x01, 0xe0], 0x1234_5678_9abc_0031),
        (&[0x48, 0x0f, 0x01, 0xe0], 0x8005_0031),
    ] {
        let mut cpu = run_one(64, 3, bytes);
        cpu.run(1);
        assert_eq!(cpu.state.gpr[0], want, "{bytes:x?}");
    }
    // To memory it writes 16 bits.
    let mut cpu = run_one(32, 0, &[0x0f, 0x01, 0x25, 0, 0x20, 0, 0]);
    cpu.memory().write(0x2000, &[0xff; 4]);
    cpu.run(1);
    assert_eq!(cpu.memory().read(0x2000, 4), [0x31, 0, 0xff, 0xff]);
    // clts
    let mut cpu = run_one(32, 0, &[0x0f, 0x06]);
    cpu.state.cr0 |= cr0::TS;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.cr0 & cr0::TS, 0);
}

#[test]
fn debug_registers_have_fixed_bits() {
    let write = |number: u8, value: u64| {
        let mut cpu = run_one(64, 0, &[0x0f, 0x23, 0xc0 | number << 3]);
        cpu.state.gpr[0] = value;
        (cpu.run(1), cpu.state.dr[usize::from(number)])
    };
    assert_eq!(write(0, 1 << 63), (Exit::SliceEnd, 1 << 63));
    assert_eq!(write(6, 0), (Exit::SliceEnd, 0xffff_0ff0));
    assert_eq!(write(6, 0xffff_ffff), (Exit::SliceEnd, 0xffff_efff));
    assert_eq!(write(7, 0), (Exit::SliceEnd, 0x400));
    assert_eq!(write(7, 1).0, Exit::Unsupported(Missing::Breakpoint));
    assert_eq!(write(6, 1 << 32).0, Exit::Shutdown);
    assert_eq!(write(7, 1 << 32).0, Exit::Shutdown);
    // DR4 is DR6, unless debugging extensions are on.
    let mut cpu = run_one(64, 0, &[0x0f, 0x21, 0xe0]);
    cpu.run(1);
    assert_eq!(cpu.state.gpr[0], 0xffff_0ff0);
    let mut cpu = run_one(64, 0, &[0x0f, 0x21, 0xe0]);
    cpu.state.cr4 |= cr4::DE;
    assert_eq!(vector(&mut cpu), (6, None));
    // DR7.GD: the access raises #DB.
    let mut cpu = run_one(64, 0, &[0x0f, 0x21, 0xc0]);
    cpu.state.dr[7] |= 1 << 13;
    assert_eq!(fault(&mut cpu).vector, 1);
    assert_eq!((cpu.state.dr[6], cpu.state.dr[7]), (0xffff_2ff0, 0x400));
}

/// A guest goes from real mode to long mode by itself.
#[test]
fn a_guest_switches_to_long_mode() {
    let code = assemble(32, 0x1000, |a| {
        a.mov(eax, cr4).unwrap();
        a.or(eax, 1 << 5).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, PML4 as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 1 << 8).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = long_mode(&code, 0);
    cpu.state.segments[seg::CS] = flat(8, 0b1011);
    (cpu.state.cr0, cpu.state.cr3) = (PE | cr0::ET, 0);
    (cpu.state.cr4, cpu.state.efer) = (0, 0);
    cpu.state_changed();
    let mut without = Cpu::new(cpu.memory().clone());
    without.state = cpu.state.clone();
    assert_eq!(vector(&mut without), (13, Some(0)), "CPUID does not show long mode");
    cpu.set_cpuid(supported_cpuid());
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.efer, efer::LME | efer::LMA);
    assert!(cpu.state.is_long() && !cpu.state.is_64());
}
