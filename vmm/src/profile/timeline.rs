//! When a machine got how far: marks in the order of time, and the phases between them, in which exits are counted.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many marks are kept. A guest makes as many as it likes.
pub const MAX_MARKS: usize = 40;
/// How many of them may be boot marks, so that the others have room.
const MAX_POST_CODES: usize = MAX_MARKS - 8;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The virtual machine is made, and the kernel in its memory.
    VmReady,
    /// The guest is entered.
    FirstInstruction,
    /// The guest has written to its console.
    FirstByte,
    /// A value came to port 0x80.
    PostCode(u8),
    /// The console showed that userland runs.
    Userland,
    /// The run is over.
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
    /// What happened.
    pub event: Event,
    /// How long after the timeline began.
    pub at: Duration,
}

/// The marks of one machine, made on any of its threads.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    /// How many marks there are: the phase that runs.
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
    /// A timeline whose times count from `began`.
    pub fn since(began: Instant) -> Self {
        Self { began, phase: AtomicUsize::new(0), marks: Mutex::default() }
    }

    /// The event happens now, and the next phase begins.
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

    /// The phase that runs: 0 before the first mark, and one more after each.
    pub fn phase(&self) -> usize {
        self.phase.load(Ordering::Relaxed)
    }

    /// The marks so far.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().kept.clone()
    }

    /// How many marks found no place any more.
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
    fn marks_are_in_order_and_begin_phases() {
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
    fn a_guest_cannot_push_out_the_end() {
        let timeline = Timeline::default();
        (0..=255).for_each(|code| timeline.mark(Event::PostCode(code)));
        timeline.mark(Event::End);
        assert_eq!(timeline.marks().last().unwrap().event, Event::End);
        assert_eq!(timeline.lost(), 256 - MAX_POST_CODES as u64);
        assert_eq!(timeline.phase(), MAX_POST_CODES + 1);
    }
}
