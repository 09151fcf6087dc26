//! Signals at every moment, and runs that nobody lets end.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{Files, Liar, Ran, full_stream, kvm_test, run, shell, vmm};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("a_kick_without_a_reason_changes_nothing", kick_without_reason),
        kvm_test("a_run_that_waits_for_input_can_be_interrupted", interrupted_wait),
        kvm_test("an_interrupted_run_still_reports", interrupted),
        kvm_test("without_a_quota_for_signals_runs_still_end", no_signal_quota),
        kvm_test("a_write_that_nobody_reads_can_be_interrupted", interrupted_write),
        kvm_test("a_second_signal_ends_the_program_at_once", interrupted_twice),
        kvm_test("a_signal_that_was_ignored_stays_ignored", ignored_signals),
        kvm_test("a_signal_before_the_run_ends_it", early_signal),
        kvm_test("a_signal_between_two_exits_is_not_lost", busy_signal),
        kvm_test("text_that_nobody_takes_can_be_interrupted", interrupted_flush),
        kvm_test("a_limit_of_cpu_time_ends_the_run_with_its_report", cpu_limit),
        kvm_test("signals_without_a_meaning_change_nothing", signal_storm),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn kick_without_reason() {
    let line = "mkfifo \"$2\"; (sleep 1; echo late) >\"$2\" & \
        \"$0\" simvirtio-upper --transport \"$1\" <\"$2\" & \
        until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; sleep 0.4; kill -USR1 $!; wait $!";
    for transport in ["exit", "polling"] {
        let files = Files::new();
        let fifo = files.0.path().join("fifo");
        let ran = shell(line, &[transport, fifo.to_str().unwrap()]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "LATE\n"), "{transport}: {}", ran.stderr);
    }
}

fn interrupted_wait() {
    let line = "mkfifo \"$2\"; sleep 20 >\"$2\" & writer=$!; \
        \"$0\" simvirtio-upper --transport \"$1\" --timeout 0 <\"$2\" & \
        until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; sleep 0.5; kill -TERM $!; wait $!; \
        status=$?; kill $writer; exit $status";
    for transport in ["exit", "polling"] {
        let files = Files::new();
        let fifo = files.0.path().join("fifo");
        let started = Instant::now();
        let ran = shell(line, &[transport, fifo.to_str().unwrap()]);
        assert!(started.elapsed() < Duration::from_secs(10), "{transport}: not before the input's end");
        assert_eq!(ran.status, 117, "{transport}: {}", ran.stderr);
        assert!(ran.stderr.contains("interrupted"), "{transport}: {}", ran.stderr);
    }
}

/// Runs a guest that prints a line and goes on for ever, and sends it a signal then.
fn signalled(code: &[u8], signal: &str, transport: &str) -> Ran {
    let files = Files::new();
    let guest = files.write("line", code);
    let mut script = Command::new("sh");
    let line = "mkfifo \"$3\"; env --default-signal=\"$4\" \"$0\" \"$1\" --transport \"$2\" --timeout 20 >\"$3\" & \
        read -r line <\"$3\"; kill -\"$4\" $!; wait $!";
    let fifo = files.0.path().join("fifo");
    script.args(["-c", line, env!("CARGO_BIN_EXE_vmm"), &guest, transport]).arg(fifo).arg(signal);
    run(&mut script)
}

fn interrupted() {
    for signal in ["INT", "TERM", "HUP"] {
        for transport in ["exit", "polling"] {
            // mov al, 10; out 0xe9, al; jmp $
            let ran = signalled(&[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfe], signal, transport);
            assert_eq!(ran.status, 117, "{signal} {transport}: {}", ran.stderr);
            assert!(ran.stderr.contains("interrupted; the guest was then in real mode"), "{}", ran.stderr);
            assert!(ran.stderr.contains("1 PIO out"), "{}", ran.stderr);
        }
    }
}

fn no_signal_quota() {
    for (guest, status) in [("simvirtio-broken-wait --timeout 0", 113), ("long64-endless --timeout 0.2", 114)]
    {
        // Not by a shell: the `ulimit` of dash knows no -i.
        let mut command = Command::new("prlimit");
        command.args(["--sigpending=0:0", env!("CARGO_BIN_EXE_vmm"), "-v", "--transport", "polling"]);
        let ran = run(command.args(guest.split(' ')).stdout(Stdio::piped()));
        assert_eq!(ran.status, status, "{guest}: {}", ran.stderr);
        let by_thread = ran.stderr.contains("a thread watches the time instead");
        assert_eq!(by_thread, status == 114, "{guest}: {}", ran.stderr);
    }
}

