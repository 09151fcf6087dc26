//! What the run loop hands its exits to: they are counted and timed, and the last ones remembered.
//!
//! ```text
//! entered ........ KVM_RUN ........ left ..... controllers ..... answered = entered
//!         |<----- time in KVM ----->|<------ time in the VMM ------>|
//! ```
//!
//! The clock is read twice for each exit. Between the readings an exit is only written down; it is counted with
//! [`CHUNK`] others when so many have come together, which is in neither time, and whose cost is known.

use crate::exit::{Arrival, Exit, Outcome};
use crate::profile::clock::Clock;
use crate::profile::timeline::Timeline;
use crate::profile::{Profile, Times};
use std::sync::Arc;

/// How many of the last exits are remembered unless somebody asks for more.
pub const LAST: usize = 6;

/// An exit that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedExit {
    /// The exit.
    pub exit: Exit,
    /// How it came about.
    pub arrival: Arrival,
    /// When the guest was left for it, in nanoseconds since the run began.
    pub at: u64,
    /// How long it took.
    pub times: Times,
    /// Where the guest was, where KVM tells at no cost (KVM_CAP_SYNC_REGS) and somebody wants to know.
    pub rip: Option<u64>,
    /// What the guest wrote, or read.
    pub value: Option<u64>,
    /// Whether it got #GP for an answer.
    pub fault: bool,
}

/// What the loop leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The counts and times.
    pub profile: Profile,
    /// The last exits, the last one last.
    pub last: Vec<TracedExit>,
    /// What taking the profile cost, in nanoseconds.
    pub cost: u64,
    /// How often the clock went backwards: those times are taken for none.
    pub steps: u64,
}

/// How many exits are counted together.
pub const CHUNK: usize = 64;

/// An exit as it is written down, with readings of the clock.
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
    /// When the run began, as a reading of the clock.
    origin: u64,
    timeline: Option<Arc<Timeline>>,
    /// How many exits are remembered.
    remembered: usize,
    wants_rip: bool,
    /// Whole chunks, of which the oldest is written over when there are enough.
    notes: Vec<ExitNote>,
    /// Where the next exit is written down.
    next: usize,
    /// Whether the exit there is still to be answered.
    open: bool,
    /// When the guest was entered.
    entered: u64,
    /// Ticks that the counting took.
    cost: u64,
    recording: Recording,
}

impl Recorder {
    /// Records by a clock that read `origin` when the run began, by phase of a timeline where there is one. Remembers
    /// the last `remembered` exits with their RIP, or a few without.
    pub fn new(
        clock: Clock,
        origin: u64,
        remembered: Option<usize>,
        timeline: Option<Arc<Timeline>>,
    ) -> Self {
        Self {
            clock,
            origin,
            timeline,
            remembered: remembered.unwrap_or(LAST),
            wants_rip: remembered.is_some(),
            notes: Vec::new(),
            next: 0,
            open: false,
            entered: clock.now(),
            cost: 0,
            recording: Recording::default(),
        }
    }

    /// Whether the loop is to say where the guest was.
    #[inline]
    pub fn wants_rip(&self) -> bool {
        self.wants_rip
    }

    /// The guest is about to be entered for the first time.
    pub fn begin(&mut self) {
        self.more_notes();
        self.entered = self.clock.now();
    }

    /// The guest was left.
    #[inline]
    pub fn left(&mut self, exit: &Exit, arrival: Arrival, rip: Option<u64>) {
        let left = self.clock.now();
        self.open = *exit != Exit::Interrupted;
        let phase = self.timeline.as_deref().map_or(0, Timeline::phase) as u32;
        if let Some(note) = self.notes.get_mut(self.next) {
            let (entered, exit) = (self.entered, *exit);
            *note = ExitNote { exit, arrival, phase, entered, left, rip, ..ExitNote::BLANK };
        }
    }

    /// The exit was answered, and the guest is about to be entered.
    #[inline]
    pub fn answered(&mut self, outcome: &Outcome) {
        let answered = self.clock.now();
        let Some(note) = self.notes.get_mut(self.next) else { return };
        if !self.open {
            // The time until an interruption belongs to the next exit.
            self.entered = answered.saturating_sub(note.left.saturating_sub(note.entered));
            return;
        }
        note.answered = answered;
        note.value = value(&note.exit, Some(outcome));
        note.fault = matches!(outcome, Outcome::Fault);
        self.open = false;
        // So does the time until a store that the kernel has queued.
        let queued = note.arrival == Arrival::Coalesced;
        let before = if queued { note.left.saturating_sub(note.entered) } else { 0 };
        self.entered = answered.saturating_sub(before);
        self.next = self.next.saturating_add(1);
        if self.next.is_multiple_of(CHUNK) {
            self.count_chunk(answered);
        }
    }

