//! `--core`: the ELF core of a guest, read by gdb.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, assert_error, on_both, plain_test, ran, run, vmm};

/// A guest that dies in a function that another one calls.
const CRASH: &str = r#"
volatile int *const nowhere = (int *)0x4000000000;
volatile int sink = 4711;
char message[] = "found in the core";
__attribute__((noinline)) void crash(int value) {
    *nowhere = value;
    sink = 1;
}
__attribute__((noinline)) int compute(int value) {
    crash(value + 1);
    return sink;
}
void _start(void) {
    sink = compute(41);
    for (;;) __asm__ volatile("hlt");
}
"#;

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(on_both("gdb_shows_registers_memory_and_callers", long_mode));
    tests.extend(on_both("gdb_shows_a_32_bit_guest", protected_mode));
    tests.extend(on_both("a_real_mode_guest_has_linear_addresses", real_mode));
    tests.extend(on_both("a_core_has_the_registers_of_all_vcpus", several_vcpus));
    tests.extend(on_both("a_guest_that_ends_by_itself_leaves_no_core", no_core));
    tests.extend(on_both("a_core_is_written_at_a_signal", at_a_signal));
    tests.push(plain_test("no_two_results_go_to_one_file", clashes));
    tests.extend(on_both("drgn_finds_the_note_of_a_kernel", note));
    tests.push(plain_test("a_core_that_cannot_be_written_is_an_error", unwritable));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// True if gdb is installed. With REQUIRE_GDB=1 in the environment, it must be.
fn has_gdb() -> bool {
    let found = Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_ok();
    let required = std::env::var("REQUIRE_GDB").is_ok_and(|value| value == "1");
    assert!(found || !required, "REQUIRE_GDB=1, and gdb is not installed");
    if !found {
        eprintln!("a part of the test is left out, because gdb is not installed");
    }
    found
}

/// The output of gdb for these commands. Empty without gdb.
fn gdb(files: &[&str], commands: &[&str]) -> String {
    if !has_gdb() {
        return String::new();
    }
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch"]).stdout(Stdio::piped()).env("DEBUGINFOD_URLS", "");
    for command in commands {
        gdb.args(["-ex", command]);
    }
    run(gdb.args(files)).text()
}

/// Runs a guest with `--core`. Returns the run and the path of the core.
fn with_core(files: &Files, arguments: &[&str]) -> (Ran, String) {
    let core = files.0.path().join("core").to_str().unwrap().to_string();
    (ran(&[arguments, &["--core", &core]].concat()), core)
}

/// Checks that gdb has said all this, if it is installed.
fn assert_says(said: &str, texts: &[&str]) {
    let missing: Vec<_> = texts.iter().filter(|text| !said.is_empty() && !said.contains(**text)).collect();
    assert!(missing.is_empty(), "{missing:?}: {said}");
}

