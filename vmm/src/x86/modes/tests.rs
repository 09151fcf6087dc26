use super::segments::descriptor;
use super::*;
use crate::memory::TASK_STATE;
use crate::x86::registers::Segment;

const TABLES: Gpa = Gpa(0x2000);

#[test]
fn the_gdt_holds_the_well_known_descriptors() {
    assert_eq!(gdt(Mode::Long), [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    assert_eq!(gdt(Mode::Protected), [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
}

#[test]
fn a_descriptor_splits_base_and_limit_as_in_the_manual() {
    let segment = Segment { base: 0x1234_5678, limit: 0x000a_bcde, g: 0, dpl: 3, ..data_segment() };
    assert_eq!(descriptor(&segment), 0x124a_f334_5678_bcde);
}

#[test]
fn the_identity_map_has_the_entries_of_the_manual() {
    let map = identity_map(TABLES);
    assert_eq!(map.len(), 6 * 512);
    assert_eq!((map[0], map[1]), (0x3003, 0));
    assert_eq!(map[512..517], [0x4003, 0x5003, 0x6003, 0x7003, 0]);
    assert_eq!(map[1024], 0x83, "the first page directory entry: present, writable, large");
    assert_eq!(map[1025], 0x20_0083);
}

#[test]
fn every_page_of_the_first_four_gib_maps_to_itself() {
    let map = identity_map(TABLES);
    for (page, entry) in (0u64..).zip(&map[1024..]) {
        assert_eq!(entry & !0xfff, page << 21);
    }
    assert_eq!(map[1024..].len() as u64 * (2 << 20), 4 << 30);
}

#[test]
fn real_mode_changes_cs_only() {
    let reset = Sregs { cr0: 0x6000_0010, ..Default::default() };
    let reset = Sregs { cs: Segment { selector: 0xf000, base: 0xffff_0000, ..reset.cs }, ..reset };
    let sregs = sregs(Mode::Real, reset, TABLES, VcpuIndex::ALONE);
    assert_eq!((sregs.cs.selector, sregs.cs.base), (0, 0));
    assert_eq!(Sregs { cs: reset.cs, ..sregs }, reset);
    let regs = regs(Mode::Real, Gpa(0x1000), VcpuIndex::ALONE);
    assert_eq!((regs.rip, regs.rsp, regs.rflags, regs.rax), (0x1000, 0, 2, 0));
}

#[test]
fn protected_mode_has_flat_32_bit_segments_and_no_paging() {
    let sregs = sregs(Mode::Protected, Sregs::default(), TABLES, VcpuIndex::ALONE);
    assert_eq!((sregs.cs.selector, sregs.cs.db, sregs.cs.l, sregs.cs.limit), (8, 1, 0, 0xffff_ffff));
    assert_eq!((sregs.ss.selector, sregs.gdt.base, sregs.gdt.limit), (0x10, 0x2000, 23));
    assert_eq!((sregs.cr0 & CR0_PE, sregs.cr0 & CR0_PG, sregs.efer), (CR0_PE, 0, 0));
    assert_eq!(regs(Mode::Protected, Gpa(0), VcpuIndex::ALONE).rsp, 1 << 20);
}

#[test]
fn long_mode_has_paging_and_a_64_bit_code_segment() {
    let sregs = sregs(Mode::Long, Sregs::default(), TABLES, VcpuIndex::ALONE);
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.ds.db), (1, 0, 1));
    assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (0x3000, 1 << 5, 0x500));
    assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), 0x8000_0001);
    assert_eq!(regs(Mode::Long, Gpa(0x10_0000), VcpuIndex::ALONE).rsp, 1 << 20);
}

#[test]
fn ring_3_has_its_own_segments_and_may_use_all_ports() {
    let reset = Sregs { tr: Segment { type_: 3, ..Default::default() }, ..Default::default() };
    let user = sregs(Mode::User, reset, TABLES, VcpuIndex::ALONE);
    assert_eq!((user.cs.selector, user.cs.dpl, user.cs.l), (0x1b, 3, 1));
    for data in [user.ds, user.es, user.fs, user.gs, user.ss] {
        assert_eq!((data.selector, data.dpl, data.type_), (0x23, 3, 3));
    }
    assert_eq!((user.tr.selector, user.tr.type_, user.tr.s, user.tr.present), (0x28, 0xb, 0, 1));
    assert_eq!((user.tr.base, user.tr.limit), (TASK_STATE.0, 0x68 + 8192));
    assert_eq!((user.gdt.base, user.gdt.limit), (0x2000, 7 * 8 - 1));
    let long = sregs(Mode::Long, reset, TABLES, VcpuIndex::ALONE);
    assert_eq!((user.cr0, user.cr3, user.cr4, user.efer), (long.cr0, long.cr3, long.cr4, long.efer));
    assert_eq!(long.tr, reset.tr);
    let [user, long] = [Mode::User, Mode::Long].map(|mode| regs(mode, Gpa(0x1000), VcpuIndex::ALONE));
    assert_eq!((user.rflags, long.rflags), (0x3002, 2));
    assert_eq!(Regs { rflags: 2, ..user }, long);
}

#[test]
fn the_gdt_of_ring_3_continues_that_of_long_mode() {
    let user = gdt(Mode::User);
    assert_eq!(user[..3], gdt(Mode::Long));
    assert_eq!(user[3..5], [0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff]);
    // Base 0xfffc_7000, limit 0x2068, present, a busy 64-bit task state.
    assert_eq!(user[5..], [0xff00_8bfc_7000_2068, 0]);
}

#[test]
fn the_task_state_allows_every_port() {
    let state = task_state();
    assert_eq!(state.len(), 0x68 + 8192 + 1);
    assert_eq!(state[0x66..0x68], [0x68, 0]);
    assert!(state[0x68..0x68 + 8192].iter().all(|byte| *byte == 0));
    assert_eq!(state.last(), Some(&0xff), "the manual requires ones after the bits of the last port");
}

#[test]
fn the_identity_map_of_ring_3_differs_in_one_bit() {
    let (plain, user) = (identity_map(TABLES), user_identity_map(TABLES));
    for (plain, user) in plain.into_iter().zip(user) {
        assert_eq!(user, if plain == 0 { 0 } else { plain | PTE_USER });
    }
}

#[test]
fn each_of_several_vcpus_has_its_own_stack_and_number() {
    let third = VcpuIndex { index: 2, of: 4, id: 0xbc };
    let long = regs(Mode::Long, Gpa(0x1000), third);
    assert_eq!((long.rsp, long.rdi, long.rsi), (0xf_8000, 0xbc, 4));
    let real = sregs(Mode::Real, Sregs::default(), TABLES, third);
    assert_eq!((real.ss.selector, real.ss.base), (0xe800, 0xe_8000));
    assert_eq!(regs(Mode::Real, Gpa(0), third).rsp, 0, "from the segment's end, 0xf_8000");
}
