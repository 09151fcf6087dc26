//! The signal that kicks a thread, and the handle that sends it.

use super::kick::is_kicked;
use super::os::{ThreadId, send_signal, thread_id};
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
    pub(super) thread: ThreadId,
}

impl Kicker {
    /// The kicker of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        // Some systems allocate a thread-local at its first access, which must not happen in the handler of a kick.
        is_kicked();
        // SAFETY: the call takes no arguments.
        Self { process: unsafe { libc::getpid() }, thread: thread_id() }
    }

    /// Sends one kick. The thread's KVM_RUN returns, now or at the next entry. For other blocking calls the caller must
    /// repeat the kick, because the thread may enter the call just after it.
    pub(crate) fn kick(&self) {
        self.send(KICK);
    }

    /// Sends a signal to the thread.
    pub(super) fn send(&self, signal: libc::c_int) {
        send_signal(self.process, self.thread, signal);
    }
}
