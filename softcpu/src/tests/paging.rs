use super::{Access, pte};
use crate::Cpu;
use crate::memory::VecMemory;
use crate::state::{cr0, cr4, efer};
use crate::testing::{MEMORY, PML4, finish, long_mode, protected_mode};
use crate::trap::Trap;

const ALL: u64 = 7;
const TABLES: u64 = 0x8_0000;
const PAGE_AT: u64 = 0x3000;

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Legacy,
    Pae,
    Long,
}

const MODES: [Mode; 3] = [Mode::Legacy, Mode::Pae, Mode::Long];

impl Mode {
    fn levels(self) -> usize {
        if self == Self::Long { 4 } else { 2 }
    }

    fn width(self) -> usize {
        if self == Self::Legacy { 4 } else { 8 }
    }
}

/// The linear address that the tests map. Its index is 1 in each structure.
fn linear(mode: Mode) -> u64 {
    match mode {
        Mode::Legacy => 1 << 22 | 1 << 12,
        Mode::Pae => 1 << 30 | 1 << 21 | 1 << 12,
        Mode::Long => 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12,
    }
}

/// A processor that maps one page at [`PAGE_AT`]. Its structures follow each other from [`TABLES`], without rights.
fn machine(mode: Mode) -> Cpu<VecMemory> {
    let mut cpu = protected_mode(&[], 0);
    let state = &mut cpu.state;
    state.cr0 |= cr0::PG | cr0::WP;
    state.cr3 = TABLES;
    state.efer = efer::NXE;
    match mode {
        Mode::Legacy => {}
        Mode::Pae => {
            state.cr4 = cr4::PAE;
            state.pdptrs[1] = TABLES | 1;
        }
        Mode::Long => {
            state.cr4 = cr4::PAE;
            state.efer |= efer::LME | efer::LMA;
            state.segments[1].long = true;
        }
    }
    for level in 0..mode.levels() {
        set(&cpu, mode, level, ALL);
    }
    cpu.state_changed();
    cpu
}

/// The address of the entry at a level, 0 for the top.
fn place(mode: Mode, level: usize) -> usize {
    TABLES as usize + level * 0x1000 + mode.width()
}

fn set(cpu: &Cpu<VecMemory>, mode: Mode, level: usize, flags: u64) {
    let last = level + 1 == mode.levels();
    let target = if last { PAGE_AT } else { TABLES + (level as u64 + 1) * 0x1000 };
    set_raw(cpu, mode, level, target | flags);
}

fn set_raw(cpu: &Cpu<VecMemory>, mode: Mode, level: usize, entry: u64) {
    cpu.memory().write(place(mode, level), &entry.to_le_bytes()[..mode.width()]);
}

