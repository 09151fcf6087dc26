//! Helpers of the tests of `vmm grade --vmm`: the VMM in C (`so2_vmm.c`), and its grade.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part")]

use super::support::{Files, Ran, run};
use std::collections::HashMap;
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

pub const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// The folder with the programs of a test.
static PROGRAMS: OnceLock<Files> = OnceLock::new();

/// Runs the tests, and removes the programs.
pub fn main(tests: Vec<libtest_mimic::Trial>) -> ExitCode {
    let conclusion = libtest_mimic::run(&crate::support::arguments(), tests);
    remove_programs();
    conclusion.exit_code()
}

/// Removes the programs of a test.
pub fn remove_programs() {
    if let Some(programs) = PROGRAMS.get() {
        let _ = fs::remove_dir_all(programs.0.path());
    }
}

pub fn source() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/so2_vmm.c").into()
}

/// Compiles the VMM with these options, once. Returns its path.
pub fn compiled(options: &str) -> String {
    static COMPILED: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_default();
    let number = compiled.len();
    let compile = || {
        let program = PROGRAMS.get_or_init(Files::new).0.path().join(format!("so2-vmm-{number}"));
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-pthread", "-o"]).arg(&program).arg(source());
        gcc.args(options.split_whitespace());
        assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles the VMM with {options}");
        program.to_str().unwrap().into()
    };
    compiled.entry(options.into()).or_insert_with(compile).clone()
}

pub fn grade(arguments: &[&str]) -> Ran {
    run(Command::new(VMM).arg("grade").args(arguments).stdout(Stdio::piped()).env_remove("RUST_LOG"))
}

/// Grades a VMM. Returns the points of the five tasks, and the text.
pub fn points(arguments: &[&str]) -> ([u32; 5], String) {
    let ran = grade(arguments);
    let text = ran.text();
    let mut lines: Vec<(u32, u32)> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with(['+', '-']))
        .map(|line| {
            let (earned, of) = line.split_once('/').unwrap_or_else(|| panic!("{line}: {}", ran.stderr));
            (earned.trim().parse().unwrap(), of.split(' ').next().unwrap().parse().unwrap())
        })
        .collect();
    let sum = lines.pop().unwrap_or_else(|| panic!("no grade: {}", ran.stderr));
    let earned: Vec<_> = lines.iter().map(|(earned, _)| *earned).collect();
    assert_eq!(sum, (earned.iter().sum(), 100), "{text}");
    assert_eq!(lines.iter().map(|(_, of)| *of).collect::<Vec<_>>(), [30, 20, 30, 10, 10], "{text}");
    assert_eq!(ran.status, if sum.0 == 100 { 0 } else { 111 }, "{text}");
    // Nothing is random with the program's own guests.
    assert_ne!(ran.stderr.contains("--seed "), arguments.contains(&"--own-guests"), "{}", ran.stderr);
    (earned.try_into().unwrap(), text)
}

pub const ALL: [u32; 5] = [30, 20, 30, 10, 10];

/// True if a process runs this program.
pub fn running(program: &str) -> bool {
    let lines = fs::read_dir("/proc").unwrap().flatten().map(|entry| fs::read(entry.path().join("cmdline")));
    lines.flatten().any(|line| line.starts_with(program.as_bytes()))
}
