//! The system calls of Linux that other systems do not have. `posix.rs` has their counterparts for those.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicI32;
use std::time::Duration;
use std::{io, mem, ptr};

pub use vmm_sys_util::eventfd::EventFd;

/// Creates a non-blocking event descriptor (eventfd).
///
/// # Errors
/// The host has no file descriptor left.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// The number of a thread.
pub(super) type ThreadId = libc::pid_t;
/// A [`ThreadId`] that a signal handler may read. 0 is no thread.
pub(super) type AtomicThreadId = AtomicI32;

/// The number of the calling thread. This is a direct system call, because in a static program the wrapper of the C
/// library may be missing: Rust's standard library refers to it weakly.
pub(super) fn thread_id() -> ThreadId {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}

/// Sends a signal to a thread of `process`, which is this one. Allowed in a signal handler.
pub(super) fn send_signal(process: libc::pid_t, thread: ThreadId, signal: libc::c_int) {
    // SAFETY: the call takes only numbers. It fails if the thread has ended, which does not matter.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
}

/// A timer of the kernel that sends a signal to the thread that created it.
#[derive(Debug)]
pub(super) struct Timer(libc::timer_t);

// SAFETY: the kernel's timers belong to the process, and any of its threads may set or delete one.
unsafe impl Send for Timer {}

impl Timer {
    /// Creates a timer that is not set.
    ///
    /// # Errors
    /// The host has no timer left.
    pub(super) fn of_this_thread(signal: libc::c_int) -> io::Result<Self> {
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: an all-zero sigevent is valid. The signal goes to a thread of this process.
        let answer = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = thread_id();
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        if answer == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets the timer, or stops it if `after` is zero.
    ///
    /// # Errors
    /// The host refused.
    pub(super) fn set(&self, after: Duration, repeat: Duration) -> io::Result<()> {
        let setting = libc::itimerspec { it_value: timespec(after), it_interval: timespec(repeat) };
        // SAFETY: the timer exists as long as `self`, and the setting outlives the call.
        match unsafe { libc::timer_settime(self.0, 0, &setting, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: `of_this_thread` created the timer, and it is deleted once. A signal that is still queued finds no
        // vCPU.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Converts a duration. A duration that is too long becomes the longest one.
fn timespec(duration: Duration) -> libc::timespec {
    let tv_sec = libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

/// Calls ppoll(2), and returns its result: the number of `fds` that are ready, 0 after the timeout, or -1.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> libc::c_int {
    let timeout = timeout.map(timespec);
    let limit = timeout.as_ref().map_or(ptr::null(), |limit| &raw const *limit);
    // SAFETY: the entries are those of a slice, and the time is null or outlives the call.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, ptr::null()) }
}

/// The metadata of a file that must exist. Neither waits for the writer of a pipe nor opens a device (O_PATH). A failed
/// `fs::metadata` would take two system calls.
///
/// # Errors
/// There is no such file, or its folder cannot be searched.
pub(crate) fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    File::options().read(true).custom_flags(libc::O_PATH).open(path)?.metadata()
}

/// The advice to use large pages.
pub(crate) const LARGE_PAGES: Option<libc::c_int> = Some(libc::MADV_HUGEPAGE);
/// The advice that pages may be merged with equal ones.
pub(crate) const MERGE_PAGES: Option<libc::c_int> = Some(libc::MADV_MERGEABLE);

/// Fills a range of private, anonymous memory with zeroes, and returns its pages to the host (MADV_DONTNEED).
///
/// # Errors
/// The host refused, for example because the memory is locked.
///
/// # Safety
/// The range is a part of one such mapping, and there are no references into it.
pub(crate) unsafe fn clear_pages(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller promises it.
    match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_duration_is_a_timespec() {
        assert_eq!(timespec(Duration::MAX).tv_sec, libc::time_t::MAX);
    }
}
