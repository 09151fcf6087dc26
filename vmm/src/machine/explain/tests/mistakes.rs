//! The commonest mistakes, as made-up states of a vCPU.

use super::super::*;
use crate::memory::{PAGE, TABLES, TABLES_SIZE};
use crate::x86::modes;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use simvirtio::abi;

/// The place of the code.
pub(super) const START: u64 = 0x1000;

/// A guest in a machine with SIMVIRTIO: its code at 0x1000, and the state in which it died.
pub(super) struct Dead {
    pub(super) mode: Mode,
    pub(super) image: Image,
    pub(super) memory: GuestMemory,
    pub(super) regs: Regs,
    pub(super) sregs: Sregs,
    pub(super) died: bool,
}

impl Dead {
    /// A guest of this mode that died at its entry point.
    pub(super) fn new(mode: Mode, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::at(START, mode, write)
    }

    /// The same, with its code at another address.
    pub(super) fn at(
        start: u64,
        mode: Mode,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let bits = match mode {
            Mode::Real => 16,
            Mode::Protected => 32,
            Mode::Long | Mode::User => 64,
        };
        let mut code = CodeAssembler::new(bits).unwrap();
        write(&mut code).unwrap();
        let image = Image::flat(code.assemble(start).unwrap(), mode, Gpa(start)).unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE), (TABLES, TABLES_SIZE)]).unwrap();
        image.load(&memory, abi::RAM_SIZE).unwrap();
        memory.write(TABLES, &modes::bytes(&modes::gdt(mode))).unwrap();
        let map = modes::bytes(&modes::identity_map(Gpa(TABLES.0 + PAGE)));
        memory.write(Gpa(TABLES.0 + PAGE), &map).unwrap();
        let alone = modes::VcpuIndex::ALONE;
        let sregs = modes::sregs(mode, Sregs::default(), TABLES, alone);
        let regs = modes::regs(mode, Gpa(start), alone);
        Self { mode, image, memory, regs, sregs, died: true }
    }

    pub(super) fn suspicion(&self) -> String {
        let alone = modes::VcpuIndex::ALONE;
        let scene = Scene {
            is_unemulated: false,
            is_soft: false,
            image: Some(&self.image),
            stack_top: Some(modes::regs(self.mode, Gpa(START), alone).rsp),
            stack_base: Some(0),
            is_kernel: false,
            has_window: true,
            died: self.died,
            is_foreign: false,
        };
        let location = Location::At { mode: self.mode, cs: self.sregs.cs.selector, rip: self.regs.rip };
        let explanation = Explanation::new(location, self.regs, self.sregs, &self.memory, &scene).unwrap();
        explanation.suspicion().unwrap_or("none").into()
    }
}

