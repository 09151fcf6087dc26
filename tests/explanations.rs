//! The commonest mistakes of guests, on KVM: the first line names the probable cause.

mod support;

use std::process::ExitCode;
use support::assembler::{
    CodeAssembler, IcedError, al, assemble, ax, byte_ptr, cr0, cr3, cr4, cx, ds, dword_ptr, eax, ebp, ecx,
    esp, qword_ptr, rax, rsp, xmm0,
};
use support::{Files, each_on_both, elf, is_soft, kvm_test, machine_test, ran, run, vmm};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        machine_test("an_entry_point_that_returns_is_named_in_each_mode", returns),
        machine_test("a_stack_at_a_wrong_place_is_named", stacks),
        machine_test("features_that_are_off_are_named", features),
        machine_test("a_wrong_selector_is_named", selectors),
        machine_test("an_access_that_the_page_does_not_allow_is_named", pages),
        machine_test("a_place_without_code_is_named", places),
        machine_test("a_missing_end_of_the_code_is_named", missing_hlt),
        machine_test("code_for_another_mode_is_named", other_mode),
        kvm_test("a_kernel_without_a_stack_is_named", kernels),
        machine_test("a_missing_bios_is_named_after_a_timeout", bios),
        kvm_test("what_kvm_may_lack_is_named_with_a_way_out", lacks_of_kvm),
    ];
    tests.extend(each_on_both(&[
        ("a_step_to_long_mode_that_is_missing_is_named", long_mode_steps),
        ("a_software_interrupt_is_blamed_only_without_a_handler", software_interrupts),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

type Payload = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs a payload at 0x1000 in a mode, for at most half a second, and checks that the first line contains the text and
/// that the run failed. On some hosts a triple fault resets the vCPU, and nothing is known about it then.
#[track_caller]
fn assert_named(mode: &str, payload: Payload, text: &str) {
    assert_named_at(0x1000, mode, payload, text);
}

#[track_caller]
fn assert_named_at(address: u64, mode: &str, payload: Payload, text: &str) {
    let bits = match mode {
        "real" => 16,
        "protected" => 32,
        _ => 64,
    };
    let files = Files::new();
    let file = files.write("guest", &assemble(bits, address, payload));
    let ran = ran(&[&format!("{file}@{address:#x}:{mode}"), "--timeout", "0.5"]);
    assert!([112, 114].contains(&ran.status), "{mode}: {}", ran.stderr);
    // The VMM has set a right state, and the guest cannot get out of it.
    for label in ["\n  broken rule ", "\n  hint "] {
        assert!(!ran.stderr.contains(label), "{mode}: {}", ran.stderr);
    }
    let lost = ran.stderr.contains("this host resets a vCPU");
    assert!(lost || ran.stderr.contains(text), "{mode}: {}", ran.stderr);
}

/// Returns although nothing has called it.
fn returns() {
    const RETURNED: &str =
        "probably the entry point returned (a ret, and nothing had called it): end it with hlt";
    for mode in ["real", "protected", "long", "user64"] {
        assert_named(mode, CodeAssembler::ret, RETURNED);
    }
    assert_named_at(0, "real", CodeAssembler::ret, RETURNED);
    // As the default linker script places it. Address 0 follows the stack, and has no code.
    let files = Files::new();
    let file = files.write("high", &elf(0x40_0000, &assemble(64, 0x40_0000, CodeAssembler::ret)));
    let ran = run(&mut vmm(&[&file, "--timeout", "0.5", "--quiet"]));
    assert!(ran.stderr.contains(RETURNED), "{}", ran.stderr);
}

/// Calls itself without end, with 64 bytes for each call, until the stack reaches its code.
fn recurses(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.sub(rsp, 0x38)?;
    code.call(0x1000)
}

/// Pushes to an address that is not canonical.
fn pushes_to_no_address(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(rsp, 1u64 << 62)?;
    code.push(rax)
}

/// Calls a function with a stack that is not mapped.
fn calls_with_an_unmapped_stack(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(rsp, 1u64 << 40)?;
    code.call(0x1000)
}

/// Calls itself without end, until the stack reaches its code, and then runs what the stack holds.
fn recurses_with_a_frame(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut start = code.create_label();
    code.set_label(&mut start)?;
    code.push(ebp)?;
    code.mov(ebp, esp)?;
    code.call(start)
}

fn stacks() {
    // Near the stack, because some hosts are slow in ring 0.
    assert_named_at(0xf_c000, "protected", recurses_with_a_frame, "probably a stack overflow: the stack");
    assert_named("long", recurses, "probably a stack overflow: the stack pointer, 0x");
    assert_named(
        "long",
        pushes_to_no_address,
        "#SS: the stack pointer, 0x3ffffffffffffff8, is not canonical",
    );
    assert_named(
        "long",
        calls_with_an_unmapped_stack,
        "#PF: the stack is at 0xfffffffff8, which is not mapped",
    );
}

fn features() {
    assert_named("long", CodeAssembler::syscall, "#UD: syscall and sysret are not enabled: set EFER.SCE");
    assert_named("long", |code| code.xorps(xmm0, xmm0), "#UD: SSE is not enabled (CR4.OSFXSR is 0)");
    assert_named("long", |code| code.vxorps(xmm0, xmm0, xmm0), "#UD: AVX is not enabled (CR4.OSXSAVE is 0)");
    let switched_off: Payload = |code| {
        code.mov(rax, cr0)?;
        code.or(eax, 4)?;
        code.mov(cr0, rax)?;
        code.fld1()
    };
    assert_named("long", switched_off, "#NM: the floating-point unit is off (CR0.EM is 1)");
    assert_named(
        "real",
        |code| {
            code.xor(cx, cx)?;
            code.div(cx)
        },
        "#DE (a division by zero, or a quotient that does not fit) at 0000:1002, for which the guest has no handler",
    );
}

fn selectors() {
    let outside: Payload = |code| {
        code.mov(eax, 0x30)?;
        code.mov(ds, eax)
    };
    for mode in ["protected", "long"] {
        assert_named(mode, outside, "#GP: the selector 0x30 is outside the GDT, which has 24 bytes");
    }
    let data_as_code: Payload = |code| {
        code.push(0x10)?;
        code.push(0x1000)?;
        code.retf()
    };
    assert_named(
        "protected",
        data_as_code,
        "#GP: a data segment, in the GDT at selector 0x10, which cs cannot take",
    );
    let far_jump: Payload = |code| code.db(&[0xea, 0, 0x10, 0, 0, 0x40, 0]);
    assert_named("protected", far_jump, "#GP: the selector 0x40 is outside the GDT");
}

/// Clears the writable bit of the page of the first 2 MiB, and stores there.
fn stores_to_a_read_only_page(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(rax, 0xfffc_3000u64)?;
    code.and(dword_ptr(rax), !2i32)?;
    code.mov(rax, 0xfffc_1000u64)?;
    code.mov(cr3, rax)?;
    code.mov(byte_ptr(0x8000), al)
}

fn pages() {
    assert_named("long", stores_to_a_read_only_page, "#PF: a store to 0x8000, whose page is read-only");
    let unmapped: Payload = |code| {
        code.mov(rax, 1u64 << 33)?;
        code.mov(qword_ptr(rax), rax)
    };
    assert_named("long", unmapped, "#PF: the operand's address, 0x200000000, is not mapped");
}

fn places() {
    assert_named(
        "long",
        |code| {
            code.mov(eax, 0x10_0000)?;
            code.jmp(rax)
        },
        "a jump into the window of SIMVIRTIO",
    );
    // The memory behind the stack pointer is zero, and above 4 GiB nothing is mapped.
    let zeroes: Payload = |code| {
        code.mov(rax, 1u64 << 32)?;
        code.mov(ecx, 0x2000)?;
        code.jmp(support::assembler::rcx)
    };
    assert_named("long", zeroes, "execution of zeroed memory");
}

/// Has no `hlt` at its end.
fn missing_hlt() {
    for mode in ["protected", "long", "user64"] {
        // Near the window, because some hosts are slow in ring 0.
        assert_named_at(
            0xf_0000,
            mode,
            |code| code.mov(eax, 0),
            "the guest ran past the end of its code (is the last hlt missing?), through zeroed memory",
        );
    }
    let files = Files::new();
    let file = files.write("guest", &assemble(16, 0x1000, |code| code.mov(ax, 42)));
    let ran = ran(&[&format!("{file}@0x1000"), "--timeout", "0.5", "--quiet"]);
    let is_named =
        ["ran past", "it left its image", "zeroed memory"].iter().any(|text| ran.stderr.contains(text));
    let lost = ran.stderr.contains("this host resets a vCPU");
    assert!(lost || is_named, "{}", ran.stderr);
}

/// 64-bit code in real mode, because `:64` is missing.
fn other_mode() {
    let files = Files::new();
    // In real mode, this code loops, too.
    let code = assemble(64, 0, |code| {
        code.mov(eax, 42)?;
        code.jmp(5u64)
    });
    let ran = ran(&[&files.write("guest", &code), "--timeout", "0.5", "--quiet"]);
    let text = "probably the code is for another mode: give :32 or :64";
    assert!(ran.stderr.contains(text), "{}", ran.stderr);
}

/// Kernels that return from their entry point, or push before they set RSP.
fn kernels() {
    let files = Files::new();
    for (name, code, text) in [
        ("returns", assemble(64, 0x10_0000, CodeAssembler::ret), "probably the entry point returned"),
        ("pushes", assemble(64, 0x10_0000, |code| code.push(rax)), "RSP is 0 at the entry"),
    ] {
        let file = files.write(name, &elf(0x10_0000, &code));
        let ran = run(&mut vmm(&["boot", &file, "--timeout", "3", "--quiet"]));
        let lost = ran.stderr.contains("this host resets a vCPU");
        assert!(lost || ran.stderr.contains(text), "{name}: {}", ran.stderr);
    }
}

/// Prints with the BIOS.
fn calls_the_bios(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ax, 0x0e41)?;
    code.int(0x10)?;
    code.hlt()
}

fn bios() {
    assert_named("real", calls_the_bios, "which has no handler, because this machine has no BIOS");
}

/// Sets EFER.LME.
fn sets_lme(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ecx, 0xc000_0080u32)?;
    code.rdmsr()?;
    code.or(eax, 0x100)?;
    code.wrmsr()
}

/// Turns paging on.
fn sets_paging(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(eax, cr0)?;
    code.or(eax, 0x8000_0000u32 as i32)?;
    code.mov(cr0, eax)
}

fn long_mode_steps() {
    assert_named(
        "protected",
        |code| {
            sets_lme(code)?;
            sets_paging(code)
        },
        "is not allowed in cr0: EFER.LME is 1, so paging (PG, bit 31) needs CR4.PAE (bit 5), which is 0",
    );
    // The page directory at 0x8000 is empty.
    assert_named(
        "protected",
        |code| {
            code.mov(eax, 0x8000)?;
            code.mov(cr3, eax)?;
            sets_paging(code)
        },
        "is not mapped",
    );
    // A GDT of three entries at 0x1040, whose second one is for 64-bit code. There, 48 b8 begins mov rax, imm64.
    let far_jump: Payload = |code| {
        code.lgdt(dword_ptr(0x1030))?;
        code.db(&[0xea, 0x0e, 0x10, 0, 0, 8, 0])?;
        code.db(&[0x48, 0xb8, 0, 0, 0, 0, 0, 1, 0, 0, 0x0f, 0x0b])?;
        code.db(&[0x90; 22])?;
        code.db(&[23, 0, 0x40, 0x10, 0, 0])?;
        code.db(&[0x90; 10])?;
        code.dq(&[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff])
    };
    assert_named(
        "protected",
        far_jump,
        "but long mode is not active (EFER.LME is 0, CR4.PAE is 0, CR0.PG is 0)",
    );
}

/// lidt [0x1020]; a software interrupt; hlt. The entries of the IDT at 0x1028 lead to a handler at 0x1010, which ends the
/// machine with code 7.
fn handled(interrupt: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x0f, 0x01, 0x1d, 0x20, 0x10, 0, 0];
    bytes.extend(interrupt);
    bytes.resize(0x10, 0xf4);
    bytes.extend([0xb0, 7, 0xe6, 0xf4]);
    bytes.resize(0x20, 0xf4);
    bytes.extend([7, 4, 0x28, 0x10, 0, 0, 0, 0]);
    for _ in 0..=0x80 {
        bytes.extend([0x10, 0x10, 8, 0, 0, 0x8e, 0, 0]);
    }
    bytes
}

