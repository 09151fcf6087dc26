//! Guests outside their code, code for another mode, and kernels, as made-up states of a vCPU.

use super::super::*;
use super::mistakes::{Dead, START, assert_suspects, long};
use crate::memory::{TABLES, TABLES_SIZE};
use crate::x86::modes;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use simvirtio::abi;

/// PF and ZF, as after 0 + 0.
const FLAGS_OF_ZERO: u64 = 0x46;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[test]
fn a_run_through_zeroes_is_told_from_a_jump() {
    for mode in [Mode::Protected, Mode::Long] {
        let mut dead = Dead::new(mode, CodeAssembler::nop);
        (dead.regs.rip, dead.regs.rflags) = (abi::WINDOW, FLAGS_OF_ZERO);
        let text = "the guest ran past the end of its code (is the last hlt missing?), through zeroed memory, into the window";
        assert_suspects(&dead, text);
        // The last byte before the window is half an instruction.
        dead.regs.rip = abi::WINDOW - 1;
        assert_suspects(&dead, "the guest ran past the end of its code");
        // The stack is on the way, and the last sum is not zero.
        dead.regs.rip = abi::WINDOW;
        dead.memory.write(Gpa(abi::RAM_SIZE - 8), &0x1005u64.to_le_bytes()).unwrap();
        dead.memory.write(Gpa(0), &[0x80]).unwrap();
        assert_suspects(&dead, "a jump into the window of SIMVIRTIO");
        dead.regs.rflags = 0x82;
        assert_suspects(&dead, "the guest ran past the end of its code");
        dead.regs.rip = 0x20_0000;
        assert_suspects(&dead, "a jump to a wrong address, where there is no memory");
    }
}

#[test]
fn an_undefined_instruction_outside_the_image_is_not_blamed_alone() {
    for mode in [Mode::Real, Mode::Protected, Mode::Long] {
        let mut dead = Dead::new(mode, CodeAssembler::ud2);
        assert_suspects(&dead, "#UD: an undefined instruction");
        dead.regs.rip = 0xfff4;
        dead.memory.write(Gpa(0xfff4), &[0x0f, 0x0b]).unwrap();
        assert_suspects(
            &dead,
            "it left its image: it ran past its end, or jumped or returned to a wrong address",
        );
        dead.regs.rflags = FLAGS_OF_ZERO;
        assert_suspects(&dead, "the guest ran past the end of its code");
        // A death without a cause of its own: a nop.
        dead.memory.write(Gpa(0xfff4), &[0x90, 0x90]).unwrap();
        assert_suspects(&dead, "it left its image");
        // After a timeout, only zeroes are a sign: a guest may move its code.
        dead.died = false;
        assert_suspects(&dead, "none");
        dead.regs.rip = 0x8000;
        assert_suspects(&dead, "the guest ran past the end of its code (is the last hlt missing?)");
        dead.regs.rflags = 2;
        assert_suspects(&dead, "it left its image");
    }
}

#[test]
fn code_for_another_mode_is_recognised() {
    let sixty_four: Write = |code| {
        code.mov(eax, 42)?;
        code.mov(dword_ptr(0x400), eax)?;
        code.hlt()
    };
    let with_rex: Write = |code| {
        code.mov(rbx, rax)?;
        code.mov(rcx, rbx)?;
        code.hlt()
    };
    let with_immediate: Write = |code| {
        code.mov(rax, 0x1122_3344_5566_7788u64)?;
        code.mov(rbx, rax)?;
        code.hlt()
    };
    let sixteen: Write = |code| {
        code.mov(ax, 42)?;
        code.mov(word_ptr(0x400), ax)?;
        code.hlt()
    };
    for (bits, write, mode, choice) in [
        (64, sixty_four, Mode::Real, Some(":32 or :64")),
        (64, with_rex, Mode::Real, Some(":64")),
        (32, sixty_four, Mode::Real, Some(":32 or :64")),
        (16, sixteen, Mode::Long, Some(":16")),
        (16, sixteen, Mode::Protected, Some(":16")),
        (16, sixteen, Mode::Real, None),
        (32, sixty_four, Mode::Protected, None),
        (64, with_immediate, Mode::Protected, Some(":64")),
        (64, with_rex, Mode::Protected, None),
        (64, sixty_four, Mode::Long, None),
        (64, with_rex, Mode::User, None),
        (16, CodeAssembler::nop, Mode::Real, None),
        (64, CodeAssembler::nop, Mode::Long, None),
    ] {
        let mut code = CodeAssembler::new(bits).unwrap();
        write(&mut code).unwrap();
        let image = Image::flat(code.assemble(START).unwrap(), mode, Gpa(START)).unwrap();
        let expected =
            choice.map(|choice| format!("the code is for another mode: give {choice} (FILE@ADDR:MODE)"));
        assert_eq!(other_mode::advice(&image).as_deref(), expected.as_deref(), "{bits} {mode}");
    }
}