/// A guest in long mode.
pub(super) fn long(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Dead {
    Dead::new(Mode::Long, write)
}

#[track_caller]
pub(super) fn assert_suspects(dead: &Dead, text: &str) {
    let suspicion = dead.suspicion();
    assert!(suspicion.starts_with(text), "{suspicion}");
}

#[test]
fn a_stack_that_grew_into_something_else_is_an_overflow() {
    let recursion = || {
        long(|code| {
            code.mov(rbx, 0x1122_3344_5566_7788u64)?;
            code.call(START)
        })
    };
    let mut dead = recursion();
    dead.memory.write(Gpa(START), &0x100eu64.to_le_bytes().repeat(2)).unwrap();
    dead.regs.rsp = START;
    assert_suspects(
        &dead,
        "a stack overflow: the stack pointer, 0x1000, has run into the image, and overwritten it",
    );
    let mut dead = recursion();
    dead.regs.rsp = 0x1_2000;
    assert_suspects(
        &dead,
        "a stack overflow: the stack pointer, 0x12000, has run into the buffers of SIMVIRTIO",
    );
    dead.regs.rsp = TABLES.0 + 0x800;
    assert_suspects(
        &dead,
        "a stack overflow: the stack pointer, 0xfffc0800, has run into the GDT and the page tables",
    );
    dead.regs.rsp = 0u64.wrapping_sub(8);
    assert_suspects(
        &dead,
        "a stack overflow: the stack pointer, 0xfffffffffffffff8, has run into addresses below 0",
    );
    // A stack in plain memory is none, nor is one that the image has room for.
    dead.regs.rsp = 0x8000;
    assert_suspects(&dead, "none");
}

#[test]
fn a_stack_that_the_guest_has_in_its_image_is_no_overflow() {
    let with_stack = |overwritten: u64| {
        let mut dead = long(|code| {
            let mut function = code.create_label();
            code.mov(rsp, START + 0x40)?;
            code.call(function)?;
            code.hlt()?;
            code.set_label(&mut function)?;
            code.hlt()?;
            code.db(&[0xcc; 0x80])
        });
        // A variable above the stack, and words on it, are not as in the file.
        dead.memory.write(Gpa(overwritten), &[1; 16]).unwrap();
        dead.regs.rsp = overwritten;
        dead
    };
    for place in [START + 0x40, START + 0x30] {
        assert_suspects(&with_stack(place), "none");
    }
    // The same stack has grown down into the code.
    assert_suspects(
        &with_stack(START),
        "a stack overflow: the stack pointer, 0x1000, has run into the image",
    );
    // A stack that has not moved has overwritten nothing: in real mode it begins at 0.
    let mut dead = Dead::new(Mode::Real, CodeAssembler::nop);
    dead.image = Image::flat(vec![0x90, 0xeb, 0xfe, 7], Mode::Real, Gpa(0)).unwrap();
    dead.memory.write(Gpa(0), &[0x90, 0xeb, 0xfe, 6]).unwrap();
    (dead.regs.rsp, dead.regs.rip) = (0, 1);
    assert_suspects(&dead, "none");
}

#[test]
fn a_call_of_a_null_pointer_is_no_ret() {
    let calls = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>, next: u64| {
        let mut dead = long(write);
        dead.memory.write(Gpa(0xf_fff0), &(START + next).to_le_bytes()).unwrap();
        (dead.regs.rsp, dead.regs.rip) = (0xf_fff0, 0);
        dead
    };
    let by_register = calls(|code| code.call(rcx).and_then(|()| code.hlt()), 2);
    assert_suspects(&by_register, "a call of a function pointer that is 0");
    let by_memory = calls(|code| code.call(qword_ptr(0x2000)).and_then(|()| code.hlt()), 7);
    assert_suspects(&by_memory, "a call of a function pointer that is 0");
    by_memory.memory.write(Gpa(0x2000), &0x5_0000u64.to_le_bytes()).unwrap();
    assert_suspects(&by_memory, "a call of a function pointer that is 0x50000, which is outside its image");
    // The word on the stack is not behind a call.
    let returned = calls(|code| code.nop().and_then(|()| code.hlt()), 1);
    assert_suspects(&returned, "a ret to a wrong address");
}

#[test]
fn a_wrong_stack_pointer_is_recognised_in_instructions_that_do_not_name_it() {
    let mut dead = long(|code| code.push(rax));
    dead.regs.rsp = 1 << 62;
    assert_suspects(&dead, "#SS: the stack pointer, 0x3ffffffffffffff8, is not canonical");
    dead.regs.rsp = 1 << 40;
    assert_suspects(&dead, "#PF: the stack is at 0xfffffffff8, which is not mapped");
    // A read-only page: PD entry 0 of the identity map without its writable bit.
    dead.regs.rsp = 0x8000;
    assert_suspects(&dead, "none");
    make_first_pages_read_only(&dead);
    assert_suspects(&dead, "#PF: the stack is at 0x7ff8, whose page is read-only");
}

/// Clears the writable bit in the entry of the first 2 MiB.
fn make_first_pages_read_only(dead: &Dead) {
    let entry = Gpa(TABLES.0 + 3 * PAGE);
    let mut word = [0; 8];
    assert!(dead.memory.read(entry, &mut word));
    let word = u64::from_le_bytes(word) & !modes::PTE_WRITABLE;
    dead.memory.write(entry, &word.to_le_bytes()).unwrap();
}

#[test]
fn a_store_to_a_read_only_page_is_recognised() {
    let store = long(|code| code.mov(dword_ptr(rbx), eax));
    let load = long(|code| code.mov(eax, dword_ptr(rbx)));
    for dead in [&store, &load] {
        assert_suspects(dead, "none");
        make_first_pages_read_only(dead);
    }
    assert_suspects(&store, "#PF: a store to 0x0, whose page is read-only");
    assert_suspects(&load, "none");
    // Without CR0.WP, ring 0 may write there.
    let mut dead = store;
    dead.sregs.cr0 &= !modes::CR0_WP;
    assert_suspects(&dead, "none");
}

#[test]
fn a_jump_into_the_window_is_recognised() {
    let mut dead = long(CodeAssembler::nop);
    dead.regs.rip = abi::WINDOW;
    assert_suspects(&dead, "a jump into the window of SIMVIRTIO");
    dead.regs.rip = 0x30_0000;
    assert_suspects(&dead, "a jump to a wrong address, where there is no memory");
}

#[test]
fn features_that_are_off_are_named() {
    assert_suspects(&long(CodeAssembler::syscall), "#UD: syscall and sysret are not enabled: set EFER.SCE");
    let mut enabled = long(CodeAssembler::syscall);
    enabled.sregs.efer |= 1;
    assert_suspects(&enabled, "none");
    assert_suspects(
        &long(|code| code.vxorps(xmm0, xmm0, xmm0)),
        "#UD: AVX is not enabled (CR4.OSXSAVE is 0)",
    );
    let mut sse = long(|code| code.xorps(xmm0, xmm0));
    assert_suspects(&sse, "#UD: SSE is not enabled (CR4.OSFXSR is 0)");
    sse.sregs.cr4 |= 1 << 9;
    assert_suspects(&sse, "none");
    sse.sregs.cr0 |= 1 << 2;
    assert_suspects(&sse, "#UD: SSE is not enabled (CR0.EM is 1)");
    sse.sregs.cr0 ^= 1 << 2 | 1 << 3;
    assert_suspects(&sse, "#NM: the floating-point state is not available (CR0.TS is 1)");
    let mut x87 = long(CodeAssembler::fld1);
    assert_suspects(&x87, "none");
    x87.sregs.cr0 |= 1 << 2;
    assert_suspects(&x87, "#NM: the floating-point unit is off (CR0.EM is 1)");
}

#[test]
fn wrong_selectors_are_explained() {
    let loads = |selector: i32, write: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let mut dead = long(write);
        dead.regs.rax = selector as u64;
        dead.memory.write(Gpa(0xf_fff0), &0x2000u64.to_le_bytes()).unwrap();
        dead.memory.write(Gpa(0xf_fff8), &selector.to_le_bytes()).unwrap();
        dead.regs.rsp = 0xf_fff0;
        dead
    };
    let to_ds: fn(&mut CodeAssembler) -> Result<(), IcedError> = |code| code.mov(ds, ax);
    let to_ss: fn(&mut CodeAssembler) -> Result<(), IcedError> = |code| code.mov(ss, ax);
    let far: fn(&mut CodeAssembler) -> Result<(), IcedError> = CodeAssembler::retf;
    for (selector, write, text) in [
        (0x10, to_ds, "none"),
        (0, to_ds, "none"),
        (0, to_ss, "none"),
        (0x20, to_ds, "#GP: the selector 0x20 is outside the GDT, which has 24 bytes"),
        (0x14, to_ds, "#GP: the selector 0x14 is in the LDT"),
        (0x08, to_ss, "#GP: a code segment, in the GDT at selector 0x8, which ss cannot take"),
        (0x08, far, "none"),
        (0x10, far, "#GP: a data segment, in the GDT at selector 0x10, which cs cannot take"),
        (0, far, "#GP: cs cannot be the null selector"),
    ] {
        assert_suspects(&loads(selector, write), text);
    }
    let control = long(|code| code.mov(cr4, rax));
    assert_suspects(&control, "#GP: the value 0x0 is not allowed in cr4");
    assert_suspects(&long(CodeAssembler::rdmsr), "#GP: this processor has no MSR 0x0");
    // The GDT is where there is no memory.
    let mut nowhere = loads(0x10, to_ds);
    nowhere.sregs.gdt.base = 0x3000_0000;
    assert_suspects(&nowhere, "the GDT at 0x30000000 is where there is no memory");
    // In real mode a selector is a number, and every number is allowed.
    let mut real = Dead::new(Mode::Real, |code| code.mov(ds, ax));
    real.regs.rax = 0x1234;
    assert_suspects(&real, "none");
}

