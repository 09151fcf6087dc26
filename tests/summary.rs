//! The output of a run: the guest's own, and the summary after it.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, ExitCode, Stdio};
use support::{Files, assert_error, is_soft, machine_test, ran, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        machine_test("stdout_has_only_the_guest_output", message),
        machine_test("the_summary_starts_on_a_new_line", own_line),
        machine_test("unclaimed_accesses_are_listed", unclaimed),
        machine_test("an_output_limit_is_status_118", output_limit),
        machine_test("quiet_and_no_profile_shorten_the_summary", no_profile),
        machine_test("a_large_exit_code_becomes_99", large_code),
        machine_test("the_summary_of_a_crash_is_complete", crash_summary),
        machine_test("the_first_line_names_the_fault", fault_line),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn message() {
    let ran = ran(&["simvirtio"]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "Ana are mere"));
    for text in ["verified: RAX = 42, [0x400] = 42", "HLT", "state Ready"] {
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
    }
}

fn own_line() {
    let both = |redirect: &str| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{} simvirtio {redirect}", env!("CARGO_BIN_EXE_vmm")))
            .stdout(Stdio::piped());
        support::without_choice(&run(&mut command).text()).0
    };
    assert!(both("2>&1").starts_with("Ana are mere\nvmm: "));
    assert_eq!(both("2>/dev/null"), "Ana are mere");
}

fn unclaimed() {
    let line = "vmm: unclaimed accesses: PIO in 0x1234 (once)\n";
    assert!(ran(&["real16-in"]).stderr.contains(line));
    assert!(ran(&["real16-in", "--no-profile"]).stderr.contains(line));
    let files = Files::new();
    // xor dx, dx; again: in al, dx; inc dl; jnz again; hlt: ports 0 to 255, of which two have a device.
    let many = files.write("many", &[0x31, 0xd2, 0xec, 0xfe, 0xc2, 0x75, 0xfb, 0xf4]);
    let stderr = ran(&[&many]).stderr;
    assert!(stderr.contains("PIO in 0x0 (once), PIO in 0x1 (once)"), "{stderr}");
    assert!(stderr.contains("PIO in 0x7 (once), and 246 more elsewhere\n"), "{stderr}");
}

fn output_limit() {
    let files = Files::new();
    let endless = files.write("endless", &[0xb0, b'x', 0xe6, 0xe9, 0xeb, 0xfa]);
    let ran = ran(&[&endless, "--output-limit", "1K"]);
    assert_eq!((ran.status, ran.text()), (118, "x".repeat(1024)), "{}", ran.stderr);
    assert!(ran.stderr.contains("wrote more than 1024 bytes"), "{}", ran.stderr);
}

fn no_profile() {
    let quiet = ran(&["simvirtio", "--quiet"]);
    assert_eq!((quiet.status, quiet.stderr.lines().count()), (0, 1), "{}", quiet.stderr);
    let hidden = ran(&["simvirtio", "--quiet", "--by", "function"]);
    assert_error(&hidden, 110, "--quiet hides the table of --by: give --profile");
    let ran = ran(&["simvirtio", "--no-profile"]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "Ana are mere"));
    assert!(!ran.stderr.contains("share"), "{}", ran.stderr);
}

fn large_code() {
    let files = Files::new();
    // mov ax, 1000; out 0xf4, ax
    let ran = ran(&[&files.write("code", &[0xb8, 0xe8, 0x03, 0xe7, 0xf4])]);
    assert_eq!(ran.status, 99);
    assert!(ran.stderr.contains("exited with code 1000"), "{}", ran.stderr);
}

