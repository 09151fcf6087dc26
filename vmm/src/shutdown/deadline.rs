//! The deadline of a run.

use crate::exit::Stop;
use crate::host;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of a run: a point in time, or a request. All clones share the same state.
///
/// Time in which the guest waits for input does not count: it moves the deadline.
#[derive(Clone, Debug, Default)]
pub struct Deadline {
    end: Option<Instant>,
    /// The time that the guest waited for input, in nanoseconds.
    waited: Arc<AtomicU64>,
    stop_requested: Arc<AtomicBool>,
    /// Set if pending output is to be dropped.
    abandoned: Arc<AtomicBool>,
}

impl Deadline {
    /// Creates a deadline at this duration from now. With `None` it never passes.
    pub fn after(timeout: Option<Duration>) -> Self {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { end, ..Self::default() }
    }

    /// Requests the end of the run. A vCPU that runs sees the request only after a kick.
    pub fn request_stop(&self) {
        self.stop_requested.store(true, Ordering::Release);
    }

    /// True if [`Self::request_stop`] was called, or a signal asked the program to end.
    pub fn is_asked(&self) -> bool {
        self.stop_requested.load(Ordering::Acquire) || host::interrupted()
    }

    /// Requests the end of the run, and drops output that is still pending.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.request_stop();
    }

    /// The reason to drop pending output now, or `None` to continue writing it. A requested stop alone is not a reason:
    /// the run may have ended while its last output is still on its way to a slow reader.
    pub fn must_give_up(&self) -> Option<Stop> {
        if self.abandoned.load(Ordering::Acquire) || host::interrupted() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// The reason to end the run now, or `None` to continue. Threads that block check this when a signal wakes them.
    pub fn must_end(&self) -> Option<Stop> {
        if self.is_asked() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// True if the point in time has passed.
    pub fn has_passed(&self) -> bool {
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed));
        self.end.and_then(|end| end.checked_add(waited)).is_some_and(|end| Instant::now() >= end)
    }

    /// Moves the deadline by the time since `start`, in which the guest waited for input.
    pub(crate) fn extend_by_wait_since(&self, start: Instant) {
        let waited = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_input_moves_the_deadline() {
        let deadline = Deadline::after(Some(Duration::from_millis(20)));
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(30));
        deadline.extend_by_wait_since(start);
        assert!(!deadline.clone().has_passed());
        std::thread::sleep(Duration::from_millis(30));
        assert!(deadline.has_passed());
        assert!(!Deadline::after(None).has_passed());
    }
}
