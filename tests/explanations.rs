//! The commonest mistakes of guests, on KVM: the first line names the probable cause.

mod support;

use libtest_mimic::Arguments;
use std::process::ExitCode;
use support::assembler::{
    CodeAssembler, IcedError, al, assemble, ax, byte_ptr, cr0, cx, ds, dword_ptr, eax, ecx, qword_ptr, rax,
    rsp, xmm0,
};
use support::{Files, elf, is_soft, kvm_test, machine_test, ran, run, vmm};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
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
        machine_test("the_layout_of_the_assignment_is_named", foreign_layout),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
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

fn stacks() {
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
        match is_soft() {
            true => {
                "#DE (a division by zero, or a quotient that does not fit) at 0000:1002 went through the empty vector"
            }
            false => "#DE: a division by zero, or a quotient that does not fit, at 0000:1002",
        },
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
    code.mov(support::assembler::cr3, rax)?;
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
    let text = "probably the code may be for another mode: give :32 or :64";
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

/// Begins the handshake with the layout of the assignment's `device_t`, in which driver_status is at offset 5.
fn uses_the_assignments_layout(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for (slot, command) in (0..).zip(*b"RC") {
        code.mov(byte_ptr(0x1_1000 + slot), u32::from(command))?;
        code.mov(dword_ptr(0x10_0010), slot + 1)?;
        let mut wait = code.create_label();
        code.set_label(&mut wait)?;
        code.mov(eax, dword_ptr(0x10_0014))?;
        code.cmp(eax, slot + 1)?;
        code.jne(wait)?;
        code.mov(byte_ptr(0x10_0005), 0)?;
    }
    let mut wait = code.create_label();
    code.set_label(&mut wait)?;
    code.cmp(byte_ptr(0x10_0004), 2)?;
    code.jne(wait)
}

fn foreign_layout() {
    let files = Files::new();
    let file = files.write("guest", &assemble(64, 0x1000, uses_the_assignments_layout));
    for transport in ["exit", "polling", "doorbell"] {
        let arguments =
            [&format!("{file}@0x1000:64"), "--transport", transport, "--timeout", "0.5", "--quiet"];
        let ran = ran(&arguments);
        let text = "its driver uses the layout of the assignment's struct device_t, and this device has that of its table: give \
                    --layout struct";
        assert_eq!((ran.status, ran.stderr.contains(text)), (114, true), "{transport}: {}", ran.stderr);
    }
    // With queues of 100 bytes it waits for a status that never comes. Only a window that traps sees loads.
    let waits =
        ran(&[&format!("{file}@0x1000:64"), "--queue-len", "100", "--timeout", "0.5", "--transport", "exit"]);
    assert!(waits.stderr.contains("uses the layout of the assignment's struct device_t"), "{}", waits.stderr);
    let right = ran(&[&format!("{file}@0x1000:64"), "--layout", "struct", "--timeout", "0.5"]);
    assert!(!right.stderr.contains("device_t"), "{}", right.stderr);
    // The other way round, for a driver of the table. It is not the built-in guest, which knows its layout.
    let table = format!("{}:64", files.guest("simvirtio-c"));
    let ran_table = ran(&[&table, "--layout", "struct", "--timeout", "0.5", "--transport", "exit"]);
    let text = "its driver uses the layout of the assignment's table, and this device has that of its struct device_t: \
                leave --layout struct out";
    assert!(ran_table.status != 0 && ran_table.stderr.contains(text), "{}", ran_table.stderr);
    // This guest overwrites the length, too, but finishes its handshake.
    assert!(!ran(&["hostile-read-only", "--quiet"]).stderr.contains("device_t"));
}