/// Checks the summary in each mode. The guests time out, because AMD hosts reset a vCPU that triple-faults.
fn crash_summary() {
    let files = Files::new();
    let report = |mode: &str, code: &[u8], expected: &[&str]| {
        let guest = files.write(mode, code);
        let ran = ran(&[&format!("{guest}@0x1000:{mode}"), "--timeout", "0.1"]);
        for text in expected {
            assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
        }
        let quiet = self::ran(&[&format!("{guest}@0x1000:{mode}"), "--timeout", "0.1", "--quiet"]);
        assert_eq!((quiet.status, quiet.stderr.lines().count()), (114, 1), "{}", quiet.stderr);
    };
    // in al, 0x10 to 0x16; mov ax, 0x100; mov ss, ax; mov esp, 0xff8000; mov eax, 0x11; push 0x1234; push 0x5678;
    // jmp 0x50:0xb2a; jmp near $. The address is 0x102a; the length of the last is that of 16-bit code.
    let real = [
        0xe4, 0x10, 0xe4, 0x11, 0xe4, 0x12, 0xe4, 0x13, 0xe4, 0x14, 0xe4, 0x15, 0xe4, 0x16, 0xb8, 0, 1, 0x8e,
        0xd0, 0x66, 0xbc, 0, 0x80, 0xff, 0, 0x66, 0xb8, 0x11, 0, 0, 0, 0x68, 0x34, 0x12, 0x68, 0x78, 0x56,
        0xea, 0x2a, 0x0b, 0x50, 0, 0xe9, 0xfd, 0xff,
    ];
    let expected = [
        "; the guest was then in real mode at 0050:0b2a",
        "\n  instruction  e9 fd ff  jmp ",
        "\n  mapping      0x102a is a physical address (paging is off)\n",
        "\n  eax 00000011  ebx ",
        "\n  cs 0050  ds 0000  es 0000  ss 0100  gdt ",
        "\n  stack        5678 1234 0 0\n",
        "\n  last exits   in8 0x11, in8 0x12, in8 0x13, in8 0x14, in8 0x15, in8 0x16\n",
    ];
    report("16", &real, &expected);
    // These stacks end at the window, which is memory with polling, too.
    // mov ebx, 0x22; push ebx; push 0x33; mov eax, 0x100d; jmp eax
    let protected = [0xbb, 0x22, 0, 0, 0, 0x53, 0x6a, 0x33, 0xb8, 0x0d, 0x10, 0, 0, 0xff, 0xe0];
    let expected = [
        "in protected mode at 0008:0000100d",
        "\n  instruction  ff e0  jmp eax\n",
        "  ebx 00000022  ",
        "\n  stack        33 22",
    ];
    report("32", &protected, &expected);
    // mov r8, 8; mov r15, 15; mov rcx, 0xabcd; mov cr2, rcx; push 7; jmp $
    let long = [
        0x49, 0xc7, 0xc0, 8, 0, 0, 0, 0x49, 0xc7, 0xc7, 15, 0, 0, 0, 0x48, 0xc7, 0xc1, 0xcd, 0xab, 0, 0,
        0x0f, 0x22, 0xd1, 0x6a, 7, 0xeb, 0xfe,
    ];
    report(
        "64",
        &long,
        &[
            "in long mode at 0x101a",
            "\n  mapping      0x101a maps to 0x101a (2 MiB page, writable)\n",
            "  rcx 000000000000abcd  rdx 0000000000000000\n",
            "\n  r8  0000000000000008  r9  ",
            "  r15 000000000000000f\n",
            "  cr2 abcd  cr3 fffc1000  ",
            "\n  stack        7",
        ],
    );
}

fn fault_line() {
    let files = Files::new();
    let undefined = files.write("ud2", &[0x0f, 0x0b]);
    let ran = ran(&[&format!("{undefined}@0x1000:64")]);
    let first = ran.stderr.lines().next().unwrap();
    let known = match is_soft() {
        false => ", in long mode at 0x1000: probably #UD: an undefined instruction (after ",
        true => ", in long mode at 0x1000: #UD: an undefined instruction (after ",
    };
    assert!(first.contains(known) || first.contains("this host resets a CPU"), "{first}");
    assert!(
        ran.stderr.contains("\n  instruction  0f 0b  ud2\n") || first.contains("resets"),
        "{}",
        ran.stderr
    );
}