#[test]
fn the_guests_of_the_catalogue_are_for_their_own_modes() {
    for guest in guest::GUESTS {
        let image = Image::flat(guest.image.to_vec(), guest.mode, Gpa(guest.load_at)).unwrap();
        assert_eq!(other_mode::advice(&image), None, "{}", guest.name);
    }
}

#[test]
fn a_stack_that_has_not_moved_has_not_overflowed() {
    let mut dead = Dead::at(0, Mode::Real, CodeAssembler::hlt);
    dead.memory.write(Gpa(0), &[0x90]).unwrap();
    assert_eq!(dead.regs.rsp, 0);
    dead.regs.rip = 0x10;
    assert_suspects(&dead, "execution of zeroed memory");
    dead.memory.write(Gpa(0x8000), &[0; 2]).unwrap();
    let mut grown = Dead::new(Mode::Real, CodeAssembler::hlt);
    grown.memory.write(Gpa(START), &[0x90]).unwrap();
    grown.regs.rsp = START;
    assert_suspects(&grown, "a stack overflow");
}

#[test]
fn a_segment_without_code_is_outside_the_code() {
    let mut dead = long(CodeAssembler::ret);
    // The headers of an ELF file, in a segment of their own.
    let image = Image::with_data(&dead.image, 0x4000, b"\x7fELF\x02\x01\x01");
    image.load(&dead.memory, abi::RAM_SIZE).unwrap();
    dead.image = image;
    (dead.regs.rip, dead.regs.rsp) = (0x4000, abi::RAM_SIZE + 8);
    assert_suspects(&dead, "the entry point returned");
}

/// Explains a kernel that died at 0x1000, with its code there.
fn kernel(code: &[u8], pointer: u64) -> String {
    let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
    let map = modes::bytes(&modes::identity_map(Gpa(TABLES.0 + crate::memory::PAGE)));
    memory.write(Gpa(TABLES.0 + crate::memory::PAGE), &map).unwrap();
    memory.write(Gpa(START), code).unwrap();
    let sregs = modes::sregs(Mode::Long, Sregs::default(), TABLES, modes::VcpuIndex::ALONE);
    let regs = Regs { rip: START, rsp: pointer, ..Default::default() };
    let scene = Scene { is_kernel: true, died: true, ..Scene::default() };
    let location = Location::At { mode: Mode::Long, cs: sregs.cs.selector, rip: START };
    let explanation = Explanation::new(location, regs, sregs, &memory, &scene).unwrap();
    explanation.suspicion().unwrap_or("none").into()
}

#[test]
fn the_stack_of_a_kernel_starts_at_0() {
    let ud2 = &[0x0f, 0x0b];
    assert!(kernel(ud2, 8).starts_with("the entry point returned"));
    assert_eq!(kernel(ud2, 0), "#UD: an undefined instruction");
    assert_eq!(kernel(ud2, 0x9000), "#UD: an undefined instruction");
    let push = &[0x50];
    assert!(kernel(push, 0).contains("0xfffffffffffffff8, which is not mapped: RSP is 0 at the entry"));
    assert_eq!(kernel(push, 1 << 40), "#PF: the stack is at 0xfffffffff8, which is not mapped");
}

#[test]
fn hypercall_instructions_and_an_empty_gdt_are_named() {
    assert_suspects(
        &long(CodeAssembler::vmcall),
        "#UD: vmcall is not the hypercall instruction of this host",
    );
    assert_suspects(&long(CodeAssembler::vmmcall), "#UD: vmmcall is not");
    // A far jump right after CR0.PE is set is 16-bit code: jmp 8:0x1100.
    let mut dead = Dead::new(Mode::Real, |code| code.db(&[0xea, 0x00, 0x11, 0x08, 0x00]));
    dead.sregs.cr0 |= modes::CR0_PE;
    dead.mode = Mode::Protected;
    dead.sregs.gdt.limit = 0;
    assert_suspects(
        &dead,
        "#GP: the selector 0x8 is outside the GDT, whose limit is 0 (is the address at lgdt right?)",
    );
}
