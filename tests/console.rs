//! The console of a machine that `vmm boot` makes: keys, prompts, terminals, signals, and readers that are slow or gone.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use support::kernels::{ECHO, FOR_EVER, POWER_OFF, assert_ended, interactive, kernel, print};
use support::{Files, kvm_test, shell, vmm, wait};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("what_is_typed_arrives", typed),
        kvm_test("a_closed_stdin_is_silence", no_stdin),
        kvm_test("a_prompt_is_shown_while_the_guest_waits", prompt),
        kvm_test("signals_end_a_boot_at_any_time", signals),
        kvm_test("the_escape_key_ends_the_machine_and_the_terminal_is_as_before", escape),
        kvm_test("a_signal_restores_the_terminal_twice", terminal_and_signals),
        kvm_test("a_reader_that_stalls_holds_no_boot", stalled_reader),
        kvm_test("the_escape_key_ends_a_machine_whose_reader_stalls", escape_and_stalled_reader),
        kvm_test("a_slow_reader_gets_the_last_words", slow_reader),
        kvm_test("a_closed_output_ends_the_boot", closed_output),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn typed() {
    let files = Files::new();
    let kernel = kernel(&files, &[ECHO, POWER_OFF]);
    let mut child = interactive(&["boot", &kernel, "--timeout", "50"]);
    // More than the port has room for, and Ctrl-A, which means nothing in a pipe.
    let text: String = (0..300).map(|line| format!("line {line}\x01x\n")).collect::<String>() + "q";
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut seen = String::new();
    child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!((wait(&mut child), seen), (0, text));
}

fn no_stdin() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("x"), POWER_OFF]);
    let ran = shell("exec \"$0\" boot \"$1\" --timeout 30 <&-", &[&kernel]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "x"), "{}", ran.stderr);
}

fn prompt() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("login: "), ECHO, POWER_OFF]);
    let mut child = interactive(&["boot", &kernel, "--timeout", "50"]);
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = [0; 7];
    stdout.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"login: ", "shown before anything is typed");
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    assert_eq!(wait(&mut child), 0);
}

fn signals() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("x\n"), FOR_EVER]);
    let line = "mkfifo \"$2\"; env --default-signal=\"$3\" \"$0\" boot \"$1\" --timeout 50 --cpus 2 >\"$2\" & \
        read -r line <\"$2\"; kill -\"$3\" $!; wait $!";
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        let fifo = files.0.path().join(signal);
        let ran = shell(line, &[&kernel, fifo.to_str().unwrap(), signal]);
        assert_ended(&ran, 117, "interrupted");
    }
}

/// A shell's line on a terminal of its own, on which keys are typed, each when a text has been seen there. Gives the
/// line's exit status and all that was seen.
fn on_a_terminal(line: &str, keys: &[(&str, &[u8])], arguments: &[&str]) -> (i32, String) {
    let files = Files::new();
    let words: Vec<_> = arguments.iter().map(|word| format!("'{word}'")).collect();
    let run = files.write("run", format!("set -- {}\n{line}\n", words.join(" ")).as_bytes());
    let mut command = Command::new("script");
    command.args(["-qec", &format!("sh {run}"), "/dev/null"]).env("VMM", env!("CARGO_BIN_EXE_vmm"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut seen) = (child.stdout.take().unwrap(), Vec::new());
    let mut stdin = child.stdin.take().unwrap();
    for (text, keys) in keys {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        stdin.write_all(keys).unwrap();
        stdin.flush().unwrap();
    }
    let reader = thread::spawn(move || {
        let _ = stdout.read_to_end(&mut seen);
        String::from_utf8_lossy(&seen).into_owned()
    });
    let status = wait(&mut child);
    drop(stdin);
    (status, reader.join().unwrap())
}

fn escape() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    let line = "before=$(stty -g); \"$VMM\" boot \"$1\" --timeout 50; status=$?; \
        [ \"$before\" = \"$(stty -g)\" ] && echo as before; exit $status";
    let (status, seen) = on_a_terminal(
        line,
        &[("ready", b"a\x03b\x01h"), ("to the guest", b"c\x01\x01d"), ("d", b""), ("c\x01d", b"\x01x")],
        &[&kernel],
    );
    assert_eq!(status, 117, "{seen}");
    assert!(seen.contains("Ctrl-A x  ends the machine"), "{seen}");
    assert!(seen.contains("ended at the console (Ctrl-A x)") && seen.contains("as before"), "{seen}");
    assert!(seen.contains("a\x03b"), "keys go to the guest, Ctrl-C too: {seen:?}");
    // What the guest ends leaves the terminal as it was, too.
    let (status, seen) = on_a_terminal(line, &[("ready", b"q")], &[&kernel]);
    assert!(status == 0 && seen.contains("as before"), "{status}: {seen}");
}

