//! The console of `vmm boot`: input, prompts, terminals, signals, and readers of the output that are slow or have ended.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::kernels::{
    ECHO, PAUSE, POWER_OFF, assert_ended, boot, interactive, kernel, print, print_for_ever,
};
use support::payloads::LOOP;
use support::{Files, is_soft, kvm_test, machine_test, shell, vmm, wait};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("typed_input_reaches_the_guest", typed),
        kvm_test("a_closed_stdin_is_empty_input", no_stdin),
        kvm_test("a_prompt_is_printed_while_the_guest_waits", prompt),
        kvm_test("signals_end_a_boot_at_any_time", signals),
        kvm_test("the_escape_key_ends_the_machine_and_restores_the_terminal", escape),
        kvm_test("ctrl_a_c_writes_cores_of_a_kernel_that_goes_on", live_cores),
        kvm_test("signals_restore_the_terminal", terminal_and_signals),
        kvm_test("a_background_job_leaves_the_terminal_alone_until_it_is_in_the_foreground", background_job),
        kvm_test("a_stop_gives_the_terminal_back", stopped_job),
        kvm_test("a_reader_that_stalls_does_not_block_the_end", stalled_reader),
        kvm_test("the_escape_key_ends_a_machine_whose_output_is_blocked", escape_and_stalled_reader),
        kvm_test("a_slow_reader_receives_the_last_output", slow_reader),
        kvm_test("a_closed_output_ends_the_boot", closed_output),
        kvm_test("a_boot_that_stands_still_says_where", standstill),
        kvm_test("a_boot_that_stands_still_does_not_wait_for_stderr", standstill_and_full_stderr),
        machine_test("the_escape_key_ends_a_pc_with_a_software_processor", escape_without_kvm),
        machine_test("ctrl_a_c_writes_cores_with_a_software_processor", live_cores_without_kvm),
        machine_test("a_run_shows_control_characters_on_a_terminal_only", visible_controls),
        machine_test("a_run_on_a_terminal_has_an_output_limit", limit_on_a_terminal),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn typed() {
    let files = Files::new();
    let kernel = kernel(&files, &[ECHO, POWER_OFF]);
    let mut child = interactive(&["boot", &kernel, "--timeout", "50"]);
    // The text is longer than the FIFO of the port. Its Ctrl-A has no meaning in a pipe.
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
    assert_eq!(&seen, b"login: ", "the prompt is printed before any input");
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    assert_eq!(wait(&mut child), 0);
}

fn signals() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("x\n"), LOOP]);
    let line = "mkfifo \"$2\"; env --default-signal=\"$3\" \"$0\" boot \"$1\" --timeout 50 --cpus 2 >\"$2\" & \
        read -r line <\"$2\"; kill -\"$3\" $!; wait $!";
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        let fifo = files.0.path().join(signal);
        let ran = shell(line, &[&kernel, fifo.to_str().unwrap(), signal]);
        assert_ended(&ran, 117, "interrupted");
    }
}

/// Runs a shell command on a new terminal. Types each keys after their text has appeared on the terminal. Returns the exit
/// status and everything that appeared.
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
        // Only what was not searched yet, because a slow reader holds the program.
        let mut from = 0;
        while !seen[from..].windows(text.len()).any(|window| window == text.as_bytes()) && !text.is_empty() {
            from = (seen.len() + 1).saturating_sub(text.len());
            let mut bytes = [0; 4096];
            let read = stdout.read(&mut bytes).unwrap_or(0);
            assert!(read != 0, "{text:?} did not appear: {}", String::from_utf8_lossy(&seen));
            seen.extend(&bytes[..read]);
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
    // The terminal is also restored if the guest ends the machine.
    let (status, seen) = on_a_terminal(line, &[("ready", b"q")], &[&kernel]);
    assert!(status == 0 && seen.contains("as before"), "{status}: {seen}");
    // The answer to a key waits for a reader of stderr that is slow: here it reads a full pipe after a second.
    let line = "mkfifo \"$1.err\"; exec 3<>\"$1.err\"; head -c 65536 /dev/zero >&3; \
        (sleep 1; head -c 65536 >/dev/null; exec cat) <&3 & \
        \"$VMM\" boot \"$1\" --timeout 50 2>&3; status=$?; kill $!; exit $status";
    let (status, seen) = on_a_terminal(line, &[("ready", b"\x01h"), ("to the guest", b"q")], &[&kernel]);
    assert_eq!(status, 0, "{seen}");
}

