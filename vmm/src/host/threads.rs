//! The kinds of threads that a run starts, for a program that wants to take rights away from each of them.

use std::sync::OnceLock;

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// It runs a vCPU. The first vCPU runs on the thread that called [`Machine::run`](crate::Machine::run).
    Vcpu,
    /// It runs a device.
    Device,
    /// It serves the host's terminal.
    Console,
    /// It serves a debugger.
    Debugger,
}

static STARTED: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Lets each thread that a run starts from now on call this function first. Only the first call has an effect.
pub fn on_thread_start(started: fn(ThreadKind)) {
    STARTED.get_or_init(|| started);
}

/// Runs on a new thread.
pub(crate) fn thread_started(kind: ThreadKind) {
    if let Some(started) = STARTED.get() {
        started(kind);
    }
}
