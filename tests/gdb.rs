//! `--gdb`: a real gdb debugs guests, on KVM and on the software processor.
#![allow(clippy::unwrap_used)]

#[path = "support/gdb.rs"]
mod debugger;
mod support;

use debugger::{Debugged, assert_order, built_guest, counter, no_gdb};
use libtest_mimic::Trial;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use support::{Files, is_soft, on_both, ran, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests: Vec<Trial> = match no_gdb() {
        Some(reason) => vec![support::test_unless(move || Some(reason), "real_gdb", || {})],
        None => with_gdb().collect(),
    };
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn with_gdb() -> impl Iterator<Item = Trial> {
    let tests: [(&str, fn()); 11] = [
        ("steps_breakpoints_registers_and_memory", steps),
        ("a_session_walks_through_all_modes", modes),
        ("gdbinit_follows_the_mode", gdbinit),
        ("watchpoints_stop_after_the_access", watchpoints),
        ("functions_lines_and_variables_of_an_elf_file", symbols),
        ("a_death_stops_the_guest_and_keeps_its_status", death),
        ("on_death_the_guest_waits_where_it_died", on_death),
        ("ctrl_c_detach_attach_and_kill", interrupt),
        ("vcpus_are_threads", threads),
        ("difficult_instructions_are_stepped", instructions),
        ("breakpoints_stop_in_difficult_places", places),
    ];
    tests.into_iter().flat_map(|(name, body)| on_both(name, body))
}

fn steps() {
    let guest = Debugged::start(&["real16-hello"]);
    let seen = guest.gdb(&[
        "x/2i $pc",
        "stepi",
        "p/x $eip",
        "x/s 0x1000 + 0x13",
        "set $ebx = 0x1234",
        "p/x $ebx",
        "p $eflags",
        "set {short}0x500 = 0x4142",
        "x/hx 0x500",
        "break *0x100c",
        "continue",
        "continue",
        "info breakpoints",
        "delete",
        "continue",
    ]);
    assert!(seen.contains("=> 0x1000:"), "{seen}");
    assert_order(&seen, &["0x1234", "0x500:\t0x4142", "[Inferior 1 (process 1) exited normally]"]);
    let ended = guest.end();
    assert_eq!((ended.status, ended.text()), (0, "Hello, world!\n".into()), "{}", ended.stderr);
}

/// The addresses are those of `guest/payloads/modes.asm`.
fn modes() {
    let guest = Debugged::start(&["modes"]);
    let seen = guest.gdb(&[
        "show architecture",
        "x/i 0x1006",
        "stepi 3",
        "p/x $eip",
        "watch *(int *)0x400",
        "continue",
        "unset tdesc filename",
        "show architecture",
        "p/x $rip",
        "p $efer",
        "x/i $rip",
        "p $code_bits",
        "continue",
        "continue",
    ]);
    let parts = [
        "i8086",
        "lods   %ds:(%si),%al",
        "$1 = 0x1009",
        "Old value = 0\nNew value = 42",
        "i386:x86-64",
        "$2 = 0x10b4",
        "[ LME LMA ]",
        "hlt",
        "= 64",
        "exited normally",
    ];
    assert_order(&seen, &parts);
    assert_eq!(guest.end().status, 0);
}

/// Steps from the start to the end: gdb is told of each change by the script of the examples.
fn gdbinit() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/debug/gdbinit");
    let guest = Debugged::start(&["modes"]);
    let seen = guest.gdb_with(
        &["-x", script],
        &[
            "break *0x1027",
            "continue",
            "show architecture",
            "break *0x1099",
            "continue",
            "show architecture",
            "x/i $pc",
            "delete",
            "continue",
        ],
    );
    assert_order(&seen, &["\"i386\"", "\"i386:x86-64\"", "exited normally"]);
    assert_eq!(guest.end().status, 0);
}

