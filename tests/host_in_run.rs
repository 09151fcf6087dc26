//! A host that fails in the middle of a run: no result is lost, and no failure is a success.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Files, Liar, TRANSPORT_NAMES, assert_error, full_stream, kvm_test, machine_test, plain_test, run, vmm,
};

/// mov al, 'a'; out 0xe9, al; hlt
const PRINT_A: &[u8] = &[0xb0, b'a', 0xe6, 0xe9, 0xf4];

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("a_host_that_cannot_wait_still_tells_the_error", no_waits),
        kvm_test("a_host_that_fails_makes_a_grade_invalid", host_fails_while_grading),
        kvm_test("a_host_that_fails_in_the_middle_of_a_run_loses_no_result", host_fails_during_a_run),
        kvm_test("a_result_that_the_host_does_not_tell_is_no_success", unreadable_registers),
        machine_test("output_that_is_not_read_is_a_host_error", unread_output),
        machine_test("a_report_that_is_not_read_is_given_up", unread_stderr),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The messages have a time limit, which needs ppoll. Without it they are written at once.
fn no_waits() {
    let liar = Liar::new();
    for error in [1, 12, 38] {
        let ran = liar.fail(&format!("ppoll {error} 1 0"), &["no-such-guest"]);
        assert_error(&ran, 110, "no built-in guest and no file has the name no-such-guest");
        let ran = liar.fail(&format!("ppoll {error} 1 0"), &["--version"]);
        assert!(ran.status == 0 && ran.text().starts_with("vmm "), "{} {}", ran.status, ran.stderr);
    }
}

/// The host fails in the middle of a grade. The grade is then invalid, and no points are lost.
fn host_fails_while_grading() {
    let liar = Liar::new();
    for skip in [0, 1, 4, 9, 20] {
        let ran = liar.run(&format!("ae01 -1 -1 12 {skip} 1"), &["grade", "--reference"]);
        assert_eq!((ran.status, ran.text().as_str()), (115, ""), "{skip}: {}", ran.stderr);
        assert!(ran.stderr.contains("this run gives no grade"), "{}", ran.stderr);
    }
    // It also fails in the middle of a run.
    for (skip, arguments) in [
        (3, &["grade", "--reference"][..]),
        (40, &["grade", "--reference"]),
        (9, &["grade", "kev", "--reference"]),
    ] {
        let ran = liar.run(&format!("ae80 -1 -1 5 {skip} 1"), arguments);
        assert_eq!((ran.status, ran.text().as_str()), (115, ""), "{skip}: {}", ran.stderr);
        for text in
            ["this run gives no grade", "running the guest failed: KVM_RUN failed: Input/output error"]
        {
            assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
        }
    }
}

/// In long mode, prints "half" on one vCPU and then reads a port without end; the others loop. `jump` is the condition on
/// which a vCPU loops: jz (0x74) or jnz (0x75). test edi, edi; jCC $; mov al, BYTE; out 0xe9, al for each byte; again: in
/// al, 0x42; jmp again
fn print_half_a_line(jump: u8) -> Vec<u8> {
    let prints = b"half".iter().flat_map(|byte| [0xb0, *byte, 0xe6, 0xe9]);
    [0x85, 0xff, jump, 0xfe].into_iter().chain(prints).chain([0xe4, 0x42, 0xeb, 0xfc]).collect()
}

/// KVM_RUN fails after the guest has printed a part of a line. The text, the profile and the trace are written.
fn host_fails_during_a_run() {
    const JZ: u8 = 0x74;
    const JNZ: u8 = 0x75;
    let (liar, files) = (Liar::new(), Files::new());
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    for (cpus, jump) in [("1", JNZ), ("2", JNZ), ("2", JZ)] {
        let guest = files.write("half", &print_half_a_line(jump)) + "@0x1000:long";
        for transport in TRANSPORT_NAMES {
            let (profile, trace) = (path("profile"), path("trace"));
            let json = format!("json={profile}");
            let arguments =
                [&guest, "--cpus", cpus, "--transport", transport, "--profile", &json, "--trace", &trace];
            let case = format!("{cpus} vCPUs, jump {jump:#x}, {transport}");
            let ran = liar.run("ae80 -1 -1 5 9 1", &arguments);
            assert_eq!((ran.status, ran.text().as_str()), (115, "half"), "{case}: {}", ran.stderr);
            let failure = "the host failed: KVM_RUN failed: Input/output error (os error 5)";
            let first = ran.stderr.lines().next().unwrap_or_default();
            assert!(first.contains(failure), "{case}: {}", ran.stderr);
            for (file, text) in [(&profile, "0xe9"), (&trace, "0xe9")] {
                let shown = support::ran(&["report", file]);
                assert!(shown.status == 0 && shown.text().contains(text), "{case}: {}", shown.text());
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

/// The registers of a guest that halted cannot be read, so that its result is not known.
fn unreadable_registers() {
    let liar = Liar::new();
    // Without KVM_CAP_SYNC_REGS (74), the registers are read with KVM_GET_REGS.
    let ran = liar.run("ae03 74 0 0 0 1000; 8090ae81 -1 -1 5 0 1000", &["real16-42"]);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("the host failed: KVM_GET_REGS failed: Input/output error"),
        "{}",
        ran.stderr
    );
    // A guest that crashed has crashed, also if its place is not known.
    let ran = liar.run("8138ae83 -1 -1 5 1 1000", &["hostile-jump-outside"]);
    assert_eq!(ran.status, 112, "{}", ran.stderr);
    assert!(ran.stderr.contains("the place of vCPU 0 is not known: KVM_GET_SREGS failed"), "{}", ran.stderr);
}

/// The guest ends in time, and its output stays unread.
fn unread_output() {
    let files = Files::new();
    let guest = files.write("a", PRINT_A);
    let (full, _reader) = full_stream();
    let ran = run(vmm(&[&guest, "--timeout", "0.3"]).stdout(OwnedFd::from(full)));
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("could not be written: its reader did not take it before the timeout"),
        "{}",
        ran.stderr
    );
}

/// The program gives up the report after a while. Its status does not change.
fn unread_stderr() {
    thread::scope(|scope| {
        for options in [
            &["real16-endless", "--timeout", "0.2"][..],
            &["real16-endless", "--timeout", "0.2", "--transport", "polling"],
            &["-vvv", "simvirtio", "--timeout", "2"],
            &["-vvv", "simvirtio", "--timeout", "2", "--transport", "polling"],
        ] {
            scope.spawn(move || {
                let (full, _reader) = full_stream();
                let mut command = vmm(options);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(OwnedFd::from(full));
                let started = Instant::now();
                let status = support::wait(&mut command.spawn().unwrap());
                assert!(started.elapsed() < Duration::from_secs(30), "{options:?}");
                assert!([0, 114].contains(&status), "{options:?}: {status}");
            });
        }
    });
}
