//! Advice for failed system calls.

use std::io;

/// The advice for an error of a system call, to be appended to the message. Empty for an error without advice.
pub fn host_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ": allow more open files (ulimit -n)",
        Some(libc::EAGAIN) => ": allow more threads and signals (ulimit -u, ulimit -i)",
        Some(libc::ENOMEM) => ": free memory, or allow more (ulimit -v)",
        _ => "",
    }
}
