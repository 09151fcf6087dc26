//! Signals at every moment of a run, and runs whose input or output blocks.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::payloads::PRINT_LINE_AND_LOOP;
use support::{
    Files, Liar, Ran, TRANSPORT_NAMES, each_on_both, full_stream, kvm_test, machine_test, run, shell, vmm,
};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        machine_test("a_kick_without_a_reason_has_no_effect", kick_without_reason),
        machine_test("runs_end_without_a_quota_for_signals", no_signal_quota),
        kvm_test("a_signal_before_the_run_ends_it", early_signal),
    ];
    tests.extend(each_on_both(&[
        ("a_run_that_waits_for_input_can_be_interrupted", interrupted_wait),
        ("an_interrupted_run_still_reports", interrupted),
        ("a_blocked_write_can_be_interrupted", interrupted_write),
        ("a_second_signal_ends_the_program_at_once", interrupted_twice),
        ("an_ignored_signal_stays_ignored", ignored_signals),
        ("a_signal_between_two_exits_is_not_lost", busy_signal),
        ("a_blocked_flush_can_be_interrupted", interrupted_flush),
        ("a_limit_of_cpu_time_ends_the_run_with_a_report", cpu_limit),
        ("signals_without_a_meaning_have_no_effect", signal_storm),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn kick_without_reason() {
    let line = "mkfifo \"$2\"; (sleep 1; echo late) >\"$2\" & \
        \"$0\" simvirtio-upper --transport \"$1\" <\"$2\" & \
        until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; sleep 0.4; kill -USR1 $!; wait $!";
    for transport in TRANSPORT_NAMES {
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
    for transport in TRANSPORT_NAMES {
        let files = Files::new();
        let fifo = files.0.path().join("fifo");
        let started = Instant::now();
        let ran = shell(line, &[transport, fifo.to_str().unwrap()]);
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{transport}: the run waited for the end of the input"
        );
        assert_eq!(ran.status, 117, "{transport}: {}", ran.stderr);
        assert!(ran.stderr.contains("interrupted"), "{transport}: {}", ran.stderr);
    }
}

/// Runs a guest that prints a line and then never ends. Sends the program a signal after the line.
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
        for transport in TRANSPORT_NAMES {
            let ran = signalled(PRINT_LINE_AND_LOOP, signal, transport);
            assert_eq!(ran.status, 117, "{signal} {transport}: {}", ran.stderr);
            assert!(ran.stderr.contains("interrupted; the guest was then in real mode"), "{}", ran.stderr);
            assert!(ran.stderr.contains("1 PIO out"), "{}", ran.stderr);
        }
    }
}

fn no_signal_quota() {
    for (guest, status) in [("simvirtio-broken-wait --timeout 0", 113), ("long64-endless --timeout 0.2", 114)]
    {
        // Not with a shell: the `ulimit` of dash does not have -i.
        let mut command = Command::new("prlimit");
        command.args(["--sigpending=0:0", env!("CARGO_BIN_EXE_vmm"), "-v", "--transport", "polling"]);
        let ran = run(command.args(guest.split(' ')).stdout(Stdio::piped()));
        assert_eq!(ran.status, status, "{guest}: {}", ran.stderr);
        let by_thread = ran.stderr.contains("a thread watches the time instead");
        assert_eq!(by_thread, status == 114, "{guest}: {}", ran.stderr);
    }
}

/// The guest waits for more input while the device blocks in a write. By polling, the device runs on its own thread.
fn interrupted_write() {
    for transport in TRANSPORT_NAMES {
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

/// The first signal ends the run, whose report then blocks.
fn interrupted_twice() {
    for transport in TRANSPORT_NAMES {
        interrupted_twice_by(transport);
    }
}

fn interrupted_twice_by(transport: &str) {
    let (full, _reader) = full_stream();
    let files = Files::new();
    let guest = files.write("line", PRINT_LINE_AND_LOOP);
    // If the tests run in the background of a shell, they inherit an ignored SIGINT and pass it on.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_vmm"), &guest, "--timeout", "0"]);
    command.args(["--transport", transport]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(OwnedFd::from(full)).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = child.id().to_string();
    let kill = || assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    kill();
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the report waits for a reader");
    kill();
    let started = Instant::now();
    assert_eq!(support::wait(&mut child), 117);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Signals are ignored under `nohup`, and in the background of a shell without job control.
fn ignored_signals() {
    let line =
        "trap '' $1; \"$0\" long64-endless --transport $2 --timeout 0.6 & sleep 0.3; kill -$1 $!; wait $!";
    for signal in ["INT", "TERM", "HUP"] {
        for transport in TRANSPORT_NAMES {
            assert_eq!(shell(line, &[signal, transport]).status, 114, "{signal} {transport}");
        }
    }
}

/// The signal arrives while the program creates the VM.
fn early_signal() {
    let liar = Liar::new();
    for transport in TRANSPORT_NAMES {
        let started = Instant::now();
        let arguments = ["long64-endless", "--timeout", "20", "--transport", transport];
        let ran = liar.run("ae01 -1 0 -1 0 1", &arguments);
        assert_eq!(ran.status, 117, "{}", ran.stderr);
        assert!(started.elapsed() < Duration::from_secs(5), "the run waited for its deadline");
    }
}

/// Prints a line and makes exits without end: mov al, 10; out 0xe9, al; again: in al, 0x10; jmp again
const PRINT_LINE_AND_READ_PORT: &[u8] = &[0xb0, 10, 0xe6, 0xe9, 0xe4, 0x10, 0xeb, 0xfc];

fn busy_signal() {
    for transport in TRANSPORT_NAMES {
        for _ in 0..20 {
            let started = Instant::now();
            assert_eq!(signalled(PRINT_LINE_AND_READ_PORT, "TERM", transport).status, 117);
            assert!(started.elapsed() < Duration::from_secs(5), "the run waited for its deadline");
        }
    }
}

/// mov al, 'a'; out 0xe9, al; jmp $
const PRINT_A_AND_LOOP: &[u8] = &[0xb0, b'a', 0xe6, 0xe9, 0xeb, 0xfe];

/// An incomplete line is written at the end of the run. This write blocks.
fn interrupted_flush() {
    for transport in TRANSPORT_NAMES {
        interrupted_flush_by(transport);
    }
}

fn interrupted_flush_by(transport: &str) {
    let files = Files::new();
    let guest = files.write("a", PRINT_A_AND_LOOP);
    let (full, _reader) = full_stream();
    let mut command = vmm(&[&guest, "--timeout", "0", "--transport", transport]);
    command.stdin(Stdio::null()).stdout(OwnedFd::from(full)).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    support::wait_for_handlers(&child);
    thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let started = Instant::now();
    assert_eq!(support::wait(&mut child), 117);
    assert!(started.elapsed() < Duration::from_secs(5));
}

fn cpu_limit() {
    for transport in TRANSPORT_NAMES {
        let mut command = Command::new("prlimit");
        command.args(["--cpu=1:20", env!("CARGO_BIN_EXE_vmm"), "real16-endless", "--timeout", "50"]);
        let ran = run(command.args(["--transport", transport]).stdout(Stdio::piped()));
        assert_eq!(ran.status, 117, "{}", ran.stderr);
        assert!(ran.stderr.contains("interrupted; the guest was then in real mode"), "{}", ran.stderr);
    }
}

/// These signals arrive while the program creates the machine and runs it.
fn signal_storm() {
    let line = "\"$0\" real16-endless --transport $1 --timeout 1 & \
        while kill -USR1 $! 2>/dev/null; do sleep 0.001; done; wait $!";
    for transport in TRANSPORT_NAMES {
        let ran = shell(line, &[transport]);
        assert!(ran.status == 114 || ran.status == 138, "{} {}", ran.status, ran.stderr);
    }
    let liar = Liar::new();
    let ran = liar.run("ae01 -1 -1 4 0 3", &["real16-42"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}