/// The guest waits for a key, which no time limit ends.
fn escape_without_kvm() {
    let files = Files::new();
    // mov ax, 0x0e52; int 0x10; again: xor ah, ah; int 0x16; jmp again
    let mut sector = vec![0xb8, 0x52, 0x0e, 0xcd, 0x10, 0x30, 0xe4, 0xcd, 0x16, 0xeb, 0xfa];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let line = "before=$(stty -g); \"$VMM\" \"$1\" --vcpu soft --wall-timeout 50; status=$?; \
        [ \"$before\" = \"$(stty -g)\" ] && echo as before; exit $status";
    let (status, seen) = on_a_terminal(line, &[("R", b"\x03\x01x")], &[&files.write("sector", &sector)]);
    assert!(status == 117 && seen.contains("as before"), "{status}: {seen:?}");
}

/// The header of an ELF core, and some bytes that it has.
fn assert_core(path: &Path, bytes: &[u8]) {
    let core = fs::read(path).unwrap();
    assert_eq!((&core[..4], core[16]), (&b"\x7fELF"[..], 4), "{}", path.display());
    assert!(core.windows(bytes.len()).any(|window| window == bytes), "{}", path.display());
}

fn live_cores() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    let core = files.write("core", b"an earlier one");
    for cpus in ["1", "2"] {
        let line = "\"$VMM\" boot \"$1\" --timeout 50 --core \"$2\" --cpus \"$3\"";
        let (status, seen) = on_a_terminal(
            line,
            &[
                ("ready", b"\x01c"),
                ("core.1`", b""),
                ("the guest goes on", b"still here"),
                ("still here", b"\x01c"),
                ("core.2`", b"q"),
            ],
            &[&kernel, &core, cpus],
        );
        assert_eq!(status, 0, "{seen}");
        assert!(seen.contains("because the guest ended by itself"), "{seen}");
        assert_eq!(fs::read(&core).unwrap(), b"an earlier one");
        for number in [1, 2] {
            let path = PathBuf::from(format!("{core}.{number}"));
            assert_core(&path, ECHO);
            fs::remove_file(path).unwrap();
        }
    }
    // Without --core, and with a file that cannot be written.
    let line = "\"$VMM\" boot \"$1\" --timeout 50";
    let (status, seen) = on_a_terminal(line, &[("ready", b"\x01c"), ("--core FILE", b"q")], &[&kernel]);
    assert_eq!(status, 0, "{seen}");
    fs::create_dir(format!("{core}.1")).unwrap();
    let line = "\"$VMM\" boot \"$1\" --timeout 50 --core \"$2\"";
    let keys: &[(&str, &[u8])] = &[("ready", b"\x01c"), ("the guest goes on", b"q")];
    let (status, seen) = on_a_terminal(line, keys, &[&kernel, &core]);
    assert!(status == 0 && seen.contains("vmm: error: ") && seen.contains("core.1"), "{status}: {seen}");
}

