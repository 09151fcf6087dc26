//! Explanations of made-up states of a vCPU, without KVM.

use super::*;
use crate::memory::{PAGE, TABLES, TABLES_SIZE};
use crate::x86::modes;

/// Explains a long-mode guest with `code` at 0x1000 and its identity map.
fn explain(code: &[u8], regs: Regs) -> Explanation {
    explain_in(Mode::Long, code, regs)
}

/// Explains a guest in long mode, ring 0 or ring 3.
fn explain_in(mode: Mode, code: &[u8], regs: Regs) -> Explanation {
    let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
    let tables = Gpa(TABLES.0 + PAGE);
    let map = match mode {
        Mode::User => modes::bytes(&modes::user_identity_map(tables)),
        _ => modes::bytes(&modes::identity_map(tables)),
    };
    memory.write(tables, &map).unwrap();
    memory.write(Gpa(0x1000), code).unwrap();
    let sregs = modes::sregs(mode, Sregs::default(), TABLES, modes::VcpuIndex::ALONE);
    let location = Location::At { mode, cs: sregs.cs.selector, rip: regs.rip };
    Explanation::new(location, regs, sregs, &memory, &DIED).unwrap()
}

/// A guest that died, about which nothing else is known.
const DIED: Scene<'_> = Scene {
    image: None,
    stack_top: None,
    stack_base: None,
    is_kernel: false,
    has_window: false,
    died: true,
    is_unemulated: false,
    is_soft: false,
    is_foreign: false,
};

fn at_code() -> Regs {
    Regs { rip: 0x1000, rsp: 0xf_fff0, ..Default::default() }
}

fn suspicion(code: &[u8]) -> String {
    explain(code, at_code()).suspicion().unwrap_or("none").into()
}

#[test]
fn each_faulting_instruction_has_its_suspicion() {
    // ud2
    assert_eq!(suspicion(&[0x0f, 0x0b]), "#UD: an undefined instruction");
    // div rcx
    assert!(suspicion(&[0x48, 0xf7, 0xf1]).starts_with("#DE: a division by zero"));
    // xorps xmm0, xmm0
    assert!(suspicion(&[0x0f, 0x57, 0xc0]).starts_with("#UD: SSE is not enabled"));
    // int 0x80
    assert_eq!(
        suspicion(&[0xcd, 0x80]),
        "#GP: int 0x80 without a handler: the IDT has no entry 128 (its limit is 0x0)"
    );
    assert!(suspicion(&[0; 8]).starts_with("execution of zeroed memory"));
    // nop
    assert_eq!(suspicion(&[0x90]), "none");
    assert_eq!(suspicion(&[0x0f, 0xae, 0xe8]), "none", "lfence does not need SSE to be enabled");
}

#[test]
fn an_operand_at_a_wrong_address_is_suspected() {
    let unmapped = "#PF: the operand's address, 0x10000000000, is not mapped";
    // mov eax, [rbx]
    let load: &[u8] = &[0x8b, 0x03];
    // RBX is past the end of the identity map.
    let regs = Regs { rbx: 1 << 40, ..at_code() };
    assert_eq!(explain(load, regs).suspicion(), Some(unmapped));
    assert_eq!(explain(load, at_code()).suspicion(), None);
    // div qword [rbx]; movnti [rbx], eax: the address counts before the operation.
    for code in [&[0x48, 0xf7, 0x33][..], &[0x0f, 0xc3, 0x03]] {
        assert_eq!(explain(code, regs).suspicion(), Some(unmapped));
    }
    // lea rax, [rbx]; prefetcht0 [rbx]; prefetchnta [rbx]
    for code in [&[0x48, 0x8d, 0x03][..], &[0x0f, 0x18, 0x0b], &[0x0f, 0x18, 0x03]] {
        assert_eq!(explain(code, regs).suspicion(), None, "{code:x?}");
    }
    let regs = Regs { rbx: 1 << 62, rbp: 1 << 62, ..at_code() };
    assert_eq!(
        explain(load, regs).suspicion(),
        Some("#GP: the operand's address, 0x4000000000000000, is not canonical")
    );
    // mov eax, [rbp + 0]
    assert!(explain(&[0x8b, 0x45, 0], regs).suspicion().unwrap().starts_with("#SS: "));
}

#[test]
fn an_operand_that_is_not_aligned_is_suspected() {
    let at = |code: &[u8]| {
        let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
        let tables = Gpa(TABLES.0 + PAGE);
        memory.write(tables, &modes::bytes(&modes::identity_map(tables))).unwrap();
        memory.write(Gpa(0x1000), code).unwrap();
        let mut sregs = modes::sregs(Mode::Long, Sregs::default(), TABLES, modes::VcpuIndex::ALONE);
        // SSE is enabled.
        sregs.cr4 |= 1 << 9;
        let location = Location::At { mode: Mode::Long, cs: sregs.cs.selector, rip: 0x1000 };
        let regs = Regs { rbx: 0x2004, ..at_code() };
        let explanation = Explanation::new(location, regs, sregs, &memory, &DIED).unwrap();
        explanation.suspicion().unwrap_or("none").to_owned()
    };
    // movaps xmm0, [rbx]; addps xmm0, [rbx]; cmpxchg16b [rbx]
    for code in [&[0x0f, 0x28, 0x03][..], &[0x0f, 0x58, 0x03], &[0x48, 0x0f, 0xc7, 0x0b]] {
        assert!(
            at(code).starts_with("#GP: the operand's address, 0x2004, is not a multiple of 16, as "),
            "{}",
            at(code)
        );
    }
    // movups xmm0, [rbx]; addss xmm0, [rbx]; mov rax, [rbx]
    for code in [&[0x0f, 0x10, 0x03][..], &[0xf3, 0x0f, 0x58, 0x03], &[0x48, 0x8b, 0x03]] {
        assert_eq!(at(code), "none");
    }
}