fn terminal_and_signals() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    // The first signal ends the run, a second the program at once.
    for kill in ["kill -TERM $pid", "kill -TERM $pid; kill -INT $pid", "kill -QUIT $pid"] {
        let line = format!(
            "before=$(stty -g); (sleep 1; pid=$(pgrep -nf \"$1\"); {kill}) & \"$VMM\" boot \"$1\" --timeout 50; \
             status=$?; [ \"$before\" = \"$(stty -g)\" ] && echo as before; exit $status"
        );
        let (status, seen) = on_a_terminal(&line, &[], &[&kernel]);
        assert!(status == 117 && seen.contains("as before"), "{kill}: {status}: {seen}");
    }
}

fn stalled_reader() {
    let files = Files::new();
    // Prints for ever.
    let endless = [&print("x")[..], &[0xee, 0xeb, 0xfd]].concat();
    let kernel = kernel(&files, &[&endless]);
    for cpus in ["1", "2"] {
        let (writer, _reader) = support::full_stream();
        let mut command = vmm(&["boot", &kernel, "--timeout", "1", "--cpus", cpus]);
        command.stdout(OwnedFd::from(writer)).stdin(Stdio::null()).stderr(Stdio::null());
        assert_eq!(wait(&mut command.spawn().unwrap()), 114);
    }
    // A guest that is done, but whose last word nobody takes.
    let kernel = self::kernel(&files, &[&print("x"), POWER_OFF]);
    let (writer, _reader) = support::full_stream();
    let mut command = vmm(&["boot", &kernel, "--timeout", "1"]);
    command.stdout(OwnedFd::from(writer)).stdin(Stdio::null()).stderr(Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 115);
}

fn escape_and_stalled_reader() {
    let files = Files::new();
    // The second one has only a prompt to say, and a key waits for it.
    let endless = [&print("x")[..], &[0xee, 0xeb, 0xfd]].concat();
    for (code, keys) in
        [(endless, b"\x01x".as_slice()), ([&print("login: ")[..], FOR_EVER].concat(), b"a\x01x")]
    {
        let kernel = kernel(&files, &[&code]);
        let fifo = files.0.path().join("fifo");
        let line = "rm -f \"$2\"; mkfifo \"$2\"; sleep 50 <\"$2\" & sleeper=$!; exec 3>\"$2\"; \
            (sleep 1; echo ready) & head -c 65536 /dev/zero >&3; \"$VMM\" boot \"$1\" --cpus 2 >&3; \
            status=$?; kill $sleeper; exit $status";
        let (status, seen) = on_a_terminal(line, &[("ready", keys)], &[&kernel, fifo.to_str().unwrap()]);
        assert!(status == 117 && seen.contains("Ctrl-A x"), "{status}: {seen}");
    }
}

fn slow_reader() {
    let files = Files::new();
    // mov ecx, 400000; dec ecx; jnz: long enough for the prompt to be on its way.
    let pause = [0xb9, 0x80, 0x1a, 0x06, 0x00, 0xff, 0xc9, 0x75, 0xfc];
    for cpus in ["1", "2"] {
        let kernel = kernel(&files, &[&print("bye"), &pause, POWER_OFF]);
        let (writer, mut reader) = support::full_stream();
        let mut command = vmm(&["boot", &kernel, "--cpus", cpus]);
        command.stdout(OwnedFd::from(writer)).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        drop(command);
        thread::sleep(Duration::from_millis(1500));
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!((wait(&mut child), seen.ends_with(b"bye")), (0, true));
    }
}

fn closed_output() {
    let files = Files::new();
    let endless = [&print("x\n")[..], &[0xee, 0xeb, 0xfd]].concat();
    let kernel = kernel(&files, &[&endless]);
    let ran = shell("\"$0\" boot \"$1\" --timeout 30 | head -c 1; exit \"${PIPESTATUS:-0}\"", &[&kernel]);
    assert!(ran.stderr.contains("could not be written"), "{}", ran.stderr);
    let full = shell("exec \"$0\" boot \"$1\" --timeout 30 >/dev/full", &[&kernel]);
    assert_ended(&full, 115, "could not be written");
}