fn live_cores_without_kvm() {
    let files = Files::new();
    // mov ax, 0x0e52; int 0x10; again: xor ah, ah; int 0x16; jmp again
    let mut sector = vec![0xb8, 0x52, 0x0e, 0xcd, 0x10, 0x30, 0xe4, 0xcd, 0x16, 0xeb, 0xfa];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let (sector, core) = (files.write("sector", &sector), files.0.path().join("core"));
    let line = "\"$VMM\" \"$1\" --vcpu soft --wall-timeout 50 --core \"$2\"";
    let keys: &[(&str, &[u8])] = &[("R", b"\x01c"), ("the guest goes on", b"\x01c"), ("core.2`", b"\x01x")];
    let (status, seen) = on_a_terminal(line, keys, &[&sector, core.to_str().unwrap()]);
    assert_eq!(status, 117, "{seen}");
    for name in ["core.1", "core.2", "core"] {
        assert_core(&files.0.path().join(name), &[0x30, 0xe4, 0xcd, 0x16, 0xeb, 0xfa]);
    }
    let (status, seen) = on_a_terminal(
        &format!("{line} --step"),
        &[("R", b"\x01c"), ("without --gdb, --step and --sample", b"\x01x")],
        &[&sector, core.to_str().unwrap()],
    );
    assert_eq!(status, 117, "{seen}");
}

fn terminal_and_signals() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    // The first signal ends the run, and a second one ends the program at once.
    for kill in ["kill -TERM $pid", "kill -TERM $pid; kill -INT $pid", "kill -QUIT $pid"] {
        let line = format!(
            "before=$(stty -g); (sleep 1; pid=$(pgrep -nf \"$1\"); {kill}) & \"$VMM\" boot \"$1\" --timeout 50; \
             status=$?; [ \"$before\" = \"$(stty -g)\" ] && echo as before; exit $status"
        );
        let (status, seen) = on_a_terminal(&line, &[], &[&kernel]);
        assert!(status == 117 && seen.contains("as before"), "{kill}: {status}: {seen}");
    }
}

/// The shell has job control, so the job in the background must not set the terminal or read it: it would be stopped.
fn background_job() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    let script = r#"set -m; before=$(stty -g); "$VMM" boot "$1" --timeout 50 & sleep 2
        [ "$before" = "$(stty -g)" ] && echo left alone; jobs; read -r line; echo "the shell has read $line"
        fg %1 >/dev/null; status=$?; [ "$before" = "$(stty -g)" ] && echo as before; exit $status"#;
    let script = files.write("script", script.as_bytes());
    let keys: &[(&str, &[u8])] = &[("Running", b"abc\n"), ("the shell has read abc", b"xyz"), ("xyz", b"q")];
    let (status, seen) = on_a_terminal("exec bash \"$2\" \"$1\"", keys, &[&kernel, &script]);
    assert!(status == 0 && seen.contains("left alone") && seen.contains("as before"), "{status}: {seen}");
    assert_eq!(seen.matches("abc").count(), 2, "the echo of the terminal, and the shell: {seen}");
}

fn stopped_job() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print("ready\n"), ECHO, POWER_OFF]);
    // The shell that starts the job does not restore the terminal itself. Keys are typed when the terminal is raw: before, Ctrl-C
    // would interrupt the shell.
    let script = r#"set -m; before=$(stty -g)
        raw() { until [ "$before" != "$(stty -g)" ]; do sleep 0.1; done; }
        (raw; kill -TSTP "$(cat "$1.pid")") &
        sh -c 'echo $$ >"$1.pid"; exec "$VMM" boot "$1" --timeout 50' sh "$1"
        [ "$before" = "$(stty -g)" ] && echo given back
        (raw; echo now type) & fg "%sh -c" >/dev/null; status=$?
        [ "$before" = "$(stty -g)" ] && echo as before; exit $status"#;
    let script = files.write("script", script.as_bytes());
    let keys: &[(&str, &[u8])] = &[("given back", b""), ("now type", b"x\x03y"), ("x\x03y", b"q")];
    let (status, seen) = on_a_terminal("exec bash \"$2\" \"$1\"", keys, &[&kernel, &script]);
    assert!(status == 0 && seen.contains("as before"), "{status}: {seen}");
}

fn stalled_reader() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print_for_ever("x")]);
    for cpus in ["1", "2"] {
        let (writer, _reader) = support::full_stream();
        let mut command = vmm(&["boot", &kernel, "--timeout", "1", "--cpus", cpus]);
        command.stdout(OwnedFd::from(writer)).stdin(Stdio::null()).stderr(Stdio::null());
        assert_eq!(wait(&mut command.spawn().unwrap()), 114);
    }
    // The guest powers off, but its last output cannot be written.
    let kernel = self::kernel(&files, &[&print("x"), POWER_OFF]);
    let (writer, _reader) = support::full_stream();
    let mut command = vmm(&["boot", &kernel, "--timeout", "1"]);
    command.stdout(OwnedFd::from(writer)).stdin(Stdio::null()).stderr(Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 115);
}

