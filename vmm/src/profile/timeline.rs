//! The timeline of a machine: marks in the order of time. The phases between them have their own exit counts.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The number of marks that are kept. A guest can make any number of marks.
pub const MAX_MARKS: usize = 40;
/// The number of boot marks that are kept. The rest is reserved for the other events.
const MAX_POST_CODES: usize = MAX_MARKS - 8;

/// An event in the life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The virtual machine is created, and the kernel is in its memory.
    VmReady,
    /// The guest is entered for the first time.
    FirstInstruction,
    /// The guest wrote the first byte to its console.
    FirstByte,
    /// The guest wrote this value to port 0x80.
    PostCode(u8),
    /// The console output shows that userland runs.
    Userland,
    /// The run ended.
    End,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmReady => f.write_str("VM ready"),
            Self::FirstInstruction => f.write_str("first instruction"),
            Self::FirstByte => f.write_str("first console byte"),
            Self::PostCode(code) => write!(f, "boot mark {code:#04x}"),
            Self::Userland => f.write_str("userland"),
            Self::End => f.write_str("end"),
        }
    }
}

/// An event and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The event.
    pub event: Event,
    /// The time since the start of the timeline.
    pub at: Duration,
}

/// The marks of one machine. Any of its threads may add marks.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    /// The current phase: the number of marks.
    phase: AtomicUsize,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    kept: Vec<Mark>,
    post_codes: usize,
    lost: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self::since(Instant::now())
    }
}

impl Timeline {
    /// Creates a timeline that starts at `began`.
    pub fn since(began: Instant) -> Self {
        Self { began, phase: AtomicUsize::new(0), marks: Mutex::default() }
    }

    /// Adds a mark for `event` at the current time, which begins the next phase. Does nothing if the timeline is full.
    pub fn mark(&self, event: Event) {
        let mut marks = self.lock();
        let is_post_code = matches!(event, Event::PostCode(_));
        if marks.kept.len() >= MAX_MARKS || is_post_code && marks.post_codes >= MAX_POST_CODES {
            marks.lost = marks.lost.saturating_add(1);
            return;
        }
        marks.post_codes = marks.post_codes.saturating_add(is_post_code.into());
        marks.kept.push(Mark { event, at: self.began.elapsed() });
        self.phase.store(marks.kept.len(), Ordering::Relaxed);
    }

    /// The current phase: 0 before the first mark, and one more after each mark.
    pub fn phase(&self) -> usize {
        self.phase.load(Ordering::Relaxed)
    }

    /// The marks so far.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().kept.clone()
    }

    /// The number of marks that were dropped because the timeline was full.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_begins_a_phase() {
        let timeline = Timeline::default();
        assert_eq!(timeline.phase(), 0);
        timeline.mark(Event::VmReady);
        timeline.mark(Event::PostCode(7));
        let marks = timeline.marks();
        assert_eq!(timeline.phase(), 2);
        assert!(marks[0].at <= marks[1].at);
        assert_eq!(marks[1].event.to_string(), "boot mark 0x07");
    }

    #[test]
    fn boot_marks_leave_room_for_the_end() {
        let timeline = Timeline::default();
        (0..=255).for_each(|code| timeline.mark(Event::PostCode(code)));
        timeline.mark(Event::End);
        assert_eq!(timeline.marks().last().unwrap().event, Event::End);
        assert_eq!(timeline.lost(), 256 - MAX_POST_CODES as u64);
        assert_eq!(timeline.phase(), MAX_POST_CODES + 1);
    }
}