    /// Counts the chunk of notes that is full, and finds a place for the next one.
    #[cold]
    fn count_chunk(&mut self, since: u64) {
        // What belongs to the next exit, as after a queued store, stays with it.
        let carried = since.saturating_sub(self.entered);
        self.count(self.next.saturating_sub(CHUNK));
        self.more_notes();
        let now = self.clock.now();
        self.entered = now.saturating_sub(carried);
        self.cost = self.cost.saturating_add(now.saturating_sub(since));
    }

    /// Has room for a chunk of notes at `next`.
    fn more_notes(&mut self) {
        // With a chunk more than what is remembered, there is as much left when one is written over.
        if self.next >= self.remembered.saturating_add(CHUNK) {
            self.next = 0;
        }
        if self.next >= self.notes.len() {
            // Where memory runs out, fewer are remembered.
            match self.notes.try_reserve(CHUNK) {
                Ok(()) => self.notes.resize(self.next.saturating_add(CHUNK), ExitNote::BLANK),
                Err(_) => self.next = 0,
            }
        }
    }

    /// Counts the notes from `first` up to the next one.
    fn count(&mut self, first: usize) {
        let Recording { profile, steps, .. } = &mut self.recording;
        for note in self.notes.get(first..self.next).unwrap_or_default() {
            let times = times(&self.clock, note, steps);
            profile.record(&note.exit, note.arrival, times);
            if self.timeline.is_some() {
                profile.record_phase(note.phase as usize, note.arrival);
            }
        }
    }

    /// All that was recorded, with an exit whose answer never came.
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
        // The two readings that each exit has are a cost, too.
        let exits = self.recording.profile.total().elements;
        let readings = self.nanos_of_readings().saturating_mul(exits);
        self.recording.cost = self.clock.nanos(self.cost).saturating_add(readings);

        let (new, old) = self.notes.split_at_checked(self.next).unwrap_or_default();
        let kept = old.iter().chain(new).filter(|note| note.exit != Exit::Interrupted);
        let surplus = kept.clone().count().saturating_sub(self.remembered);
        self.recording.last = kept.skip(surplus).map(|note| self.traced(note)).collect();
        self.recording
    }

    fn traced(&self, note: &ExitNote) -> TracedExit {
        let ExitNote { exit, arrival, rip, value, fault, .. } = *note;
        let at = self.clock.nanos(note.left.saturating_sub(self.origin));
        TracedExit { exit, arrival, at, times: times(&self.clock, note, &mut 0), rip, value, fault }
    }

    /// What two readings of the clock cost, in nanoseconds: the least of some times, since a thread that had to wait
    /// meanwhile tells nothing.
    fn nanos_of_readings(&self) -> u64 {
        let pair = |_| {
            let before = self.clock.now();
            std::hint::black_box(self.clock.now());
            self.clock.now().saturating_sub(before)
        };
        self.clock.nanos((0..16).map(pair).min().unwrap_or(0))
    }
}

/// How long an exit took. A clock that went backwards, which is counted, tells nothing.
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

/// What the guest wrote, or read.
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
mod tests {
    use super::*;
    use crate::profile::Count;

    const OUT: Exit = Exit::PioOut { port: 0xe9, size: 1, data: 0x41 };
    const IN: Exit = Exit::PioIn { port: 0xe9, size: 1 };

    fn recorder(remembered: Option<usize>) -> Recorder {
        let mut recorder = Recorder::new(Clock::new(Some(1_000_000)), 1000, remembered, None);
        recorder.begin();
        recorder
    }

    /// An exit by a clock that reads what the test says: a tick is a nanosecond.
    fn at(recorder: &mut Recorder, exit: Exit, arrival: Arrival, readings: [u64; 3]) {
        recorder.left(&exit, arrival, None);
        let note = &mut recorder.notes[recorder.next];
        [note.entered, note.left, note.answered] = readings;
        recorder.next += 1;
        recorder.open = false;
        if recorder.next.is_multiple_of(CHUNK) {
            recorder.count_chunk(0);
        }
    }

    #[test]
    fn the_time_until_a_queued_store_is_that_of_the_exit_after_it() {
        let mut recorder = recorder(None);
        recorder.begin();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let stores = std::iter::repeat_n((OUT, Arrival::Coalesced), 3 * CHUNK);
        for (exit, arrival) in stores.chain([(Exit::Hlt, Arrival::FromGuest)]) {
            recorder.left(&exit, arrival, None);
            recorder.answered(&Outcome::Resume);
        }
        let profile = recorder.finish().profile;
        let in_kvm: Vec<_> = profile
            .details()
            .iter()
            .map(|detail| (detail.in_kvm.count(), detail.in_kvm.sum() >= 2_000_000))
            .collect();
        assert!(in_kvm.contains(&(1, true)) && in_kvm.contains(&(0, false)), "{in_kvm:?}");
    }