fn software_interrupts() {
    assert_named("protected", |code| code.int(0x80), "int 0x80 without a handler: the IDT has no entry 128");
    assert_named("long", CodeAssembler::int3, "int 0x3 without a handler: the IDT has no entry 3");
    for interrupt in [&[0xcc][..], &[0xcd, 0x80]] {
        let files = Files::new();
        let file = files.write("guest", &handled(interrupt));
        let ran = ran(&[&format!("{file}@0x1000:32"), "--timeout", "0.5"]);
        let is_advised = ran.status == 112
            && ran
                .stderr
                .contains("KVM on this host cannot do it, and the software processor can: try --vcpu soft");
        assert!(ran.status == 7 || !is_soft() && is_advised, "{}", ran.stderr);
        assert!(!ran.stderr.contains("without a handler"), "{}", ran.stderr);
    }
}

/// Turns 32-bit paging on, with an identity map of one page of 4 MiB, and ends with code 7.
fn pages_32(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(dword_ptr(0x8000), 0x83)?;
    code.mov(eax, 0x10)?;
    code.mov(cr4, eax)?;
    code.mov(eax, 0x8000)?;
    code.mov(cr3, eax)?;
    sets_paging(code)?;
    code.mov(al, 7)?;
    code.out(0xf4, al)
}

