//! The start of the program: what the dynamic loader has to load.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, ExitCode, Stdio};
use support::{plain_test, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![plain_test("the_program_needs_no_library_but_the_c_library", libraries)];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Each further library makes every start slower. A use of `f64::log10` would bring libm.so.6 back, and a program that does
/// not name GCC's archive libgcc_s.so.1. Without optimisation, code that is never called still needs libm.so.6.
fn libraries() {
    let mut readelf = Command::new("readelf");
    readelf.args(["-d", env!("CARGO_BIN_EXE_vmm")]).env("LC_ALL", "C").stdout(Stdio::piped());
    let dynamic = run(&mut readelf);
    assert_eq!(dynamic.status, 0, "{}", dynamic.stderr);
    let text = dynamic.text();
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let names: Vec<_> = needed.filter_map(|line| line.split_once('[')?.1.strip_suffix(']')).collect();
    assert!(!names.is_empty(), "{text}");
    let optimised = !cfg!(debug_assertions);
    let allowed = |name: &str| {
        name.starts_with("libc.so")
            || name.starts_with("ld-linux")
            || (!optimised && name.starts_with("libm.so"))
    };
    assert!(names.iter().all(|name| allowed(name)), "{names:?}");
}
