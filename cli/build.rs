//! Sets `cfg(has_kvm)`, and makes the program smaller where the linker and the C library allow it.

use std::env;
use std::process::Command;

#[path = "../hosts.rs"]
mod hosts;

fn main() {
    hosts::main();
    println!("cargo::rerun-if-changed=build.rs");
    if loads_packed_relocations() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// True if the program is built for this host, and its C library loads packed relocations (DT_RELR): glibc 2.36 and later.
/// They save 150 kB.
fn loads_packed_relocations() -> bool {
    if env::var("HOST") != env::var("TARGET") || env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return false;
    }
    let Ok(asked) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let answer = String::from_utf8_lossy(&asked.stdout);
    let version = answer.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    let numbers =
        version.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    numbers.is_some_and(|numbers| numbers >= (2, 36))
}
