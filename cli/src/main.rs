//! The `vmm` program: the command line over the library.
#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

mod args;
mod bench;
mod boot;
mod cli;
mod compare;
mod doctor;
mod grade;
mod guests;
mod measure;
mod report;
mod run;
mod say;
mod status;
mod summary;
mod target;

/// The C library calls this directly. Rust's own start reads `/proc/self/maps` to find the end of the stack, for a better
/// word on its overflow, which is a twentieth of a small guest's run; what else it does the library does
/// ([`vmm::host::prepare`]).
#[cfg(all(target_env = "gnu", not(test)))]
#[allow(
    unsafe_code,
    reason = "the name is the one that the C library calls, and this is the only one in the program"
)]
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    // As Rust's own start would.
    const PANICKED: i32 = 101;
    std::panic::catch_unwind(cli::main).map_or(PANICKED, i32::from)
}

#[cfg(not(all(target_env = "gnu", not(test))))]
fn main() -> std::process::ExitCode {
    cli::main().into()
}
