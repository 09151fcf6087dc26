//! `--gdb`: a real gdb debugs guests, on KVM and on the software processor.
#![allow(clippy::unwrap_used)]

#[path = "support/gdb.rs"]
mod debugger;
mod support;

use debugger::{Debugged, counter, no_gdb};
use libtest_mimic::{Arguments, Trial};
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{fs, thread};
use support::{Files, is_soft, on_both, ran, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests: Vec<Trial> = match no_gdb() {
        Some(reason) => vec![support::test_unless(move || Some(reason), "real_gdb", || {})],
        None => with_gdb().collect(),
    };
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn with_gdb() -> impl Iterator<Item = Trial> {
    let tests: [(&str, fn()); 15] = [
        ("steps_breakpoints_registers_and_memory", steps),
        ("a_session_walks_through_all_modes", modes),
        ("floating_point_and_sse_registers_are_shown_and_set", floating_point),
        ("gdbinit_follows_the_mode", gdbinit),
        ("watchpoints_stop_after_the_access", watchpoints),
        ("functions_lines_and_variables_of_an_elf_file", symbols),
        ("a_death_stops_the_guest_and_keeps_its_status", death),
        ("on_death_the_guest_waits_where_it_died", on_death),
        ("ctrl_c_detach_attach_and_kill", interrupt),
        ("vcpus_are_threads", threads),
        ("difficult_instructions_are_stepped", instructions),
        ("breakpoints_stop_in_difficult_places", places),
        ("devices_are_not_touched", devices),
        ("monitor_shows_the_machine", monitor),
        ("visual_studio_code_debugs_the_example", visual_studio_code),
    ];
    tests.into_iter().flat_map(|(name, body)| on_both(name, body))
}

/// Asserts that a text has these parts, in this order.
#[track_caller]
fn assert_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not in its place in\n{text}"));
        rest = &rest[at + part.len()..];
    }
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
        "break *0x100b",
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

