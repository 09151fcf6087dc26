//! The program `vmm`: the entry point. The command line is in the package `commands`.
#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

// Takes the functions that unwind a panic from GCC's archive, which every gcc installs, and not from libgcc_s.so.1. To load
// that library takes a fourteenth of a small guest's run. A static program uses the archive anyway.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(test)))]
#[allow(unsafe_code, reason = "the block only names the archive, and declares nothing")]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

/// Makes polling the default SIMVIRTIO transport: the assignment's USE_POOLING. A feature of this package alone, so that a build with
/// it compiles no other package again.
const POLLS: bool = cfg!(feature = "polling");

/// The entry point, which the C library calls directly. Rust's own entry point reads `/proc/self/maps` to find the end
/// of the stack, for a better message about a stack overflow. This takes a twentieth of a small guest's run. The library
/// does the rest of its work ([`vmm::host::prepare`]).
#[cfg(all(target_env = "gnu", not(test)))]
#[allow(
    unsafe_code,
    reason = "the C library calls this name, and the program has no other function of this name"
)]
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    // The status that Rust's own entry point returns after a panic.
    const PANICKED: i32 = 101;
    std::panic::catch_unwind(|| commands::main(POLLS)).map_or(PANICKED, i32::from)
}

#[cfg(not(all(target_env = "gnu", not(test))))]
fn main() -> std::process::ExitCode {
    commands::main(POLLS).into()
}
