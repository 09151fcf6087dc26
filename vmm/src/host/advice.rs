//! Advice for failed system calls.

use std::io;

/// True if the host lacks a resource for a system call: file descriptors, memory, threads or locks. The file or the
/// option of such a call is not to blame.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOBUFS | libc::ENOLCK)
    ) || error.kind() == io::ErrorKind::OutOfMemory
}

/// The advice for an error of a system call, to be appended to the message. Empty for an error without advice.
pub fn host_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ": allow more open files (ulimit -n)",
        Some(libc::EAGAIN) => ": allow more threads, signals or memory (ulimit -u, -i, -v)",
        Some(libc::ENOMEM) => ": free memory, or allow more (ulimit -v)",
        _ => "",
    }
}
