//! Makes the program smaller with options of the linker that work on this host.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// Options of the linker that make the program smaller, and change nothing else.
const OPTIONS: [&str; 2] = [
    // Packed relocations (DT_RELR), which save 150 kB. glibc loads them from version 2.36 on.
    "-Wl,-z,pack-relative-relocs",
    // Functions with the same code are one, which saves 50 kB. lld knows this option, and ld does not.
    "-Wl,--icf=all",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // On another host, the program of the test could not run.
    if env::var("HOST") != env::var("TARGET") || env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    for option in OPTIONS.iter().filter(|option| works(option)) {
        println!("cargo::rustc-link-arg-bins={option}");
    }
}

/// True if a program that is linked with this option runs.
fn works(option: &str) -> bool {
    let folder = env::var("OUT_DIR").unwrap_or_default();
    let (source, program) = (Path::new(&folder).join("empty.rs"), Path::new(&folder).join("empty"));
    if std::fs::write(&source, "fn main() {}").is_err() {
        return false;
    }
    let mut compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        compiler.arg("-C").arg(argument);
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    compiler.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    compiler.arg("-C").arg(format!("link-arg={option}")).arg("-o").arg(&program).arg(&source);
    let succeeds = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    succeeds(&mut compiler) && succeeds(&mut Command::new(&program))
}