#[test]
fn exceptions_in_real_mode_are_found_on_the_stack() {
    for (write, text) in [
        ((|code| code.div(cx)) as fn(&mut CodeAssembler) -> Result<(), IcedError>, "#DE: a division by zero"),
        (CodeAssembler::ud2, "#UD: an undefined instruction, at 0000:1000, and real mode has no handler"),
        (|code| code.xorps(xmm0, xmm0), "#UD: SSE is not enabled"),
        (CodeAssembler::nop, "it left its image"),
    ] {
        let mut dead = Dead::new(Mode::Real, write);
        let frame = [START as u16, 0, 2].map(u16::to_le_bytes);
        dead.memory.write(Gpa(0xfffa), frame.as_flattened()).unwrap();
        (dead.regs.rsp, dead.regs.rip, dead.died) = (0xfffa, 0x500, false);
        assert_suspects(&dead, text);
    }
    let mut dead = Dead::new(Mode::Real, |code| code.int(0x10));
    let frame = [START as u16 + 2, 0, 2].map(u16::to_le_bytes);
    dead.memory.write(Gpa(0xfffa), frame.as_flattened()).unwrap();
    (dead.regs.rsp, dead.regs.rip, dead.died) = (0xfffa, 0x500, false);
    assert_suspects(&dead, "a call of int 0x10, which has no handler, because this machine has no BIOS");
}

