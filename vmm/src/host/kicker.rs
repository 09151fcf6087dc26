//! The signal that kicks a thread.

use std::time::Duration;

/// Whoever needs a kick to arrive repeats it at this interval, in case the thread was somewhere else.
pub(crate) const REPEAT: Duration = Duration::from_millis(10);

/// The signal of a kick. Not a real-time signal: those are queued, and lost where the user's quota for the
/// queue (RLIMIT_SIGPENDING) is used up.
pub(super) const KICK: libc::c_int = libc::SIGUSR1;

/// Kicks a thread: its vCPU out of the guest, or itself out of a system call that blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kicker {
    pub(super) process: libc::pid_t,
    pub(super) thread: libc::pid_t,
}

impl Kicker {
    /// A kicker of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        // SAFETY: the call takes nothing.
        Self { process: unsafe { libc::getpid() }, thread: thread_id() }
    }

    /// Makes the thread's KVM_RUN return, now or when it is next entered. Once: whoever needs to be sure
    /// repeats it, since a blocking call other than KVM_RUN may be entered right after.
    pub(crate) fn kick(&self) {
        // SAFETY: the call takes numbers only; a thread that has gone is an error that does not matter.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, KICK) };
    }
}

/// The calling thread's number. A plain system call: in a static program the C library's wrapper may be
/// missing, since Rust's standard library refers to it weakly.
pub(super) fn thread_id() -> libc::pid_t {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}