/// The guest waits for more input, so it is the device that hangs: by polling in a thread of its own.
fn interrupted_write() {
    for transport in ["exit", "polling"] {
        let (full, _reader) = full_stream();
        let mut command = vmm(&["simvirtio-upper", "--transport", transport, "--timeout", "0"]);
        command.stdin(Stdio::piped()).stdout(OwnedFd::from(full)).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
        support::wait_for_handlers(&child);
        thread::sleep(Duration::from_millis(500));
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let (started, _input) = (Instant::now(), child.stdin.take());
        assert_eq!(support::wait(&mut child), 117, "{transport}");
        assert!(started.elapsed() < Duration::from_secs(5), "{transport}");
    }
}

/// Here the first signal finds a report that nobody reads.
fn interrupted_twice() {
    let (full, _reader) = full_stream();
    let files = Files::new();
    let guest = files.write("line", &[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfe]);
    // Whoever runs the tests in a shell's background has SIGINT ignored, and hands that on.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_vmm"), &guest, "--timeout", "0"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(OwnedFd::from(full)).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = child.id().to_string();
    let kill = || assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    kill();
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "its report waits for a reader");
    kill();
    let started = Instant::now();
    assert_eq!(support::wait(&mut child), 117);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// As under `nohup`, and in the background of a shell without job control.
fn ignored_signals() {
    for signal in ["INT", "TERM", "HUP"] {
        let line = "trap '' $1; \"$0\" long64-endless --timeout 0.6 & sleep 0.3; kill -$1 $!; wait $!";
        assert_eq!(shell(line, &[signal]).status, 114, "{signal}");
    }
}

/// It comes while the machine is being made.
fn early_signal() {
    let liar = Liar::new();
    let started = Instant::now();
    let ran = liar.run("ae01 -1 0 -1 0 1", &["long64-endless", "--timeout", "20"]);
    assert_eq!(ran.status, 117, "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(5), "not before its time was up");
}

fn busy_signal() {
    // mov al, 10; out 0xe9, al; again: in al, 0x10; jmp again
    let code = [0xb0, 10, 0xe6, 0xe9, 0xe4, 0x10, 0xeb, 0xfc];
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(signalled(&code, "TERM", "exit").status, 117);
        assert!(started.elapsed() < Duration::from_secs(5), "not before its time was up");
    }
}

/// Text that waits for the end of its line is handed on at the end, and nobody takes it.
fn interrupted_flush() {
    let files = Files::new();
    // mov al, 'a'; out 0xe9, al; jmp $
    let guest = files.write("a", &[0xb0, b'a', 0xe6, 0xe9, 0xeb, 0xfe]);
    let (full, _reader) = full_stream();
    let mut command = vmm(&[&guest, "--timeout", "0"]);
    command.stdin(Stdio::null()).stdout(OwnedFd::from(full)).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    support::wait_for_handlers(&child);
    thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let started = Instant::now();
    assert_eq!(support::wait(&mut child), 117);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// A limit of CPU time is an interruption, too.
fn cpu_limit() {
    let mut command = Command::new("prlimit");
    command.args(["--cpu=1:20", env!("CARGO_BIN_EXE_vmm"), "real16-endless", "--timeout", "50"]);
    let ran = run(command.stdout(Stdio::piped()));
    assert_eq!(ran.status, 117, "{}", ran.stderr);
    assert!(ran.stderr.contains("interrupted; the guest was then in real mode"), "{}", ran.stderr);
}

/// Signals that mean nothing come while the machine is made and runs.
fn signal_storm() {
    let line =
        "\"$0\" real16-endless --timeout 1 & while kill -USR1 $! 2>/dev/null; do sleep 0.001; done; wait $!";
    let ran = shell(line, &[]);
    assert!(ran.status == 114 || ran.status == 138, "{} {}", ran.status, ran.stderr);
    let liar = Liar::new();
    let ran = liar.run("ae01 -1 -1 4 0 3", &["real16-42"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}