#[test]
fn a_program_of_dos_at_address_0_is_known_by_its_first_call() {
    let called =
        |code: &[u8], at| derail::called_at_start(&Image::flat(code.to_vec(), Mode::Real, Gpa(at)).unwrap());
    // mov ah, 9; mov dx, 0x10c; int 0x21
    let program = [0xb4, 9, 0xba, 0x0c, 1, 0xcd, 0x21];
    assert_eq!(called(&program, 0), Some(0x21));
    assert_eq!(called(&program, 0x1000), None, "its vectors are those of the VMM");
    assert_eq!(called(&program[..5], 0), None);
    // A store may set the vector: mov [0x84], ax.
    assert_eq!(called(&[&[0xa3, 0x84, 0][..], &program].concat(), 0), None);
    // So may the image itself: its bytes at 4.
    assert_eq!(called(&[0xb4, 9, 0xcd, 1, 0x10, 0, 0, 0], 0), None);
    assert_eq!(called(&[0xeb, 0, 0xcd, 0x21], 0), None, "a jump");
}

#[test]
fn hostile_states_are_explained_without_a_panic() {
    for mode in [Mode::Real, Mode::Protected, Mode::Long] {
        for value in [0, 1, u64::MAX, 1 << 63, 1 << 47, 0xffff, u64::MAX - 7] {
            let mut dead = Dead::new(mode, CodeAssembler::ret);
            (dead.regs.rsp, dead.regs.rip, dead.regs.rax) = (value, value, value);
            (dead.sregs.ss.base, dead.sregs.cs.base, dead.sregs.gdt.base) = (value, value, value);
            dead.suspicion();
            dead.sregs.cr3 = value;
            dead.died = false;
            dead.suspicion();
        }
    }
}