#[test]
fn a_branch_to_an_address_that_is_not_canonical_is_suspected() {
    let text = "#GP: a jump to an address that is not canonical, 0x4000000000000000";
    let regs = Regs { rbx: 1 << 62, ..at_code() };
    // jmp rbx; call rbx
    for code in [&[0xff, 0xe3][..], &[0xff, 0xd3]] {
        assert_eq!(explain(code, regs).suspicion(), Some(text));
        assert_eq!(explain(code, at_code()).suspicion(), None);
    }
}

#[test]
fn a_wrong_instruction_pointer_is_suspected() {
    let suspicion = |rip| explain(&[0x90], Regs { rip, ..at_code() }).suspicion().map(String::from).unwrap();
    assert!(suspicion(1 << 39).starts_with("#PF: the instruction's address is not mapped"));
    assert_eq!(suspicion(1 << 62), "#GP: a jump to an address that is not canonical");
    assert_eq!(suspicion(0x8000_0000), "a jump to a wrong address, where there is no memory");
}

#[test]
fn a_privileged_instruction_is_suspected_only_in_ring_3() {
    let suspicion = |code: &[u8], mode| explain_in(mode, code, at_code()).suspicion().map(String::from);
    // cli; mov cr3, rax
    for code in [&[0xfa][..], &[0x0f, 0x22, 0xd8]] {
        let privileged = Some("#GP: a privileged instruction in ring 3".to_string());
        assert_eq!(suspicion(code, Mode::User), privileged, "{code:x?}");
        assert_eq!(suspicion(code, Mode::Long), None);
    }
    // hlt
    assert!(suspicion(&[0xf4], Mode::User).unwrap().ends_with("write port 0xf4 instead"));
    assert_eq!(suspicion(&[0xf4], Mode::Long), None);
    // out 0xf4, al; outsb
    for code in [&[0xe6, 0xf4][..], &[0x6e]] {
        assert_eq!(suspicion(code, Mode::User), None, "{code:x?}");
    }
}

#[test]
fn the_mapping_follows_the_page_tables() {
    let mapping = |rip| explain(&[0x90], Regs { rip, ..at_code() }).mapping;
    assert_eq!(mapping(0x1000), "0x1000 maps to 0x1000 (2 MiB page, writable)");
    assert_eq!(
        mapping(0x8000_0000),
        "0x80000000 maps to 0x80000000 (2 MiB page, writable), where there is no memory"
    );
    assert!(mapping(1 << 39).contains("is not mapped: its PML4 entry"));
    assert!(mapping(1 << 32).contains("is not mapped: its PDPT entry"));
    assert!(mapping(1 << 62).contains("is not canonical"));
}

#[test]
fn the_mapping_follows_32_bit_page_tables() {
    let memory = GuestMemory::new(&[(Gpa(0), 0x3000)]).unwrap();
    memory.write(Gpa(0x2004), &0x2003u32.to_le_bytes()).unwrap();
    let mut sregs = modes::sregs(Mode::Protected, Sregs::default(), Gpa(0), modes::VcpuIndex::ALONE);
    (sregs.cr0, sregs.cr3) = (sregs.cr0 | modes::CR0_PG, 0x2000);
    let location = Location::At { mode: Mode::Protected, cs: 8, rip: 0x1000 };
    let explanation = Explanation::new(location, at_code(), sregs, &memory, &DIED).unwrap();
    assert!(explanation.suspicion().unwrap().starts_with("#PF"), "{explanation}");
    assert_eq!(explanation.mapping, "0x1000 is not mapped: its PD entry at 0x2000 is 0x0");
}

#[test]
fn the_text_is_short_and_shows_the_instruction() {
    let text = explain(&[0x0f, 0x0b], at_code()).to_string();
    assert!(text.contains("0f 0b  ud2") && text.contains("rsp 00000000000ffff0"), "{text}");
    assert!(text.contains("stack        0 0\n"), "{text}");
    assert!(text.lines().count() < 12, "{text}");
}

#[test]
fn any_page_tables_and_registers_can_be_explained() {
    let memory = GuestMemory::new(&[(Gpa(0), 0x3000)]).unwrap();
    memory.write(Gpa(0), &[0xff; 0x3000]).unwrap();
    for cr3 in [0, 0x2000, 0x2ff8, u64::MAX] {
        for rip in [0, 0x2fff, u64::MAX, 1 << 47] {
            for mode in [Mode::Real, Mode::Protected, Mode::Long] {
                let mut sregs = modes::sregs(mode, Sregs::default(), Gpa(0), modes::VcpuIndex::ALONE);
                sregs.cr3 = cr3;
                (sregs.cs.base, sregs.ss.base) = (rip, u64::MAX);
                let regs = Regs { rip, rsp: u64::MAX, ..Default::default() };
                let location = Location::At { mode, cs: 0xffff, rip };
                let _ = Explanation::new(location, regs, sregs, &memory, &DIED).unwrap().to_string();
            }
        }
    }
}

mod astray;
mod entry_return;
mod foreign;
mod mistakes;
mod state;