fn long_mode() {
    let files = Files::new();
    let source = files.write("crash.c", CRASH.as_bytes());
    let program = files.0.path().join("crash.elf").to_str().unwrap().to_string();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic"]);
    gcc.args(["-fno-stack-protector", "-fcf-protection=none", "-mgeneral-regs-only"]);
    gcc.args(["-fno-optimize-sibling-calls", "-Wl,-Ttext-segment=0x10000", "-o", &program, &source]);
    assert!(gcc.status().unwrap().success());
    let (died, core) = with_core(&files, &[&program, "--mem", "16M"]);
    assert_eq!(died.status, 112, "{}", died.stderr);
    assert!(died.stderr.contains("vmm: wrote the core, "), "{}", died.stderr);
    let said = gdb(
        &[&program, &core],
        &["bt", "info registers rip rdi", "p sink", "x/s message", "x/2xb 0x8000000000011000", "x/i $pc"],
    );
    assert_says(
        &said,
        &[
            "Program terminated with signal SIGSEGV",
            "#0  crash (value=value@entry=42)",
            "in compute (value=value@entry=41)",
            "in _start ()",
            "rdi            0x2a",
            "= 4711",
            "\"found in the core\"",
            // By physical address: mov eax, edi
            "0x8000000000011000:\t0x89\t0xf8",
            "=> 0x11002 <crash+2>:\tmovabs %eax,0x4000000000",
        ],
    );
    let metadata = fs::metadata(&core).unwrap();
    assert!(metadata.len() > 16 << 20 && metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
}

fn protected_mode() {
    let files = Files::new();
    // mov eax, 0x1234; mov ebx, 0x5678; ud2
    let code = [0xb8, 0x34, 0x12, 0, 0, 0xbb, 0x78, 0x56, 0, 0, 0x0f, 0x0b];
    let guest = format!("{}@0x1000:32", files.write("guest.bin", &code));
    let (died, core) = with_core(&files, &[&guest]);
    assert_eq!(died.status, 112, "{}", died.stderr);
    let said = gdb(&["-c", &core], &["info registers eax ebx eip", "x/i $pc", "x/2xb 0x1000"]);
    assert_says(&said, &["0x1234", "0x5678", "0x100a", "ud2", "0x1000:\t0xb8\t0x34"]);
}

fn real_mode() {
    let files = Files::new();
    // mov ax, 0x1234; jmp $
    let guest = files.write("guest.bin", &[0xb8, 0x34, 0x12, 0xeb, 0xfe]);
    let (ended, core) = with_core(&files, &[&format!("{guest}@0x100:0x0"), "--timeout", "0.1"]);
    assert_eq!(ended.status, 114, "{}", ended.stderr);
    let said = gdb(&["-c", &core], &["set architecture i8086", "info registers eax eip cs", "x/i $pc"]);
    assert_says(&said, &["SIGALRM", "0x1234", "0x1003", "0x100", "jmp    0x1003"]);
}

fn several_vcpus() {
    let files = Files::new();
    // mov ebx, edi; test edi, edi; jz $; ud2
    let code = [0x89, 0xfb, 0x85, 0xff, 0x74, 0xfe, 0x0f, 0x0b];
    let guest = format!("{}@0x1000:64", files.write("guest.bin", &code));
    let (died, core) = with_core(&files, &[&guest, "--cpus", "2"]);
    assert_eq!(died.status, 112, "{}", died.stderr);
    let said = gdb(&["-c", &core], &["info threads", "thread apply all info registers rbx rip"]);
    assert_says(&said, &["LWP 1", "* 1    LWP 2", "rbx            0x1", "rip            0x1006"]);
}

/// The note of a Linux kernel, as far as drgn needs it.
const NOTE: &str = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82000000\n\
                    SYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=0\nKERNELOFFSET=0\n";

/// A Python that has drgn: that of `make drgn`, or of the system. With REQUIRE_DRGN=1 in the environment, there must be one.
fn python_with_drgn() -> Option<String> {
    let own = Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("../drgn/bin/python");
    let has_drgn = |python: &str| {
        let mut command = Command::new(python);
        command.args(["-c", "import drgn"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = [own.to_str().unwrap(), "python3"].into_iter().find(|python| has_drgn(python));
    let required = std::env::var("REQUIRE_DRGN").is_ok_and(|value| value == "1");
    assert!(found.is_some() || !required, "REQUIRE_DRGN=1, and Python has no drgn");
    if found.is_none() {
        eprintln!("a part of the test is left out, because Python has no drgn: make drgn");
    }
    found.map(Into::into)
}

fn note() {
    let files = Files::new();
    // ud2, and the note in the next page.
    let mut code = vec![0x0f, 0x0b];
    code.resize(0x1000, 0);
    code.extend(NOTE.as_bytes());
    let guest = format!("{}@0x1000:64", files.write("guest.bin", &code));
    let (died, core) = with_core(&files, &[&guest, "--cpus", "2"]);
    assert_eq!(died.status, 112, "{}", died.stderr);
    assert!(died.stderr.contains("`crash VMLINUX "), "{}", died.stderr);
    let bytes = fs::read(&core).unwrap();
    let note = [b"VMCOREINFO\0\0", NOTE.as_bytes()].concat();
    assert!(bytes.windows(note.len()).any(|window| window == note), "the core has no note");
    let script = "import drgn, sys\n\
                  prog = drgn.Program()\n\
                  prog.set_core_dump(sys.argv[1])\n\
                  print(prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL)\n\
                  print(prog['VMCOREINFO'].string_().decode())\n\
                  print(prog.read(0x1000, 2, True).hex())\n";
    if let Some(python) = python_with_drgn() {
        let mut drgn = Command::new(python);
        let said = run(drgn.args(["-c", script, &core]).stdout(Stdio::piped()));
        let text = said.text();
        assert_says(&text, &["IS_LINUX_KERNEL", "OSRELEASE=6.1.0-test\nPAGESIZE", "0f0b"]);
        assert!(!text.is_empty(), "{}", said.stderr);
    }
}

fn at_a_signal() {
    let files = Files::new();
    let guest = format!("{}@0x1000:64", files.write("guest.bin", &[0xeb, 0xfe]));
    let core = files.0.path().join("core");
    let mut child = vmm(&["run", &guest, "--timeout", "60", "--core", core.to_str().unwrap()]);
    let child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    support::wait_for_handlers(&child);
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(117), "{said}");
    assert!(said.contains("wrote the core, "), "{said}");
    assert!(fs::read(&core).unwrap().starts_with(b"\x7fELF"));
}

fn clashes() {
    let files = Files::new();
    let guest = format!("{}@0x1000:64", files.write("guest.bin", &[0xf4]));
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let (core, dump) = (path("q"), format!("0+7={}", path("q")));
    let svg = format!("svg={core}");
    let (live, step) = (path("q.3"), ["--step", "--step-file", &core]);
    let core = ["--core", &core];
    for (one, other, message) in [
        (&core[..], &["--dump-memory", &dump][..], "--dump-memory and --core write the same file"),
        (&core, &["--trace", core[1]], "--core and --trace write the same file"),
        (&core, &["--sample", "--sample-file", &svg], "--core and --sample-file write the same file"),
        (&core, &step, "--core and --step-file write the same file"),
        (&step, &["--trace", core[1]], "--step-file and --trace write the same file"),
        (&step, &["--dump-memory", &dump], "--dump-memory and --step-file write the same file"),
        (&core, &["--trace", &live], "at Ctrl-A c: give two different names"),
    ] {
        let refused = ran(&[&[&guest, "--vcpu", "soft"], one, other].concat());
        assert_error(&refused, 110, message);
    }
}

fn no_core() {
    let files = Files::new();
    let path = files.write("core", b"an earlier one");
    let ended = ran(&["real16-42", "--core", &path]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("because the guest ended by itself"), "{}", ended.stderr);
    assert_eq!(fs::read(&path).unwrap(), b"an earlier one");
    assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 1, "a temporary file is left");
}

fn unwritable() {
    let files = Files::new();
    let guest = format!("{}@0x1000:64", files.write("guest.bin", &[0x0f, 0x0b]));
    let full = ran(&[&guest, "--vcpu", "soft", "--core", "/dev/full"]);
    assert_eq!(full.status, 112, "{}", full.stderr);
    let text = "cannot write /dev/full: No space left on device (os error 28): free some space, or give another file; the core is not saved, and an existing file is unchanged";
    assert!(full.stderr.contains(text), "{}", full.stderr);
    // An expected end of the run does not hide a core that is missing.
    let expected =
        ran(&[&guest, "--vcpu", "soft", "--core", "/dev/full", "--expect", "end=crash", "--quiet"]);
    assert_eq!(expected.status, 115, "{}", expected.stderr);
    let input = guest.split('@').next().unwrap();
    let own = ran(&[&guest, "--vcpu", "soft", "--core", input]);
    assert_eq!(own.status, 110, "{}", own.stderr);
    assert!(own.stderr.contains("--core"), "{}", own.stderr);
}