/// The guest copies XMM1, which it has got from memory, and XMM2, which gdb sets.
fn floating_point() {
    let files = Files::new();
    // mov rax, cr4; or eax, 0x200; mov cr4, rax; movups xmm1, [0x1000]; movups [0x2000], xmm2; hlt
    let mut code = vec![0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x02, 0x00, 0x00, 0x0f, 0x22, 0xe0];
    code.extend([0x0f, 0x10, 0x0c, 0x25, 0x00, 0x10, 0, 0, 0x0f, 0x11, 0x14, 0x25, 0x00, 0x20, 0, 0, 0xf4]);
    let path = files.write("sse", &code) + "@0x1000:64";
    let guest = Debugged::start_at(files, "", &[&path]);
    let seen = guest.gdb(&[
        "p $mxcsr",
        "p/x $fctrl",
        "p/x $ftag",
        "stepi 4",
        "p/x $xmm1.v2_int64[0]",
        "set $xmm2.v4_int32 = {1, 2, 3, 4}",
        "set $mxcsr = 0x1f81",
        "set $st0 = 2.5",
        "set $ftag = 0xfffc",
        "p $st0",
        "p/x $ftag",
        "stepi",
        "x/4xw 0x2000",
        "p $mxcsr",
        "continue",
    ]);
    let parts = [
        "$1 = [ IM DM ZM OM UM PM ]",
        "$2 = 0x37f",
        "$3 = 0xffff",
        "$4 = 0x2000de0200f",
        "$5 = 2.5",
        "$6 = 0xfffc",
        "0x2000:\t0x00000001\t0x00000002\t0x00000003\t0x00000004",
        "$7 = [ IE IM DM ZM OM UM PM ]",
        "exited normally",
    ];
    assert_order(&seen, &parts);
    assert_eq!(guest.end().status, 0);
    // A processor of 32 bits has eight XMM registers.
    let guest = Debugged::start(&["real16-42"]);
    let seen = guest.gdb(&["p/x $xmm7.v4_int32[0]", "p $xmm8", "p $st7", "continue"]);
    assert_order(&seen, &["$1 = 0x0", "$2 = void", "$3 = 0", "exited normally"]);
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

const PROGRAM: &str = r#"
volatile int total;
__attribute__((noinline)) int add(int value) {
    total += value;
    return total;
}
void _start(void) {
    for (int i = 1; i <= 3; i++) add(i);
    __asm__ volatile("hlt" :: "a"(total));
}
"#;

fn symbols() {
    let files = Files::new();
    let (source, program) = (files.write("program.c", PROGRAM.as_bytes()), files.write("program.elf", b""));
    let options = "-O1 -g -ffreestanding -nostdlib -static -no-pie -fno-pic -fcf-protection=none -mgeneral-regs-only \
                   -fno-stack-protector -Wl,-Ttext-segment=0x10000";
    let mut gcc = Command::new("x86_64-linux-gnu-gcc");
    let built =
        run(gcc.args(options.split_whitespace()).args([&source, "-o", &program]).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
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
    // After a load of SS a host may step two instructions at once.
    assert_order(
        &seen,
        &["0x00001001", "0x00001002", "0x00001003", "0x00001004", "0x00001007", "0x0000100a"],
    );
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

fn devices() {
    let guest = Debugged::start(&["simvirtio"]);
    let seen = guest.gdb(&["x/bx 0x100000", "set {char}0x100000 = 7", "x/bx 0x7fff00000000", "continue"]);
    assert_eq!(seen.matches("Cannot access memory at address 0x").count(), 3, "{seen}");
    let ended = guest.end();
    assert_eq!((ended.status, ended.text()), (0, "Ana are mere".into()), "{}", ended.stderr);
    assert!(ended.stderr.contains("40 exits"), "{}", ended.stderr);
    // The magic number and the status of the device, which the user asks for. The bytes are not a single access.
    let guest = Debugged::start(&["simvirtio"]);
    let seen = guest.gdb(&[
        "monitor mmio",
        "monitor mmio on",
        "x/wx 0x100000",
        "x/3bx 0x100001",
        "set {char}0x100005 = 0",
        "x/bx 0x7fff00000000",
        "monitor mmio off",
        "x/wx 0x100000",
        "continue",
    ]);
    let parts = [
        "off: gdb cannot",
        "on: gdb reads and writes",
        "0x100000:\t0x",
        "0x100001:\t0x",
        "Cannot access memory at address 0x7fff00000000",
        "off: gdb cannot",
        "Cannot access memory at address 0x100000",
        "exited normally",
    ];
    assert_order(&seen, &parts);
    let ended = guest.end();
    assert_eq!((ended.status, ended.text()), (0, "Ana are mere".into()), "{}", ended.stderr);
}

fn monitor() {
    let guest = Debugged::start(&["long64-hello"]);
    let seen = guest.gdb(&[
        "monitor help",
        "monitor info",
        "monitor regs",
        "monitor translate 0x1000",
        "monitor translate 0x8000000000",
        "monitor map",
        "monitor devices",
        "stepi 8",
        "monitor exits",
        "monitor arch",
        "monitor nonsense",
        "continue",
    ]);
    let processor = if is_soft() { "processor: the software processor" } else { "processor: KVM" };
    let parts = [
        "monitor translate ADDR",
        "stopped: before the first instruction (vCPU 0)",
        processor,
        "breakpoints: ",
        "watchpoints: ",
        "cr3 0xfffc1000",
        "0x1000 is at 0x1000 (a page of 2M, writable)",
        "0x8000000000 is not mapped",
        "  0x0-0xffffffff at 0x0",
        "  0xe9  debug console",
        " exits; the last ones",
        "out8 0xe9 0x48",
        "now: auto",
        "there is no such command",
    ];
    assert_order(&seen, &parts);
    assert_eq!(guest.end().status, 0);
}

/// Does what the extension C/C++ of Visual Studio Code does with the configuration of the example.
fn visual_studio_code() {
    let files = Files::new();
    let folder = files.0.path().to_str().unwrap().to_string();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/debug");
    for name in ["guest.c", "gdbinit", "Makefile", ".vscode/launch.json"] {
        let to = files.0.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(format!("{example}/{name}"), to).unwrap();
    }
    let built = run(Command::new("make").args(["-s", "-C", &folder, "guest.elf"]).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
    let launch = fs::read_to_string(format!("{folder}/.vscode/launch.json")).unwrap();
    let launch: serde_json::Value = serde_json::from_str(&launch).unwrap();
    let configuration = &launch["configurations"][0];
    let value = |value: &serde_json::Value| value.as_str().unwrap().replace("${workspaceFolder}", &folder);
    let program = value(&configuration["program"]);
    assert_eq!(value(&configuration["miDebuggerServerAddress"]), "localhost:1234");
    let guest = Debugged::start_at(files, "", &[&program, "--mem", "16M", "--verify"]);
    let commands = [
        format!("-environment-cd {}", value(&configuration["cwd"])),
        format!("-interpreter-exec console \"{}\"", value(&configuration["setupCommands"][0]["text"])),
        format!("-file-exec-and-symbols {program}"),
        format!("-target-select remote {}", guest.socket),
        "-break-insert -f guest.c:6".into(),
        "-exec-continue".into(),
        "-thread-info".into(),
        "-stack-list-frames --thread 1 0 10".into(),
        "-var-create --thread 1 --frame 0 - * value".into(),
        "-data-list-register-names".into(),
        "-data-list-register-values --thread 1 x 16".into(),
        "-exec-next".into(),
        "-break-delete 1".into(),
        "-exec-continue".into(),
        "-gdb-exit".into(),
    ];
    let mut gdb = Command::new("timeout");
    gdb.args(["-k", "1", "30", "gdb", "-nx", "-q", "--interpreter=mi"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut gdb = gdb.spawn().unwrap();
    gdb.stdin.take().unwrap().write_all((commands.join("\n") + "\n").as_bytes()).unwrap();
    let seen = String::from_utf8(gdb.wait_with_output().unwrap().stdout).unwrap();
    let parts = [
        "^connected",
        "^done,bkpt=",
        "*stopped,reason=\"breakpoint-hit\"",
        "^done,threads=[{id=\"1\",target-id=\"Thread 1.1\"",
        "func=\"add\"",
        "value=\"2\"",
        "\"rax\"",
        "register-values=[{number=\"16\"",
        "*stopped,reason=\"end-stepping-range\"",
        "*stopped,reason=\"exited-normally\"",
    ];
    assert_order(&seen, &parts);
    assert_eq!(guest.end().status, 0);
}
