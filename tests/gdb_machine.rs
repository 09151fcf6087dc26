//! `--gdb`: registers, devices, the commands of `monitor`, and the examples, with a real gdb.
#![allow(clippy::unwrap_used)]

#[path = "support/gdb.rs"]
mod debugger;
mod support;

use debugger::{Debugged, assert_order, built_guest, no_gdb, symbol_file};
use libtest_mimic::Trial;
use std::fs;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, is_soft, kvm_test, on_both, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests: Vec<Trial> = match no_gdb() {
        Some(reason) => vec![support::test_unless(move || Some(reason), "real_gdb", || {})],
        None => with_gdb().collect(),
    };
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn with_gdb() -> impl Iterator<Item = Trial> {
    let tests: [(&str, fn()); 5] = [
        ("floating_point_and_sse_registers_are_shown_and_set", floating_point),
        ("devices_are_not_touched", devices),
        ("monitor_shows_the_machine", monitor),
        ("the_example_finds_what_overwrites_a_variable", overwritten),
        ("visual_studio_code_debugs_the_example", visual_studio_code),
    ];
    let on_both = tests.into_iter().flat_map(|(name, body)| on_both(name, body));
    // LINUX_KIT states that this KVM runs Linux.
    let linux = std::env::var_os("LINUX_KIT").map(|_| kvm_test("linux_stops_at_start_kernel", start_kernel));
    on_both.chain(linux)
}

/// The host has the same kernel, at the same addresses. gdb gets the name from a file.
fn start_kernel() {
    let kit = std::env::var("LINUX_KIT").unwrap();
    let names = fs::read_to_string("/proc/kallsyms").unwrap();
    let line = names.lines().find(|line| line.ends_with(" start_kernel")).expect("the host has the symbol");
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    let files = Files::new();
    let symbols = files.write("symbols.elf", &symbol_file("start_kernel", address));
    let (kernel, initrd) = (format!("{kit}/vmlinux"), format!("{kit}/guest-initrd"));
    let arguments = ["boot", &kernel, "--initrd", &initrd, "--cmdline", "console=ttyS0 nokaslr panic=-1"];
    let guest = Debugged::start_at(files, "", &arguments);
    let started = Instant::now();
    let seen = guest.gdb_with(
        &[&symbols],
        &[
            "break *start_kernel",
            "monitor info",
            "continue",
            "p/x $rip",
            "monitor info",
            "x/2xb $rip",
            "kill",
        ],
    );
    let rip = format!("$1 = {address:#x}");
    let mut parts =
        vec!["Breakpoint 1 at", "Breakpoint 1, 0x", "in start_kernel ()", &rip, "stopped: at a breakpoint"];
    if seen.contains("out in memory, in ring 0") {
        parts.push("the last run used out in memory");
    }
    parts.push("<start_kernel>:");
    assert_order(&seen, &parts);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(guest.end().status, 117);
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

/// Copies files of the example, and builds one of its guests. Returns the folder.
fn example(files: &Files, names: &[&str], guest: &str) -> String {
    let folder = files.0.path().to_str().unwrap().to_string();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/debug");
    for name in names.iter().chain(&["Makefile"]) {
        let to = files.0.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(format!("{example}/{name}"), to).unwrap();
    }
    match built_guest(guest) {
        Some(built) => drop(fs::copy(built, files.0.path().join(guest)).unwrap()),
        None => {
            let built = run(Command::new("make").args(["-s", "-C", &folder, guest]).stdout(Stdio::piped()));
            assert_eq!(built.status, 0, "{}", built.stderr);
        }
    }
    folder
}

fn overwritten() {
    let files = Files::new();
    let folder = example(&files, &["over.c", "watch.gdb"], "over.elf");
    let (guest, script) = (format!("{folder}/over.elf"), format!("{folder}/watch.gdb"));
    let debugged = Debugged::start_at(files, "", &[&guest, "--mem", "16M"]);
    let seen = debugged.gdb(&[&format!("file {guest}"), &format!("source {script}")]);
    let parts = ["Old value = 42", "New value = 4", "fill (count=count@entry=5)", "in _start ()", "$1 = 4"];
    assert_order(&seen, &parts);
    assert_eq!(debugged.end().status, 0);
}

/// Does what the extension C/C++ of Visual Studio Code does with the configuration of the example.
fn visual_studio_code() {
    let files = Files::new();
    let folder = example(&files, &["guest.c", "gdbinit", ".vscode/launch.json"], "guest.elf");
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