fn get(cpu: &Cpu<VecMemory>, mode: Mode, level: usize) -> u64 {
    let mut bytes = cpu.memory().read(place(mode, level), mode.width());
    bytes.resize(8, 0);
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn physical(cpu: &mut Cpu<VecMemory>, at: u64, access: Access, user: bool) -> Result<u64, u32> {
    match cpu.translate(at, access, user) {
        Ok(entry) => Ok(entry.gpa | at & 0xfff),
        Err(Trap::Fault(exception)) => {
            assert_eq!((exception.vector, exception.address), (14, at));
            Err(exception.error.unwrap().into())
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// A small generator of random numbers (Knuth's MMIX).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// The rights of all levels are combined (SDM volume 3, section 4.6.1), the error code tells the access (section 4.7), and
/// the accessed and dirty bits are set (section 4.8).
#[test]
fn rights_are_those_of_all_levels() {
    let mut seed = 1;
    for mode in MODES {
        let mut cpu = machine(mode);
        for _ in 0..20_000 {
            let protects = random(&mut seed) & 1 != 0;
            cpu.state.cr0 = cpu.state.cr0 & !cr0::WP | if protects { cr0::WP } else { 0 };
            cpu.tlb.flush();
            let access = [Access::Read, Access::Write, Access::Execute][random(&mut seed) as usize % 3];
            let user = random(&mut seed) & 1 != 0;
            let (mut all, mut none, mut present) = (ALL, 0, true);
            for level in 0..mode.levels() {
                let mut flags = random(&mut seed) & 6;
                flags |= u64::from(!random(&mut seed).is_multiple_of(8));
                // Each bit of a level is set in three of four cases.
                flags |= random(&mut seed) & random(&mut seed) & 6;
                if mode != Mode::Legacy && random(&mut seed).is_multiple_of(8) {
                    flags |= pte::NO_EXECUTE;
                }
                set(&cpu, mode, level, flags);
                all &= flags;
                none |= flags & pte::NO_EXECUTE;
                present &= flags & 1 != 0;
            }
            let allowed = match access {
                _ if user && all & pte::USER == 0 => false,
                Access::Read => true,
                Access::Write => all & pte::WRITABLE != 0 || (!user && !protects),
                Access::Execute => none == 0,
            };
            let code = u32::from(present)
                | if access == Access::Write { 2 } else { 0 }
                | if user { 4 } else { 0 }
                | if access == Access::Execute && mode != Mode::Legacy { 16 } else { 0 };
            let want = if present && allowed { Ok(PAGE_AT | 0xabc) } else { Err(code) };
            let at = linear(mode) | 0xabc;
            assert_eq!(physical(&mut cpu, at, access, user), want, "{mode:?} {access:?} {user} {all:#x}");
            // The same once more, from the TLB.
            assert_eq!(physical(&mut cpu, at, access, user), want);
            let last = mode.levels() - 1;
            if want.is_ok() {
                assert!((0..=last).all(|level| get(&cpu, mode, level) & pte::ACCESSED != 0));
                assert_eq!(get(&cpu, mode, last) & pte::DIRTY != 0, access == Access::Write);
                assert!((0..last).all(|level| get(&cpu, mode, level) & pte::DIRTY == 0));
            } else {
                assert_eq!(get(&cpu, mode, last) & (pte::ACCESSED | pte::DIRTY), 0);
            }
        }
    }
}

/// The first write sets the dirty bit, also after a read has filled the TLB.
#[test]
fn a_write_after_a_read_sets_the_dirty_bit() {
    for mode in MODES {
        let mut cpu = machine(mode);
        let last = mode.levels() - 1;
        physical(&mut cpu, linear(mode), Access::Read, false).unwrap();
        assert_eq!(get(&cpu, mode, last) & (pte::ACCESSED | pte::DIRTY), pte::ACCESSED);
        physical(&mut cpu, linear(mode), Access::Write, false).unwrap();
        assert_eq!(get(&cpu, mode, last) & pte::DIRTY, pte::DIRTY);
    }
}

/// A reserved bit raises a fault with RSVD and P (SDM volume 3, tables 4-4 and following).
#[test]
fn reserved_bits_fault() {
    let reserved = |mode: Mode, level: usize, extra: u64| {
        let mut cpu = machine(mode);
        cpu.state.cr4 |= cr4::PSE;
        set_raw(&cpu, mode, level, get(&cpu, mode, level) | extra);
        physical(&mut cpu, linear(mode), Access::Read, true) == Err(1 | 4 | 8)
    };
    for bit in 46..52 {
        assert!((0..4).all(|level| reserved(Mode::Long, level, 1 << bit)), "{bit}");
        assert!((0..2).all(|level| reserved(Mode::Pae, level, 1 << bit)), "{bit}");
    }
    for bit in 52..63 {
        assert!((0..4).all(|level| !reserved(Mode::Long, level, 1 << bit)), "{bit}");
        assert!((0..2).all(|level| reserved(Mode::Pae, level, 1 << bit)), "{bit}");
    }
    assert!(reserved(Mode::Long, 0, pte::LARGE));
    for bit in 13..21 {
        assert!(reserved(Mode::Long, 2, pte::LARGE | 1 << bit), "{bit}");
        assert!(reserved(Mode::Pae, 0, pte::LARGE | 1 << bit), "{bit}");
    }
    for bit in 13..30 {
        assert!(reserved(Mode::Long, 1, pte::LARGE | 1 << bit), "{bit}");
    }
    assert!(reserved(Mode::Legacy, 0, pte::LARGE | 1 << 21));
    // Without NXE, bit 63 is reserved.
    for mode in [Mode::Pae, Mode::Long] {
        let mut cpu = machine(mode);
        cpu.state.efer &= !efer::NXE;
        set(&cpu, mode, 1, ALL | pte::NO_EXECUTE);
        assert_eq!(physical(&mut cpu, linear(mode), Access::Execute, false), Err(9));
    }
}

/// A page that is not present faults before reserved bits further down are seen.
#[test]
fn absence_comes_before_reserved_bits() {
    let mut cpu = machine(Mode::Long);
    set_raw(&cpu, Mode::Long, 2, !1);
    assert_eq!(physical(&mut cpu, linear(Mode::Long), Access::Write, false), Err(2));
}

#[test]
fn large_pages() {
    // 4 MiB, with bits 32 to 39 of the address in bits 13 to 20 (PSE-36). Without CR4.PSE the bit is ignored.
    let mode = Mode::Legacy;
    let mut cpu = machine(mode);
    set_raw(&cpu, mode, 0, 0x12c0_0000 | 0x2a << 13 | 1 << 12 | pte::LARGE | ALL);
    cpu.state.cr4 = cr4::PSE;
    let at = linear(mode) | 0x12_3456;
    assert_eq!(physical(&mut cpu, at, Access::Write, true), Ok(0x2a_12d2_3456 | 0x1000));
    assert_eq!(get(&cpu, mode, 0) & (pte::ACCESSED | pte::DIRTY), pte::ACCESSED | pte::DIRTY);
    set(&cpu, mode, 0, ALL | pte::LARGE);
    cpu.state.cr4 = 0;
    cpu.tlb.flush();
    assert_eq!(physical(&mut cpu, linear(mode), Access::Read, true), Ok(PAGE_AT));
    // 2 MiB.
    for (mode, level) in [(Mode::Pae, 0), (Mode::Long, 2)] {
        let mut cpu = machine(mode);
        set_raw(&cpu, mode, level, 0x3f_ffe0_0000 | 1 << 12 | pte::LARGE | ALL);
        assert_eq!(physical(&mut cpu, linear(mode) | 0xff00f, Access::Read, true), Ok(0x3f_ffef_f00f));
    }
    // 1 GiB.
    let mut cpu = machine(Mode::Long);
    set_raw(&cpu, Mode::Long, 1, 0x3f_c000_0000 | 1 << 12 | pte::LARGE | ALL);
    let at = linear(Mode::Long) | 0x1edc_ba98;
    assert_eq!(physical(&mut cpu, at, Access::Read, true), Ok(0x3f_defc_ba98 | 0x20_1000));
}

/// A structure in a place without memory has no entries.
#[test]
fn structures_without_memory() {
    let mut cpu = machine(Mode::Long);
    set_raw(&cpu, Mode::Long, 1, MEMORY as u64 | ALL);
    assert_eq!(physical(&mut cpu, linear(Mode::Long), Access::Read, false), Err(0));
}

/// A translation may stay until INVLPG or a load of CR3, but more rights count at once.
#[test]
fn the_tlb_is_flushed() {
    let mode = Mode::Long;
    let at = linear(mode);
    let mut cpu = machine(mode);
    set(&cpu, mode, 3, 1);
    physical(&mut cpu, at, Access::Read, false).unwrap();
    set(&cpu, mode, 3, ALL);
    assert_eq!(physical(&mut cpu, at, Access::Write, true), Ok(PAGE_AT), "more rights");
    set(&cpu, mode, 3, 0);
    cpu.tlb.flush_page(at ^ 0x1000);
    assert_eq!(physical(&mut cpu, at, Access::Write, true), Ok(PAGE_AT), "another page");
    cpu.tlb.flush_page(at | 0xfff);
    assert_eq!(physical(&mut cpu, at, Access::Write, true), Err(6));
    set(&cpu, mode, 3, ALL);
    physical(&mut cpu, at, Access::Read, false).unwrap();
    set(&cpu, mode, 3, 0);
    assert_eq!(cpu.write_cr3(TABLES), Ok(()));
    assert_eq!(physical(&mut cpu, at, Access::Read, false), Err(0));
}

/// A global translation stays when CR3 is loaded, if CR4.PGE is set. A change of CR4.PGE flushes it.
#[test]
fn global_pages_stay() {
    let mode = Mode::Long;
    let at = linear(mode);
    for enabled in [0, cr4::PGE] {
        let mut cpu = machine(mode);
        cpu.state.cr4 |= enabled;
        set(&cpu, mode, 3, ALL | pte::GLOBAL);
        physical(&mut cpu, at, Access::Read, false).unwrap();
        set(&cpu, mode, 3, 0);
        assert_eq!(cpu.write_cr3(TABLES), Ok(()));
        let stays = physical(&mut cpu, at, Access::Read, false).is_ok();
        assert_eq!(stays, enabled != 0);
        assert_eq!(cpu.write_cr4(cr4::PAE | cr4::PGE ^ enabled), Ok(()));
        assert_eq!(physical(&mut cpu, at, Access::Read, false), Err(0));
    }
    let mut cpu = machine(mode);
    cpu.state.cr4 |= cr4::PGE;
    set(&cpu, mode, 3, ALL | pte::GLOBAL);
    physical(&mut cpu, at, Access::Read, false).unwrap();
    set(&cpu, mode, 3, 0);
    cpu.tlb.flush_page(at);
    assert_eq!(physical(&mut cpu, at, Access::Read, false), Err(0));
}

/// INVLPG forgets all parts of a large page (SDM volume 3, section 4.10.4.1).
#[test]
fn invlpg_forgets_a_whole_large_page() {
    let mode = Mode::Long;
    let mut cpu = machine(mode);
    set_raw(&cpu, mode, 2, pte::LARGE | ALL);
    let at = linear(mode) & !0x1f_ffff;
    let parts = [0, 0x1000, 0x1f_f000];
    for part in parts {
        physical(&mut cpu, at | part, Access::Read, false).unwrap();
    }
    set_raw(&cpu, mode, 2, 0);
    cpu.tlb.flush_page(at | 0x5000);
    for part in parts {
        assert_eq!(physical(&mut cpu, at | part, Access::Read, false), Err(0), "{part:#x}");
    }
}

/// Many flushes do not bring back an old translation.
#[test]
fn old_generations_do_not_return() {
    let mode = Mode::Legacy;
    let mut cpu = machine(mode);
    physical(&mut cpu, linear(mode), Access::Read, false).unwrap();
    set(&cpu, mode, 1, 0);
    for _ in 0..10_000 {
        cpu.tlb.flush();
        assert_eq!(physical(&mut cpu, linear(mode), Access::Read, false), Err(0));
    }
}

/// CR0.WP counts from the next instruction on.
#[test]
fn write_protection_changes_at_once() {
    let mode = Mode::Legacy;
    let mut cpu = machine(mode);
    set(&cpu, mode, 1, 5);
    assert_eq!(physical(&mut cpu, linear(mode), Access::Write, false), Err(3));
    assert_eq!(cpu.write_cr0(cpu.state.cr0 & !cr0::WP), Ok(()));
    assert_eq!(physical(&mut cpu, linear(mode), Access::Write, false), Ok(PAGE_AT));
    assert_eq!(cpu.write_cr0(cpu.state.cr0 | cr0::WP), Ok(()));
    assert_eq!(physical(&mut cpu, linear(mode), Access::Write, false), Err(3));
}

/// A page table that maps itself: the guest reads its own entries, with the bits that the walk has just set.
#[test]
fn tables_map_themselves() {
    let mut cpu = long_mode(&[], 0);
    let slot = 0x100u64;
    cpu.memory().write((PML4 + 8 * slot) as usize, &(PML4 | 3).to_le_bytes());
    let index = |levels: [u64; 4]| levels.iter().fold(0, |at, level| at << 9 | level) << 12;
    let at = index([slot, slot, slot, slot]) as i64;
    let at = (at << 16 >> 16) as u64;
    let entry = cpu.load_linear(at + 8 * slot, 8, false);
    assert_eq!(entry, Ok(PML4 | 3 | pte::ACCESSED));
    assert_eq!(cpu.store_linear(at + 8 * slot, 8, PML4 | 3, false), Ok(()));
    // The walk for the write had set the dirty bit, which the write itself then cleared.
    assert_eq!(cpu.load_linear(at + 8 * slot, 8, false), Ok(PML4 | 3));
}

/// A page-table entry that is the operand of an instruction: the walk changes the code.
#[test]
fn an_entry_in_code_changes_it() {
    // mov rax, 0x3003; mov rbx, [0x8000_0000]; dec ecx; jns to the beginning; hlt
    let code: &[u8] = &[
        0x48, 0xb8, 0x03, 0x30, 0, 0, 0, 0, 0, 0, // the entry at 0x1008
        0x48, 0x8b, 0x1c, 0x25, 0, 0, 0, 0x40, // mov rbx, [0x4000_0000]
        0xff, 0xc9, 0x79, 0xea, 0xf4,
    ];
    let mut cpu = long_mode(&[], 0);
    cpu.memory().write(0x1006, code);
    cpu.state.rip = 0x1006;
    cpu.state.gpr[1] = 1;
    // The entry is the second of the page table at 0x1000, so move the address to the second page.
    cpu.memory().write(0x1006 + 14, &0x4000_1000u32.to_le_bytes());
    let pdpt = PML4 + 0x1000;
    cpu.memory().write(pdpt as usize + 8, &0x9003u64.to_le_bytes());
    cpu.memory().write(0x9000, &0x1003u64.to_le_bytes());
    cpu.memory().write(0x3000, &0x55u64.to_le_bytes());
    cpu.run(3);
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[3]), (0x3003, 0x55));
    finish(&mut cpu);
    assert_eq!(cpu.state.gpr[0], 0x3003 | pte::ACCESSED);
}
