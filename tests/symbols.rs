//! Names of the places in a guest's code: the function and the line where it died, and its callers.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::{Arguments, Trial};
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, assert_error, on_both, plain_test, ran, run};

/// A guest that dies in a function that another one calls. `_start` has no caller.
const CRASH: &str = r#"
volatile int *const nowhere = (int *)0x4000000000;
volatile int sink;
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

/// A guest that calls an address that is not mapped.
const WRONG_CALL: &str = r#"
volatile int sink;
void (*volatile handler)(int) = (void (*)(int))0x4000000000;
__attribute__((noinline)) void dispatch(int value) {
    handler(value);
    sink = 2;
}
void _start(void) {
    dispatch(1);
    for (;;) __asm__ volatile("hlt");
}
"#;

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(on_both("a_death_has_its_function_line_and_callers", functions_and_lines));
    tests.extend(on_both("callers_are_found_without_frame_pointers", without_frame_pointers));
    tests.extend(on_both("a_call_of_a_wrong_address_names_the_caller", wrong_call));
    tests.extend(on_both("a_flat_binary_takes_its_names_from_another_file", flat_binary));
    tests.extend(on_both("symbols_of_another_build_are_not_used", another_build));
    tests.extend(on_both("a_guest_without_symbols_has_no_names", stripped));
    tests.push(plain_test("a_file_without_symbols_is_refused", refused));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Compiles a guest. Returns the path of the program.
fn guest(files: &Files, name: &str, source: &str, options: &[&str]) -> String {
    let source = files.write(&format!("{name}.c"), source.as_bytes());
    let program = files.0.path().join(format!("{name}.elf")).to_str().unwrap().to_string();
    let mut gcc = Command::new("gcc");
    gcc.args(["-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector"]);
    gcc.args([
        "-fcf-protection=none",
        "-mgeneral-regs-only",
        "-Wl,-Ttext-segment=0x10000",
        "-Wl,--build-id=none",
    ]);
    let built = run(gcc.args(options).arg(&source).arg("-o").arg(&program).stdout(Stdio::piped()));
    assert_eq!(built.status, 0, "{}", built.stderr);
    program
}

/// Runs a guest with 16 MiB, so that its addresses are in the plain map. It must die.
fn died(arguments: &[&str]) -> Ran {
    let died = ran(&[arguments, &["--mem", "16M"]].concat());
    assert_eq!(died.status, 112, "{}", died.stderr);
    died
}

/// The lines of the summary from that of the function on, up to the last exits.
fn places(ran: &Ran) -> Vec<String> {
    let lines = ran.stderr.lines().skip_while(|line| !line.starts_with("  function "));
    lines
        .take_while(|line| line.starts_with("  ") && !line.starts_with("  last exits"))
        .map(Into::into)
        .collect()
}

/// A line in the source that contains a text, from 1.
fn line_of(source: &str, text: &str) -> usize {
    source.lines().position(|line| line.contains(text)).unwrap() + 1
}

fn functions_and_lines() {
    let files = Files::new();
    let program = guest(
        &files,
        "crash",
        CRASH,
        &["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"],
    );
    let places = places(&died(&[&program]));
    let source = files.0.path().join("crash.c").to_str().unwrap().to_string();
    let (in_crash, in_compute, in_start) =
        (line_of(CRASH, "*nowhere ="), line_of(CRASH, "crash(value + 1)"), line_of(CRASH, "compute(41)"));
    assert!(places[0].starts_with("  function     crash+0x"), "{places:#?}");
    assert!(places[0].ends_with(&format!(" ({source}:{in_crash})")), "{places:#?}");
    assert_eq!(places[1], format!("  source       {in_crash} |     *nowhere = value;"));
    assert!(places[2].starts_with("  called from  compute+0x"), "{places:#?}");
    assert!(places[2].ends_with(&format!(" ({source}:{in_compute})")), "{places:#?}");
    assert!(places[3].starts_with("               _start+0x"), "{places:#?}");
    assert!(places[3].ends_with(&format!(" ({source}:{in_start})")), "{places:#?}");
    assert_eq!(places.len(), 4, "{places:#?}");
}

fn without_frame_pointers() {
    let files = Files::new();
    let options =
        ["-O1", "-fomit-frame-pointer", "-fasynchronous-unwind-tables", "-fno-optimize-sibling-calls"];
    let places = places(&died(&[&guest(&files, "crash", CRASH, &options)]));
    let names: Vec<_> = places.iter().map(|line| line[15..].split('+').next().unwrap()).collect();
    assert_eq!(names, ["crash", "compute", "_start"], "{places:#?}");
}

fn wrong_call() {
    let files = Files::new();
    let options = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"];
    let places = places(&died(&[&guest(&files, "wrong", WRONG_CALL, &options)]));
    assert!(
        places[0].starts_with("  function     none: 0x4000000000 is outside the functions of"),
        "{places:#?}"
    );
    assert!(places[1].starts_with("  called from  dispatch+0x"), "{places:#?}");
}

fn flat_binary() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1", "-fno-optimize-sibling-calls"]);
    let flat = files.0.path().join("crash.bin").to_str().unwrap().to_string();
    let mut objcopy = Command::new("objcopy");
    assert_eq!(run(objcopy.args(["-O", "binary", "--only-section=.text", &program, &flat])).status, 0);
    // The first function is not the entry, so the guest is entered where crash begins.
    let at = format!("{flat}@0x11000:64");
    let named = places(&died(&[&at, "--symbols", &program]));
    assert!(named[0].starts_with("  function     crash+0x"), "{named:#?}");
    assert!(places(&died(&[&at])).is_empty());
}

fn another_build() {
    let files = Files::new();
    let program = guest(&files, "crash", CRASH, &["-O1"]);
    let other = guest(&files, "null", WRONG_CALL, &["-O1"]);
    let died = died(&[&program, "--symbols", &other]);
    assert!(places(&died).is_empty(), "{}", died.stderr);
    assert!(
        died.stderr.contains("are not used, because the guest's code is not the code in it"),
        "{}",
        died.stderr
    );
}

fn stripped() {
    let files = Files::new();
    let died = died(&[&guest(&files, "crash", CRASH, &["-O1", "-s"])]);
    assert!(places(&died).is_empty() && !died.stderr.contains("symbols"), "{}", died.stderr);
}

fn refused() {
    let files = Files::new();
    let flat = files.write("flat", &[0xf4]);
    let with = |file: &str| ran(&[&flat, "--symbols", file]);
    assert_error(&with("/nowhere"), 110, "cannot read the symbol file /nowhere: No such file");
    assert_error(&with("/"), 116, "is not a regular file");
    assert_error(&with("/dev/zero"), 116, "is not a regular file");
    assert_error(&with(&files.write("text", b"hello")), 116, "is neither an ELF file nor a System.map");
    assert_error(&with(&files.write("cut", b"\x7fELF\x02\x01")), 116, "is not a sound ELF file");
    assert_error(&with(&guest(&files, "crash", CRASH, &["-s"])), 116, "has no symbols: link without -s");
}