    #[test]
    fn times_are_split_at_the_exit() {
        let mut recorder = recorder(None);
        at(&mut recorder, OUT, Arrival::FromGuest, [2000, 6000, 6300]);
        at(&mut recorder, OUT, Arrival::NextElement, [6400, 6410, 6460]);
        let recording = recorder.finish();
        let details = recording.profile.details();
        assert_eq!((details[0].in_kvm.sum(), details[0].in_kvm.count()), (4000, 1));
        assert_eq!((details[0].in_vmm.sum(), details[0].in_vmm.count()), (350, 2));
        assert_eq!(details[0].time(), 4350);
        let last: Vec<_> = recording.last.iter().map(|traced| (traced.at, traced.times)).collect();
        let times = |in_kvm, in_vmm| Times { in_kvm, in_vmm };
        assert_eq!(last, [(5000, times(4000, 300)), (5410, times(0, 50))]);
        assert_eq!(recording.steps, 0);
    }

    #[test]
    fn a_clock_that_steps_back_costs_a_time_and_no_more() {
        let mut recorder = recorder(None);
        at(&mut recorder, OUT, Arrival::FromGuest, [6000, 2000, 2100]);
        at(&mut recorder, OUT, Arrival::FromGuest, [3000, 4000, 500]);
        at(&mut recorder, OUT, Arrival::FromGuest, [0, u64::MAX, u64::MAX]);
        let recording = recorder.finish();
        assert_eq!(recording.steps, 2);
        assert_eq!(recording.profile.total(), Count { exits: 3, elements: 3 });
        let details = recording.profile.details();
        assert_eq!((details[0].in_kvm.min(), details[0].in_kvm.max()), (0, u64::MAX));
        assert_eq!(recording.last[0].at, 1000);
    }

    #[test]
    fn time_until_an_interruption_belongs_to_the_next_exit() {
        let mut recorder = recorder(None);
        for _ in 0..2 {
            recorder.left(&Exit::Interrupted, Arrival::FromGuest, None);
            recorder.notes[0].entered = recorder.notes[0].left - 1_000_000_000;
            recorder.answered(&Outcome::Resume);
        }
        recorder.left(&Exit::Hlt, Arrival::FromGuest, None);
        recorder.answered(&Outcome::Resume);
        let recording = recorder.finish();
        assert_eq!(recording.profile.total().exits, 1);
        let in_kvm = recording.last[0].times.in_kvm;
        assert!((1_000_000_000..2_000_000_000).contains(&in_kvm), "{in_kvm}");
    }

    #[test]
    fn the_last_exits_are_remembered_in_order() {
        for (remembered, seen) in
            [(None, 10), (Some(3), 10), (Some(100), 10), (Some(100), 1000), (Some(64), 128)]
        {
            let mut recorder = recorder(remembered);
            for port in 0..seen {
                let exit = Exit::PioIn { port, size: 1 };
                at(&mut recorder, exit, Arrival::FromGuest, [2000, 3000, 3000]);
            }
            let recording = recorder.finish();
            assert_eq!(recording.profile.total().exits, u64::from(seen));
            let ports: Vec<_> = recording.last.iter().map(|traced| traced.exit).collect();
            let first = seen.saturating_sub(remembered.unwrap_or(LAST) as u16);
            let wanted: Vec<_> = (first..seen).map(|port| Exit::PioIn { port, size: 1 }).collect();
            assert_eq!(ports, wanted, "the last {remembered:?} of {seen}");
        }
    }

    #[test]
    fn an_exit_without_an_answer_is_counted() {
        let mut recorder = recorder(None);
        recorder.left(&OUT, Arrival::FromGuest, Some(7));
        recorder.answered(&Outcome::Resume);
        recorder.left(&IN, Arrival::FromGuest, Some(9));
        let recording = recorder.finish();
        assert_eq!(recording.profile.total().exits, 2);
        let last: Vec<_> = recording.last.iter().map(|traced| (traced.rip, traced.value)).collect();
        assert_eq!(last, [(Some(7), Some(0x41)), (Some(9), None)]);
    }

    #[test]
    fn values_are_as_wide_as_the_access() {
        let value = |exit, outcome| value(&exit, Some(&outcome));
        assert_eq!(value(IN, Outcome::Value(u64::MAX)), Some(0xff));
        assert_eq!(value(Exit::MmioRead { address: 0, size: 8 }, Outcome::Value(u64::MAX)), Some(u64::MAX));
        assert_eq!(value(Exit::MmioRead { address: 0, size: 3 }, Outcome::Value(u64::MAX)), Some(0xff_ffff));
        assert_eq!(value(Exit::RdMsr { index: 1 }, Outcome::Fault), None);
        assert_eq!(value(Exit::WrMsr { index: 1, data: 5 }, Outcome::Fault), Some(5));
        assert_eq!(value(Exit::Hlt, Outcome::Resume), None);
    }
}