fn escape_and_stalled_reader() {
    let files = Files::new();
    // The second guest prints only a prompt, and there is input that waits.
    let prompt = [&print("login: ")[..], LOOP].concat();
    for (code, keys) in [(print_for_ever("x"), b"\x01x".as_slice()), (prompt, b"a\x01x")] {
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
    for cpus in ["1", "2"] {
        // During the pause, the program begins to write the text.
        let kernel = kernel(&files, &[&print("bye"), PAUSE, POWER_OFF]);
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

/// A real-mode guest that prints these bytes: mov al, BYTE; out 0xe9, al for each byte; hlt
fn prints(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [0xb0, *byte, 0xe6, 0xe9]).chain([0xf4]).collect()
}

fn visible_controls() {
    const TEXT: &[u8] = b"a\x1b[31mb\xffc\xc2\x9bd\x07 \xe2\x9c\x93\r\nend";
    let files = Files::new();
    let guest = files.write("guest", &prints(TEXT));
    let raw = String::from_utf8_lossy(TEXT);
    let shown = "a\\x1b[31mb\\xffc\\u{9b}d\\x07 \u{2713}\r\nend";
    let (status, seen) = on_a_terminal("exec \"$VMM\" run \"$1\" -q", &[], &[&guest]);
    // The terminal itself adds a CR before each LF.
    let seen = seen.replace("\r\r", "\r");
    assert!(status == 0 && seen.contains(shown) && !seen.contains('\x1b'), "{status}: {seen:?}");
    let (status, seen) = on_a_terminal("exec \"$VMM\" run \"$1\" -q --raw-output", &[], &[&guest]);
    assert!(status == 0 && seen.replace("\r\r", "\r").contains(&*raw), "{status}: {seen:?}");
    let piped = shell("\"$0\" run \"$1\" -q 2>/dev/null", &[&guest]);
    assert_eq!((piped.status, piped.stdout.as_slice()), (0, TEXT));
    // `boot` is a console. It needs KVM.
    if is_soft() {
        return;
    }
    let kernel = kernel(&files, &[&print("\x1b[31m!"), POWER_OFF]);
    let (status, seen) = on_a_terminal("exec \"$VMM\" boot \"$1\" --timeout 50", &[], &[&kernel]);
    assert!(status == 0 && seen.contains("\x1b[31m!"), "{status}: {seen:?}");
}

/// In long mode, prints 4096 bytes of 0 without end, with the hypercall Print: mov edi, 0x20000; mov esi, 4096; mov dx,
/// 0x500; again: mov eax, 1; out dx, eax; jmp again
const POUR: &[u8] =
    &[0xbf, 0, 0, 2, 0, 0xbe, 0, 0x10, 0, 0, 0x66, 0xba, 0, 5, 0xb8, PRINT, 0, 0, 0, 0xef, 0xeb, 0xf8];
const PRINT: u8 = vmm::controller::HYPERCALL_PRINT as u8;

fn limit_on_a_terminal() {
    let files = Files::new();
    let guest = files.write("pours", POUR) + "@0x1000:long";
    let (status, seen) = on_a_terminal("exec \"$VMM\" run \"$1\" -q --timeout 50", &[], &[&guest]);
    let end = &seen[seen.len().saturating_sub(200)..];
    assert!(
        status == 118 && seen.contains("wrote more than 262144 bytes (--output-limit"),
        "{status}: {end}"
    );
    for options in ["--output-limit 0", "--output-limit 0 --raw-output"] {
        let line = format!("exec \"$VMM\" run \"$1\" -q --timeout 0.5 {options}");
        let (status, _) = on_a_terminal(&line, &[], &[&guest]);
        assert_eq!(status, 114, "{options}");
    }
    // A pipe has no limit.
    let piped = shell("\"$0\" run \"$1\" -q --timeout 50 | head -c 300000 | wc -c", &[&guest]);
    assert_eq!(piped.text().trim(), "300000", "{}", piped.stderr);
}

/// cli; hlt
const HALT: &[u8] = &[0xfa, 0xf4];
/// sti; again: hlt; jmp again
const WAIT: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];
/// Waits until memory changes, as a kernel without a timer interrupt does: sti; mov eax, [0x9000]; again: cmp eax, [0x9000];
/// je again
const CALIBRATE: &[u8] =
    &[0xfb, 0x8b, 0x04, 0x25, 0, 0x90, 0, 0, 0x3b, 0x04, 0x25, 0, 0x90, 0, 0, 0x74, 0xf7];
const STANDS_STILL: &str = "warn: the guest has made no exits and shown no text for 10 s";

fn standstill() {
    thread::scope(|scope| {
        let running = "vCPU 0: running in long mode at 0x100000, CS 0x0010: eb fe  jmp";
        let halted = "vCPU 0: halted in long mode at 0x100002, CS 0x0010";
        let text = [&print("x")[..], LOOP].concat();
        let dead = [&print("x")[..], HALT].concat();
        let waits = [&print("x")[..], WAIT].concat();
        let root = [&print("Waiting for root device /dev/vda...\n")[..], WAIT].concat();
        let (itself, never) = ("a jump to itself never ends", "hlt with interrupts off never wakes");
        for (code, clock, line) in [
            (LOOP.to_vec(), "auto", Some((running, itself))),
            (HALT.to_vec(), "auto", Some((halted, never))),
            (text, "auto", Some(("vCPU 0: running", itself))),
            (dead, "auto", Some(("vCPU 0: halted", never))),
            // An interrupt can wake it, so it may be a shell that waits for a key.
            (waits, "auto", None),
            (root, "auto", Some(("vCPU 0: halted", "attach it with --disk"))),
            (WAIT.to_vec(), "auto", Some(("vCPU 0: halted", "it may lack the driver of its console"))),
            (CALIBRATE.to_vec(), "kvm", Some(("vCPU 0: running", "give it one with --clock pit"))),
            (CALIBRATE.to_vec(), "auto", Some(("vCPU 0: running", "until an interrupt or another vCPU"))),
        ] {
            scope.spawn(move || {
                let ran = boot(&[&code], &["--cpus", "3", "--timeout", "20", "--clock", clock]);
                let told = ran.stderr.split("vmm: /").next().unwrap();
                // Nothing moves afterwards, so there is no second warning.
                assert_eq!(told.matches(STANDS_STILL).count(), usize::from(line.is_some()), "{}", ran.stderr);
                if let Some((line, cause)) = line {
                    for text in [line, "\n  2 vCPUs have not been started\n", "probable cause: ", cause] {
                        assert!(told.contains(text), "{text}: {told}");
                    }
                }
                assert_eq!(ran.status, 114, "{}", ran.stderr);
            });
        }
    });
}

fn standstill_and_full_stderr() {
    let files = Files::new();
    let kernel = kernel(&files, &[LOOP]);
    let (full, _reader) = support::full_stream();
    let mut command = vmm(&["boot", &kernel, "--timeout", "13"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(OwnedFd::from(full));
    let started = Instant::now();
    assert_eq!(wait(&mut command.spawn().unwrap()), 114);
    // The summary waits for its reader.
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
}

fn closed_output() {
    let files = Files::new();
    let kernel = kernel(&files, &[&print_for_ever("x\n")]);
    let ran = shell("\"$0\" boot \"$1\" --timeout 30 | head -c 1; exit \"${PIPESTATUS:-0}\"", &[&kernel]);
    assert!(ran.stderr.contains("could not be written"), "{}", ran.stderr);
    let full = shell("exec \"$0\" boot \"$1\" --timeout 30 >/dev/full", &[&kernel]);
    assert_ended(&full, 115, "could not be written");
}
