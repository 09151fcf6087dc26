//! The recorder: the run loop hands it each exit. It counts and times them, and keeps the last ones.
//!
//! ```text
//! entered ........ KVM_RUN ........ left ..... controllers ..... answered = entered
//!         |<----- time in KVM ----->|<------ time in the VMM ------>|
//! ```
//!
//! The clock is read twice per exit. Between the readings the recorder only notes the exit. It counts the notes in chunks
//! of [`CHUNK`]. The counting is part of neither time, and its cost is measured.

use crate::exit::{Arrival, Exit, Outcome};
use crate::profile::clock::Clock;
use crate::profile::timeline::Timeline;
use crate::profile::{Profile, Times};
use std::sync::Arc;

/// The number of last exits that are kept by default.
pub const LAST: usize = 6;

/// One of the last exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedExit {
    /// The exit.
    pub exit: Exit,
    /// The way in which it arrived.
    pub arrival: Arrival,
    /// The time of the exit, in nanoseconds since the start of the run.
    pub at: u64,
    /// The times in KVM and in the VMM.
    pub times: Times,
    /// The guest's RIP. Only if the recorder was asked for it, and KVM reports it without cost (KVM_CAP_SYNC_REGS).
    pub rip: Option<u64>,
    /// The value that the guest wrote or read.
    pub value: Option<u64>,
    /// True if the answer was #GP.
    pub fault: bool,
}

/// The result of a recorder.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The counts and times.
    pub profile: Profile,
    /// The last exits, oldest first.
    pub last: Vec<TracedExit>,
    /// The cost of the recording, in nanoseconds.
    pub cost: u64,
    /// The number of times that the clock went backwards. The affected time counts as 0.
    pub steps: u64,
}

/// The number of exits that are counted together.
pub const CHUNK: usize = 64;

/// The note of an exit, with readings of the clock.
#[derive(Clone, Copy, Debug)]
struct ExitNote {
    exit: Exit,
    arrival: Arrival,
    fault: bool,
    phase: u32,
    entered: u64,
    left: u64,
    answered: u64,
    rip: Option<u64>,
    value: Option<u64>,
}

impl ExitNote {
    const BLANK: Self = Self {
        exit: Exit::Interrupted,
        arrival: Arrival::FromGuest,
        fault: false,
        phase: 0,
        entered: 0,
        left: 0,
        answered: 0,
        rip: None,
        value: None,
    };
}

/// Records the exits of one vCPU.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    /// The reading of the clock at the start of the run.
    origin: u64,
    timeline: Option<Arc<Timeline>>,
    /// The number of last exits to keep.
    remembered: usize,
    wants_rip: bool,
    /// The notes, in whole chunks. When there are enough, the oldest chunk is overwritten.
    notes: Vec<ExitNote>,
    /// The index of the next exit's note.
    next: usize,
    /// True if the exit at `next` has no answer yet.
    open: bool,
    /// The reading of the clock at the last entry.
    entered: u64,
    /// The time since the last entry when the vCPU was paused, in ticks.
    paused: u64,
    /// Ticks spent on counting.
    cost: u64,
    recording: Recording,
}

impl Recorder {
    /// Creates a recorder. `origin` is the reading of `clock` at the start of the run. With `remembered` it keeps so many
    /// of the last exits, with their RIP; otherwise the last 6 exits without RIP. With `by_address` it also counts exits per
    /// RIP, and with a `timeline` per phase.
    pub fn new(
        clock: Clock,
        origin: u64,
        remembered: Option<usize>,
        by_address: bool,
        timeline: Option<Arc<Timeline>>,
    ) -> Self {
        let profile = if by_address { Profile::with_addresses() } else { Profile::default() };
        Self {
            clock,
            origin,
            timeline,
            remembered: remembered.unwrap_or(LAST),
            wants_rip: by_address || remembered.is_some(),
            notes: Vec::new(),
            next: 0,
            open: false,
            entered: clock.now(),
            paused: 0,
            cost: 0,
            recording: Recording { profile, ..Recording::default() },
        }
    }

    /// True if [`Self::left`] should get the guest's RIP.
    #[inline]
    pub fn wants_rip(&self) -> bool {
        self.wants_rip
    }

    /// Notes the first entry. Call it just before.
    pub fn begin(&mut self) {
        self.more_notes();
        self.entered = self.clock.now();
    }

    /// Notes that the vCPU is not entered for a while. That time belongs to no exit.
    pub fn pause(&mut self) {
        self.paused = self.clock.now().saturating_sub(self.entered);
    }

    /// Notes that a paused vCPU is entered again. Call it just before.
    pub fn resume(&mut self) {
        self.entered = self.clock.now().saturating_sub(self.paused);
    }

    /// Notes an exit. Call it just after the vCPU left the guest.
    #[inline]
    pub fn left(&mut self, exit: &Exit, arrival: Arrival, rip: Option<u64>) {
        let left = self.clock.now();
        self.open = exit.is_of_guest();
        let phase = self.timeline.as_deref().map_or(0, Timeline::phase) as u32;
        if let Some(note) = self.notes.get_mut(self.next) {
            let (entered, exit) = (self.entered, *exit);
            *note = ExitNote { exit, arrival, phase, entered, left, rip, ..ExitNote::BLANK };
        }
    }