fn watchpoints() {
    let guest = Debugged::start(&["real16-42"]);
    let seen = guest.gdb(&["watch *(short *)0x400", "continue", "continue", "continue"]);
    assert_order(&seen, &["Hardware watchpoint 1", "Old value = 0\nNew value = 42", "exited normally"]);
    assert_eq!(guest.end().status, 0);
    // mov ax, [0x500]; mov [0x500], ax; hlt
    let files = Files::new();
    let path = files.write("reads", &[0xa1, 0x00, 0x05, 0xa3, 0x00, 0x05, 0xf4]) + "@0x1000:16";
    let guest = Debugged::start_at(files, "", &[&path]);
    let seen = guest.gdb(&["rwatch *(short *)0x500", "continue", "p/x $eip", "continue"]);
    // A comparison of memory cannot notice a read.
    let parts: &[&str] = match is_soft() {
        true => &["Hardware read watchpoint 1", "Value = 0", "0x1003", "exited normally"],
        false => &[""],
    };
    assert_order(&seen, parts);
    if !seen.contains("exited normally") {
        assert!(seen.contains("Could not insert hardware watchpoint"), "{seen}");
    }
    assert_eq!(guest.end().status, 0);
}

/// Builds the guest. Returns its path.
fn build_program(files: &Files) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/program.c");
    let program = files.write("program.elf", b"");
    let options = include_str!("support/program.flags");
    let mut gcc = Command::new("x86_64-linux-gnu-gcc");
    let built =
        run(gcc.args(options.split_whitespace()).args([source, "-o", &program]).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
    program
}

fn symbols() {
    let files = Files::new();
    let program = built_guest("program.elf").unwrap_or_else(|| build_program(&files));
    let guest = Debugged::start_at(files, "", &[&program, "--mem", "16M"]);
    let seen = guest.gdb_with(
        &[&program],
        &[
            "break add",
            "continue",
            "backtrace",
            "finish",
            "next",
            "p total",
            "watch total",
            "continue",
            "delete",
            "continue",
        ],
    );
    let parts =
        ["Breakpoint 1, add (value=", "#1 ", "_start ()", "Value returned", "= 1", "total", "New value = 3"];
    assert_order(&seen, &parts);
    assert!(seen.contains("exited normally"), "{seen}");
    assert_eq!(guest.end().status, 0);
}

fn death() {
    let guest = Debugged::start(&["long64-triple-fault"]);
    let seen = guest.gdb(&["continue", "p/x $rip", "monitor info", "continue"]);
    assert_order(&seen, &["SIGSEGV", "the guest died of this exit: shutdown", "exited with code 0160"]);
    let ended = guest.end();
    assert_eq!(ended.status, 112);
    assert!(ended.stderr.contains("triple fault"), "{}", ended.stderr);
}

fn on_death() {
    let guest = Debugged::until_death(&["long64-triple-fault"]);
    let seen = guest.gdb(&["p/x $cr0", "monitor exits", "detach"]);
    assert_order(&seen, &["1 exits", "shutdown", "detached"]);
    let ended = guest.end();
    assert_eq!(ended.status, 112);
    assert!(ended.stderr.contains("the guest has died (shutdown), and waits for: gdb"), "{}", ended.stderr);
    // A guest that lives is not stopped.
    let files = Files::new();
    let socket = format!("--gdb=on-death,{}/gdb.sock", files.0.path().display());
    assert_eq!(ran(&["long64-hello", &socket]).text(), "Hello, world!\n");
}

fn interrupt() {
    let files = Files::new();
    let guest = counter(&files);
    let guest = Debugged::start_at(files, "", &[&guest, "--timeout", "50"]);
    let seen = {
        let interrupts =
            "shell (sleep 1; kill -INT $(pgrep -P $PPID -x gdb || echo $PPID)) >/dev/null 2>&1 &";
        guest.gdb(&[interrupts, "continue", "p $rax > 1000", "detach"])
    };
    assert_order(&seen, &["SIGINT", "$1 = 1", "detached"]);
    thread::sleep(Duration::from_millis(200));
    let seen = guest.gdb(&["p $rax > 2000", "kill"]);
    assert_order(&seen, &["$1 = 1"]);
    let ended = guest.end();
    assert_eq!(ended.status, 117, "{}", ended.stderr);
    assert!(ended.stderr.contains("the debugger has killed the guest"), "{}", ended.stderr);
}

