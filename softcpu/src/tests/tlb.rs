use super::*;
use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{cr0, gpr, seg};
use crate::testing::{CODE, PML4, assemble, fault, finish, long_mode};
use crate::trap::Trap;
use iced_x86::code_asm::*;

/// A page whose rights the tests set.
const AT: u64 = 0x2_0000;

/// Maps the first 2 MiB with small pages. The page at [`AT`] has these rights, the others have all.
fn small_pages(cpu: &mut Cpu<VecMemory>, rights: u64) {
    let table = PML4 + 0x1_0000;
    for page in 0..512u64 {
        let rights = if page << 12 == AT { rights } else { 7 };
        cpu.memory().write((table + 8 * page) as usize, &(page << 12 | rights).to_le_bytes());
    }
    cpu.memory().write((PML4 + 0x2000) as usize, &(table | 7).to_le_bytes());
    cpu.state_changed();
}

#[test]
fn rights_of_one_privilege_are_not_those_of_the_other() {
    let mut cpu = long_mode(&[], 0);
    small_pages(&mut cpu, 3);
    cpu.store(seg::DS, AT, 8, 7).unwrap();
    assert_eq!(cpu.load(seg::DS, AT, 8), Ok(7));
    assert!(cpu.page_to_read(AT, 8).is_some() && cpu.page_to_write(AT, 8).is_some());
    cpu.tlb.set_privilege(true);
    assert!(cpu.tlb.page_to_read(AT, 8).is_none() && cpu.tlb.page_to_write(AT, 8).is_none());
    // Both have their own entry at the same time.
    cpu.translate(AT + 0x1000, Access::Read, true).unwrap();
    cpu.translate(AT + 0x1000, Access::Read, false).unwrap();
    assert!(cpu.tlb.page_to_read(AT + 0x1000, 8).is_some());
    cpu.tlb.set_privilege(false);
    assert!(cpu.page_to_read(AT + 0x1000, 8).is_some() && cpu.page_to_read(AT, 8).is_some());
}

/// A guest that leaves ring 0 by SYSRET loses the translations of ring 0.
#[test]
fn ring_3_has_no_page_of_ring_0() {
    let code = assemble(64, CODE, |a| {
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(ecx, CODE as u32 + 0x20).unwrap();
        a.mov(r11d, 2).unwrap();
        a.sysretq().unwrap();
    });
    let user = assemble(64, CODE + 0x20, |a| a.mov(rax, qword_ptr(rbx)).unwrap());
    let mut cpu = long_mode(&code, 0);
    cpu.memory().write(CODE as usize + 0x20, &user);
    small_pages(&mut cpu, 3);
    cpu.state.efer |= 1;
    cpu.state.syscall[0] = 0x10 << 48;
    cpu.state.gpr[gpr::BX] = AT;
    let fault = fault(&mut cpu);
    assert_eq!((fault.vector, fault.error, fault.cr2), (14, Some(5), Some(AT)));
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (CODE + 0x20, 3));
}

/// A page that was read must set its dirty bit when it is written, and one that is read-only must fault.
#[test]
fn a_translation_for_reads_is_none_for_writes() {
    for (rights, expected) in [(7, Exit::Halted), (5, Exit::Shutdown)] {
        let code = assemble(64, CODE, |a| {
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.mov(qword_ptr(rbx), rax).unwrap();
            a.add(qword_ptr(rbx), rax).unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = long_mode(&code, 0);
        cpu.state.cr0 |= cr0::WP;
        small_pages(&mut cpu, rights);
        cpu.state.gpr[gpr::BX] = AT;
        assert_eq!(cpu.run(1), Exit::SliceEnd);
        let entry = (PML4 + 0x1_0000 + 8 * (AT >> 12)) as usize;
        assert_eq!(cpu.memory().read(entry, 1), [rights as u8 | 0x20]);
        assert_eq!(finish(&mut cpu), expected);
        let dirty = if expected == Exit::Halted { 0x40 } else { 0 };
        assert_eq!(cpu.memory().read(entry, 1), [rights as u8 | 0x20 | dirty]);
    }
}

/// The long way checks accesses that are not aligned.
#[test]
fn only_aligned_accesses_are_found() {
    let mut cpu = long_mode(&[], 0);
    cpu.store(seg::DS, AT, 8, 7).unwrap();
    for size in [1u8, 2, 4, 8] {
        for at in 0..0x1000 {
            let found = cpu.page_to_read(AT + at, size).is_some();
            assert_eq!(found, at % u64::from(size) == 0, "{at:#x} {size}");
            assert_eq!(cpu.page_to_write(AT + at, size).is_some(), found);
        }
    }
}

/// An address that is not canonical has the same translation as one that is, if only its low bits are used.
#[test]
fn addresses_that_are_not_canonical_are_not_kept() {
    let mut cpu = long_mode(&[], 0);
    let strange = AT | 1 << 62;
    assert!(cpu.translate(strange, Access::Write, false).is_ok());
    assert!(cpu.page_to_read(strange, 8).is_none() && cpu.page_to_write(strange, 8).is_none());
    assert_eq!(cpu.load(seg::DS, strange, 8), Err(Trap::gp()));
}

/// Code that is stored into a page with other code is executed as it is, also through another address of the page.
#[test]
fn stores_beside_code_are_seen_when_it_becomes_code() {
    const OTHER: u64 = 0x3000;
    for alias in [0, 0x20_0000] {
        let code = assemble(64, CODE, |a| {
            // Before the code at `rbx` is executed for the first time, and after.
            for value in [0xc3c0_ff90u32, 0xc390_c0ff] {
                a.mov(dword_ptr(rbx), value).unwrap();
                a.call(CODE + 0x800).unwrap();
            }
            a.hlt().unwrap();
        });
        let mut cpu = long_mode(&code, 0);
        // The second 2 MiB are the first again.
        cpu.memory().write((PML4 + 0x2008) as usize, &0x87u64.to_le_bytes());
        cpu.state_changed();
        (cpu.state.gpr[gpr::AX], cpu.state.gpr[gpr::SP]) = (0, OTHER);
        cpu.state.gpr[gpr::BX] = CODE + 0x800 + alias;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        // nop; inc eax; ret, and inc eax; nop; ret.
        assert_eq!(cpu.state.gpr[gpr::AX], 2, "{alias:#x}");
    }
}