/// Changes to an identity map of one page of 1 GiB, and ends with code 7.
fn pages_1_gib(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(qword_ptr(0x8000), 0x9003)?;
    code.mov(qword_ptr(0x9000), 0x83)?;
    code.mov(eax, 0x8000)?;
    code.mov(cr3, rax)?;
    code.mov(al, 7)?;
    code.out(0xf4, al)
}

/// Some hosts have all of these, and some lack them.
fn lacks_of_kvm() {
    let files = Files::new();
    for (bits, payload, text) in [
        (
            32,
            pages_32 as Payload,
            "probably this turns 32-bit paging on (CR4.PAE is 0), which KVM on this host may",
        ),
        (64, pages_1_gib, "probably the code is on a page of 1 GiB, which KVM on this host may not have"),
        (
            64,
            |code| {
                code.mov(eax, 7)?;
                code.popcnt(eax, eax)?;
                code.mov(al, 7)?;
                code.out(0xf4, al)
            },
            "f3 0f b8 c0, in long mode at 0x1005: KVM on this host cannot do it, and the software processor can: try --vcpu soft",
        ),
    ] {
        let file = files.write("guest", &assemble(bits, 0x1000, payload));
        let ran = ran(&[&format!("{file}@0x1000:{bits}"), "--timeout", "0.5", "--vcpu", "kvm"]);
        let lost = ran.stderr.contains("this host resets a vCPU");
        let is_named = ran.status == 112 && (lost || ran.stderr.contains(text));
        assert!(ran.status == 7 || is_named, "{text}: {}", ran.stderr);
    }
}