    /// Notes the answer to the exit. Call it just before the next entry.
    #[inline]
    pub fn answered(&mut self, outcome: &Outcome) {
        let answered = self.clock.now();
        let Some(note) = self.notes.get_mut(self.next) else { return };
        if !self.open {
            // The time in KVM before an interruption belongs to the next exit.
            self.entered = answered.saturating_sub(note.left.saturating_sub(note.entered));
            return;
        }
        note.answered = answered;
        note.value = value(&note.exit, Some(outcome));
        note.fault = matches!(outcome, Outcome::Fault);
        self.open = false;
        // The time in KVM before a store that the kernel queued also belongs to the next exit.
        let queued = note.arrival == Arrival::Coalesced;
        let before = if queued { note.left.saturating_sub(note.entered) } else { 0 };
        self.entered = answered.saturating_sub(before);
        self.next = self.next.saturating_add(1);
        if self.next.is_multiple_of(CHUNK) {
            self.count_chunk(answered);
        }
    }

    /// Counts a full chunk of notes, and makes room for the next one.
    #[cold]
    fn count_chunk(&mut self, since: u64) {
        // Time that belongs to the next exit, as after a queued store, stays with it.
        let carried = since.saturating_sub(self.entered);
        self.count(self.next.saturating_sub(CHUNK));
        self.more_notes();
        let now = self.clock.now();
        self.entered = now.saturating_sub(carried);
        self.cost = self.cost.saturating_add(now.saturating_sub(since));
    }

    /// Makes room for a chunk of notes at `next`.
    fn more_notes(&mut self) {
        // One chunk more than needed: enough notes remain while a chunk is overwritten.
        if self.next >= self.remembered.saturating_add(CHUNK) {
            self.next = 0;
        }
        if self.next >= self.notes.len() {
            // If memory runs out, the recorder keeps fewer exits.
            match self.notes.try_reserve(CHUNK) {
                Ok(()) => self.notes.resize(self.next.saturating_add(CHUNK), ExitNote::BLANK),
                Err(_) => self.next = 0,
            }
        }
    }

    /// Counts the notes from index `first` up to `next`.
    fn count(&mut self, first: usize) {
        let Recording { profile, steps, .. } = &mut self.recording;
        for note in self.notes.get(first..self.next).unwrap_or_default() {
            let times = times(&self.clock, note, steps);
            profile.record(&note.exit, note.arrival, times);
            if self.timeline.is_some() {
                profile.record_phase(note.phase as usize, note.arrival);
            }
        }
        if let Some(addresses) = profile.addresses_mut() {
            for note in self.notes.get(first..self.next).unwrap_or_default() {
                // The first loop has counted the steps of the clock.
                addresses.record(&note.exit, note.arrival, note.rip, times(&self.clock, note, &mut 0));
            }
        }
    }

    /// Ends the recording. An exit without an answer is counted too.
    pub fn finish(mut self) -> Recording {
        let since = self.clock.now();
        let first = self.next / CHUNK * CHUNK;
        if let Some(note) = self.notes.get_mut(self.next).filter(|_| self.open) {
            note.answered = since;
            note.value = value(&note.exit, None);
            self.next = self.next.saturating_add(1);
        }
        self.count(first);
        self.cost = self.cost.saturating_add(self.clock.now().saturating_sub(since));
        // The two readings of the clock per exit are a cost, too.
        let exits = self.recording.profile.total().elements;
        let readings = self.nanos_of_readings().saturating_mul(exits);
        self.recording.cost = self.clock.nanos(self.cost).saturating_add(readings);

        let (new, old) = self.notes.split_at_checked(self.next).unwrap_or_default();
        let kept = old.iter().chain(new).filter(|note| note.exit.is_of_guest());
        let surplus = kept.clone().count().saturating_sub(self.remembered);
        self.recording.last = kept.skip(surplus).map(|note| self.traced(note)).collect();
        self.recording
    }

    fn traced(&self, note: &ExitNote) -> TracedExit {
        let ExitNote { exit, arrival, rip, value, fault, .. } = *note;
        let at = self.clock.nanos(note.left.saturating_sub(self.origin));
        TracedExit { exit, arrival, at, times: times(&self.clock, note, &mut 0), rip, value, fault }
    }

    /// The cost of two readings of the clock, in nanoseconds. It is the minimum of several measurements, because the host
    /// can suspend the thread during a measurement.
    fn nanos_of_readings(&self) -> u64 {
        let pair = |_| {
            let before = self.clock.now();
            std::hint::black_box(self.clock.now());
            self.clock.now().saturating_sub(before)
        };
        self.clock.nanos((0..16).map(pair).min().unwrap_or(0))
    }
}

/// The times of an exit. If the clock went backwards, the time is 0, and `steps` is incremented.
#[inline]
fn times(clock: &Clock, note: &ExitNote, steps: &mut u64) -> Times {
    let mut since = |earlier: u64, later: u64| {
        if later < earlier {
            *steps = steps.saturating_add(1);
        }
        clock.nanos(later.saturating_sub(earlier))
    };
    let in_kvm = if note.arrival == Arrival::FromGuest { since(note.entered, note.left) } else { 0 };
    Times { in_kvm, in_vmm: since(note.left, note.answered) }
}

/// The value that the guest wrote or read.
#[inline(always)]
fn value(exit: &Exit, outcome: Option<&Outcome>) -> Option<u64> {
    match (*exit, outcome) {
        (Exit::PioOut { data, .. }, _) => Some(data.into()),
        (Exit::MmioWrite { data, .. } | Exit::WrMsr { data, .. }, _) => Some(data),
        (Exit::PioIn { size, .. } | Exit::MmioRead { size, .. }, Some(Outcome::Value(value))) => {
            let unused = 64u32.saturating_sub(u32::from(size).saturating_mul(8));
            Some(value & u64::MAX.checked_shr(unused).unwrap_or(0))
        }
        (Exit::RdMsr { .. }, Some(Outcome::Value(value))) => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
