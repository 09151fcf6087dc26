//! Advice for failed host calls.

use std::io;

/// What to do where a call to the host fails, if that is known.
pub fn host_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ": allow more open files (ulimit -n)",
        Some(libc::EAGAIN) => ": allow more threads and signals (ulimit -u, ulimit -i)",
        Some(libc::ENOMEM) => ": free memory, or allow more (ulimit -v)",
        _ => "",
    }
}
