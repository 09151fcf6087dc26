//! The signal that kicks a thread, and the handle that sends it.

use std::time::Duration;

/// The interval at which kicks are repeated. A kick has no effect if it comes just before the thread blocks.
pub(crate) const REPEAT: Duration = Duration::from_millis(10);

/// The signal of a kick. It is not a real-time signal, because those are queued, and are lost if the user's quota for
/// the queue (RLIMIT_SIGPENDING) is used up.
pub(super) const KICK: libc::c_int = libc::SIGUSR1;

/// A handle that kicks one thread: it makes the thread's vCPU leave the guest, or the thread's blocked system call
/// return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kicker {
    pub(super) process: libc::pid_t,
    pub(super) thread: libc::pid_t,
}

impl Kicker {
    /// The kicker of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        // SAFETY: the call takes no arguments.
        Self { process: unsafe { libc::getpid() }, thread: thread_id() }
    }

    /// Sends one kick. The thread's KVM_RUN returns, now or at the next entry. For other blocking calls the caller must
    /// repeat the kick, because the thread may enter the call just after it.
    pub(crate) fn kick(&self) {
        // SAFETY: the call takes only numbers. It fails if the thread has ended, which does not matter.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, KICK) };
    }
}

/// The thread ID of the calling thread. This is a direct system call, because in a static program the wrapper of the C
/// library may be missing: Rust's standard library refers to it weakly.
pub(super) fn thread_id() -> libc::pid_t {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}