fn threads() {
    let files = Files::new();
    let path = counter(&files);
    let guest = Debugged::start_at(files, "", &[&path, "--cpus", "3", "--timeout", "50"]);
    let seen = guest.gdb(&[
        "info threads",
        "set scheduler-locking on",
        "thread 2",
        "p $rdi",
        "stepi",
        "stepi",
        "p/x $rip",
        "thread 3",
        "p $rax",
        "p/x $rip",
        "set scheduler-locking off",
        "break *0x1003 thread 3",
        "continue",
        "thread",
        "kill",
    ]);
    let parts = ["vCPU 0: long", "vCPU 1: long", "vCPU 2: long", "= 1\n", "= 0x1000", "= 0\n", "= 0x1000"];
    assert_order(&seen, &parts);
    assert_order(&seen, &["hit Breakpoint 1", "[Current thread is 3"]);
    assert_eq!(guest.end().status, 117);
}

fn instructions() {
    // sti; cli; pushf; popf; mov ss, ax; nop; mov cx, 2; mov di, 0x500; rep stosb; out 0xe9, al; pushf; push cs;
    // push 0x1017; iret; hlt
    let code = [
        0xfb, 0xfa, 0x9c, 0x9d, 0x8e, 0xd0, 0x90, 0xb9, 2, 0, 0xbf, 0, 5, 0xf3, 0xaa, 0xe6, 0xe9, 0x9c, 0x0e,
        0x68, 0x17, 0x10, 0xcf, 0xf4,
    ];
    let files = Files::new();
    let path = files.write("code", &code) + "@0x1000:16";
    let guest = Debugged::start_at(files, "", &[&path]);
    let mut commands = vec!["set $esp = 0x8000", "set $eax = 0"];
    commands.extend(["stepi"; 14]);
    commands.push("continue");
    let seen = guest.gdb(&commands);
    // After STI and after a load of SS, a host may step two instructions at once.
    assert_order(&seen, &["0x00001002", "0x00001003", "0x00001004", "0x00001007", "0x0000100a"]);
    assert_order(
        &seen,
        &["0x0000100d", "0x0000100f", "0x00001012", "0x00001013", "0x00001016", "exited normally"],
    );
    assert_eq!(guest.end().status, 0);
}

/// Breakpoints at the entry, at a repeated string instruction (it stops for each repetition), at an access to a port, and at a HLT, in a loop.
fn places() {
    // again: mov cx, 2; mov di, 0x500; rep stosb; out 0xe9, al; inc bx; cmp bx, 2; jb again; hlt
    let code = [0xb9, 2, 0, 0xbf, 0, 5, 0xf3, 0xaa, 0xe6, 0xe9, 0x43, 0x83, 0xfb, 2, 0x72, 0xf0, 0xf4];
    let files = Files::new();
    let path = files.write("code", &code) + "@0x1000:16";
    let guest = Debugged::start_at(files, "", &[&path]);
    let mut commands = vec!["break *0x1000", "break *0x1006", "break *0x1008", "break *0x1010"];
    commands.extend(["continue"; 9]);
    let seen = guest.gdb(&commands);
    let stops = [0x1006, 0x1006, 0x1008, 0x1000, 0x1006, 0x1006, 0x1008, 0x1010]
        .map(|address| format!(", 0x0000{address:04x} in"));
    let mut parts: Vec<&str> = stops.iter().map(String::as_str).collect();
    parts.push("exited normally");
    assert_order(&seen, &parts);
    assert_eq!(seen.matches("\nBreakpoint ").count(), 8 + 4, "{seen}");
    assert_eq!(guest.end().status, 0);
}
