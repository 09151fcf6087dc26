//! Builds the library that is preloaded into observed programs: `OUT_DIR/preload.so`, which this package embeds.

use std::env;
use std::path::Path;
use std::process::Command;

/// No library and no start-up code, so that it loads into programs with any C library. Unwind tables, because a thread that is
/// cancelled in a system call unwinds through this code.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-ffreestanding",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fno-tree-loop-distribute-patterns",
    "-mgeneral-regs-only",
    "-fcf-protection=full",
    "-fasynchronous-unwind-tables",
    "-Wl,-z,now,-z,noexecstack,-z,max-page-size=4096,--hash-style=both,-s",
];

fn main() {
    println!("cargo::rerun-if-changed=preload");
    // The user's flags are for ordinary programs.
    let target = env::var("TARGET").unwrap_or_default();
    let for_target = [format!("CFLAGS_{target}"), format!("CFLAGS_{}", target.replace('-', "_"))];
    let general = ["CFLAGS", "HOST_CFLAGS", "TARGET_CFLAGS"];
    for variable in general.into_iter().chain(for_target.iter().map(String::as_str)) {
        // SAFETY: no other thread runs yet.
        #[allow(unsafe_code)]
        unsafe {
            env::remove_var(variable);
        }
    }
    let library = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("preload.so");
    let compiler = cc::Build::new().get_compiler();
    let mut command = Command::new(compiler.path());
    if env::var_os("GUEST_DENY_WARNINGS").is_some() {
        command.arg("-Werror");
    }
    command.args(FLAGS).arg("preload/preload.c").arg("-o").arg(&library);
    let built = command.status().is_ok_and(|status| status.success());
    assert!(built, "the preloaded library cannot be built: {command:?} failed; install gcc with binutils");
}
