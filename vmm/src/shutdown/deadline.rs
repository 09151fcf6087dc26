//! The deadline of a run.

use crate::exit::Stop;
use crate::host;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When a run must have ended: its time, or as soon as somebody asks for it. Clones are the same deadline.
///
/// Time in which the guest waits for its input does not count: it moves the deadline on.
#[derive(Clone, Debug, Default)]
pub struct Deadline {
    end: Option<Instant>,
    waited: Arc<AtomicU64>,
    asked: Arc<AtomicBool>,
    abandoned: Arc<AtomicBool>,
}

impl Deadline {
    /// A deadline this long from now; none for `None`.
    pub fn after(timeout: Option<Duration>) -> Self {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { end, ..Self::default() }
    }

    /// What is set by whoever wants the run to end, before he kicks the vCPUs.
    pub fn asked(&self) -> &Arc<AtomicBool> {
        &self.asked
    }

    /// Whether somebody has asked for the end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) || host::interrupted()
    }

    /// Asks for the end, and for no patience with what is still on its way.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.asked.store(true, Ordering::Release);
    }

    /// Why text that nobody takes is to be given up now, if it is. That the run must end is no reason: it may be over,
    /// with its last words on their way to a slow reader.
    pub fn must_give_up(&self) -> Option<Stop> {
        if self.abandoned.load(Ordering::Acquire) || host::interrupted() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// Why the run must end now, if it must: whoever blocks looks at this when a signal wakes him.
    pub fn must_end(&self) -> Option<Stop> {
        if self.is_asked() {
            return Some(Stop::Interrupted);
        }
        self.has_passed().then_some(Stop::Timeout)
    }

    /// Whether the time is up.
    pub fn has_passed(&self) -> bool {
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed));
        self.end.and_then(|end| end.checked_add(waited)).is_some_and(|end| Instant::now() >= end)
    }

    /// Moves the deadline on by the time since `start`, in which the guest waited for its input.
    pub(crate) fn extend_by_wait_since(&self, start: Instant) {
        let waited = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_input_moves_the_deadline_on() {
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
