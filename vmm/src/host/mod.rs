//! Host system calls that no crate wraps: kicking a vCPU out of the guest, signals that end the program, waiting for a
//! stream with a time limit, and the raw mode of the terminal. Also text that is safe to print, numbers in text,
//! and sorting.

// Imports nothing of this crate. All unsafe code for signals is here.
#![allow(unsafe_code)]

mod advice;
mod clock;
mod date;
mod escaper;
mod event;
mod identity;
mod interrupts;
mod kick;
mod kicker;
mod number;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(not(target_os = "linux"))]
#[path = "posix.rs"]
mod os;
#[cfg(all(test, target_os = "linux"))]
#[allow(dead_code, reason = "its own tests use a part of it")]
mod posix;
mod printable;
mod process;
mod samples;
mod sort;
mod stream;
pub(crate) mod terminal;
mod threads;
mod wait;
#[cfg(has_kvm)]
mod write_back;

pub use advice::{host_advice, is_shortage};
pub(crate) use clock::tsc;
pub use clock::{process_cpu_time, thread_cpu_time};
pub use date::utc;
pub(crate) use escaper::ControlEscaper;
pub(crate) use event::{borrow, signal};
pub(crate) use identity::User;
pub use interrupts::{catch_interrupts, interrupted};
pub(crate) use kick::{KickTimer, handle_kicks, with_kick_byte, with_kicks};
pub(crate) use kicker::{Kicker, REPEAT};
pub use number::{format_size, parse_number, parse_size};
pub(crate) use os::{EventFd, LARGE_PAGES, MERGE_PAGES, clear_pages, event, metadata};
pub use printable::{printable, printable_text};
pub(crate) use process::started;
pub use process::{prepare, stdout_was_closed, unprepare};
pub(crate) use samples::{SampleSlot, with_samples};
pub use sort::{sort_by, sort_by_key};
pub use stream::TimeoutWriter;
pub use terminal::{RawTerminal, restore as restore_terminal, terminal_width};
pub(crate) use threads::thread_started;
pub use threads::{ThreadKind, on_thread_start};
pub(crate) use wait::{ATOMIC, wait_any, wait_readable, wait_writable, write};
#[cfg(has_kvm)]
pub(crate) use write_back::{WriteBack, write_back};

use std::io;
use std::mem;
use std::ptr;

/// Installs a signal handler for the process. The handler does not restart interrupted system calls (no SA_RESTART). An
/// error is an errno.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> Result<(), i32> {
    handle_with(signal, handler, 0)
}

/// Installs a signal handler for the process, with flags of sigaction(2). An error is an errno.
fn handle_with(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> Result<(), i32> {
    // SAFETY: an all-zero sigaction is valid. The handlers of this folder use only atomics, a thread-local without a
    // destructor, and system calls that are allowed in handlers.
    let answer = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}
