//! The deadline of a run.

use crate::exit::Stop;
use crate::host;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of a run: a point in time, or a request. All clones share the same state.
///
/// Time in which the guest waits for input does not count: it moves the deadline. Nothing moves the wall-clock limit, which
/// a deadline can have in addition.
#[derive(Clone, Debug, Default)]
pub struct Deadline {
    /// The limit: its point in time, and its length.
    end: Option<(Instant, Duration)>,
    /// The wall-clock limit: its point in time, and its length.
    wall: Option<(Instant, Duration)>,
    /// The time that the guest waited for input, in nanoseconds.
    waited: Arc<AtomicU64>,
    stop_requested: Arc<AtomicBool>,
    /// Set if pending output is to be dropped.
    abandoned: Arc<AtomicBool>,
    /// Set while other vCPUs share the thread, so that a wait has to give way to them.
    shares_thread: Arc<AtomicBool>,
    /// The wait that gave way: [`WAITS_FOR_READER`] or [`WAITS_FOR_INPUT`], or 0.
    gave_way: Arc<AtomicU8>,
}

/// The values of `Deadline::gave_way`. The greater one counts.
const WAITS_FOR_READER: u8 = 1;
const WAITS_FOR_INPUT: u8 = 2;

/// A wait that gave way to other vCPUs of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For the reader of the output. The text is kept.
    Reader,
    /// For input. The exit must be handled again.
    Input,
}

impl Deadline {
    /// Creates a deadline at this duration from now. With `None` it never passes.
    pub fn after(timeout: Option<Duration>) -> Self {
        let end = timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout)));
        Self { end, ..Self::default() }
    }

    /// Adds a wall-clock limit at this duration from now; `None` adds nothing.
    #[must_use]
    pub fn with_wall_limit(self, limit: Option<Duration>) -> Self {
        let wall = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        Self { wall, ..self }
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
        self.passed()
    }

    /// The reason to end the run now, or `None` to continue. Threads that block check this when a signal wakes them.
    pub fn must_end(&self) -> Option<Stop> {
        if self.is_asked() {
            return Some(Stop::Interrupted);
        }
        self.passed()
    }

    /// The reason to end a wait for input now, or `None` to continue: time in which the guest waits counts only towards the
    /// wall-clock limit.
    pub(crate) fn must_end_wait(&self) -> Option<Stop> {
        if self.is_asked() {
            return Some(Stop::Interrupted);
        }
        self.wall_passed(self.wall.map(|_| Instant::now())?)
    }

    /// True if the point in time or the wall-clock limit has passed.
    pub fn has_passed(&self) -> bool {
        self.passed().is_some()
    }

    /// The limit that has passed, if one has.
    fn passed(&self) -> Option<Stop> {
        let now = Instant::now();
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed));
        let end = self.end.and_then(|(end, limit)| Some((end.checked_add(waited)?, limit)));
        if let Some((_, limit)) = end.filter(|(end, _)| now >= *end) {
            return Some(Stop::Timeout(limit));
        }
        self.wall_passed(now)
    }

    fn wall_passed(&self, now: Instant) -> Option<Stop> {
        self.wall.filter(|(end, _)| now >= *end).map(|(_, limit)| Stop::WallTimeout(limit))
    }

    /// Sets if other vCPUs share the thread.
    pub(crate) fn share_thread(&self, shares: bool) {
        self.shares_thread.store(shares, Ordering::Relaxed);
    }

    /// True if a wait has to give way to other vCPUs soon.
    pub(crate) fn shares_thread(&self) -> bool {
        self.shares_thread.load(Ordering::Relaxed)
    }

    /// Lets a wait give way. Returns false if no other vCPU shares the thread, so that it must go on.
    pub(crate) fn give_way(&self, wait: Wait) -> bool {
        let value = if wait == Wait::Input { WAITS_FOR_INPUT } else { WAITS_FOR_READER };
        let gives_way = self.shares_thread();
        if gives_way {
            self.gave_way.fetch_max(value, Ordering::Relaxed);
        }
        gives_way
    }

    /// The wait that gave way since the last [`go_on`](Self::go_on).
    #[inline]
    pub(crate) fn gave_way(&self) -> Option<Wait> {
        match self.gave_way.load(Ordering::Relaxed) {
            WAITS_FOR_READER => Some(Wait::Reader),
            WAITS_FOR_INPUT => Some(Wait::Input),
            _ => None,
        }
    }

    /// Forgets the wait that gave way, and returns it.
    pub(crate) fn go_on(&self) -> Option<Wait> {
        let wait = self.gave_way();
        self.gave_way.store(0, Ordering::Relaxed);
        wait
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

    #[test]
    fn nothing_moves_the_wall_clock_limit() {
        let limit = Duration::from_millis(20);
        let deadline = Deadline::after(Some(limit)).with_wall_limit(Some(limit));
        let start = Instant::now();
        assert!(Deadline::default().with_wall_limit(Some(Duration::from_secs(60))).must_end_wait().is_none());
        std::thread::sleep(Duration::from_millis(30));
        deadline.extend_by_wait_since(start);
        assert!(matches!(deadline.must_end(), Some(Stop::WallTimeout(of)) if of == limit));
        assert!(matches!(deadline.must_end_wait(), Some(Stop::WallTimeout(_))));
        assert!(matches!(
            Deadline::after(Some(Duration::ZERO)).must_end(),
            Some(Stop::Timeout(Duration::ZERO))
        ));
    }
}
