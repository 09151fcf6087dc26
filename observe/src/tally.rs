//! Counts the events of an engine, as the recorder of a run counts its exits.

use crate::answers::Answers;
use crate::engine::{Event, Record, VcpuId};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use vmm::exit::{Arrival, Exit, Site};
use vmm::host::sort_by_key;
use vmm::profile::{Clock, Profile, Times, Trace, TracedExit};
use vmm::{CopiedExit, KvmCounters, RunCopy};

/// The number of vCPUs that are told apart. Each takes at most 5 MiB.
pub(crate) const MOST_VCPUS: usize = 64;
/// The number of different errors of KVM_RUN that are kept.
const MOST_ERRORS: usize = 16;
/// KVM_EXIT_MEMORY_FAULT. KVM_RUN then fails with EFAULT or EHWPOISON, although it is an exit.
const MEMORY_FAULT: u32 = 39;

/// The counts of one vCPU.
#[derive(Debug)]
pub(crate) struct VcpuTally {
    /// The vCPU; `None` for all those past the limit.
    pub(crate) id: Option<VcpuId>,
    pub(crate) profile: Profile,
    pub(crate) kernel: Option<KvmCounters>,
    /// True if KVM's counters are those of all its exits.
    pub(crate) has_counters: bool,
    pub(crate) last: Option<Exit>,
    /// The entry after the last exit; before the first exit, the time when the vCPU was made.
    entered: u64,
    /// The time in KVM before an interruption, which belongs to the next exit.
    carried: u64,
}

/// The counts of a program.
#[derive(Debug)]
pub(crate) struct Tally {
    began: (Instant, u64),
    clock: Option<Clock>,
    copy: RunCopy,
    places: HashMap<VcpuId, usize>,
    pub(crate) vcpus: Vec<VcpuTally>,
    pub(crate) machines: u32,
    pub(crate) lost: u64,
    pub(crate) unrecorded: u32,
    pub(crate) is_hidden: bool,
    /// The number of vCPUs past the limit.
    pub(crate) merged: u64,
    /// The errors of KVM_RUN, and their numbers.
    pub(crate) errors: BTreeMap<i32, u64>,
    /// The reads of devices.
    pub(crate) answers: Answers,
    /// The number of times that the clock went backwards.
    pub(crate) steps: u64,
    /// Exits are also counted per address of the guest's code.
    by_address: bool,
    /// The number of exits in the trace; 0 without a trace.
    capacity: usize,
    traced: Vec<(u32, TracedExit)>,
    seen: u64,
}

impl Tally {
    /// Creates a tally of a program that starts now, with a trace of at most `capacity` exits. With `by_address` exits are also
    /// counted per RIP.
    pub(crate) fn new(capacity: usize, by_address: bool) -> Self {
        Self {
            began: now(),
            clock: None,
            copy: RunCopy::default(),
            places: HashMap::new(),
            vcpus: Vec::new(),
            machines: 0,
            lost: 0,
            unrecorded: 0,
            is_hidden: false,
            merged: 0,
            errors: BTreeMap::new(),
            answers: Answers::default(),
            steps: 0,
            by_address,
            capacity,
            traced: Vec::new(),
            seen: 0,
        }
    }

    /// The time since the start of the program.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.0.elapsed()
    }

    /// The time-stamp counter, with its frequency as it was between the start and the first exit.
    pub(crate) fn clock(&mut self) -> Clock {
        *self.clock.get_or_insert_with(|| {
            let (instant, ticks) = now();
            let nanoseconds = instant.duration_since(self.began.0).as_nanos().max(1);
            let ticks = u128::from(ticks.saturating_sub(self.began.1));
            let khz = ticks.saturating_mul(1_000_000).checked_div(nanoseconds);
            Clock::new(khz.and_then(|khz| u32::try_from(khz).ok()).filter(|khz| *khz > 0).or(Some(1_000_000)))
        })
    }

    /// The time since the last exit of a vCPU, or since it was made.
    pub(crate) fn time_without_exit(&mut self, id: VcpuId) -> Duration {
        let (place, clock) = (self.place(id), self.clock());
        let entered = self.vcpus.get(place).map_or(u64::MAX, |vcpu| vcpu.entered);
        Duration::from_nanos(clock.nanos(now().1.saturating_sub(entered)))
    }

    /// Counts an event.
    pub(crate) fn take(&mut self, event: Event) {
        match event {
            Event::Created(id) => {
                self.place(id);
            }
            Event::Returned(id, record) => self.returned(id, &record),
            Event::Counters(id, counters) => {
                let place = self.place(id);
                if let Some(vcpu) = self.vcpus.get_mut(place) {
                    vcpu.has_counters = true;
                    match &mut vcpu.kernel {
                        Some(sum) => sum.absorb(&counters),
                        none => *none = Some(counters),
                    }
                }
            }
            Event::Called(_) | Event::Stopped(_) | Event::LostCalls(_) => {}
            Event::Lost(_, exits) => self.lost = self.lost.saturating_add(exits),
            Event::Unrecorded(vcpus) => self.unrecorded = vcpus,
            Event::Hidden => self.is_hidden = true,
            Event::Machines(machines) => self.machines = machines,
        }
    }

    /// The place of a vCPU in `vcpus`. Those past the limit share the last place.
    fn place(&mut self, id: VcpuId) -> usize {
        if let Some(place) = self.places.get(&id) {
            return *place;
        }
        let is_full = self.vcpus.len() >= MOST_VCPUS;
        if is_full {
            self.merged = self.merged.saturating_add(1);
            if let Some(vcpu) = self.vcpus.last_mut() {
                vcpu.id = None;
            }
            return self.vcpus.len().saturating_sub(1);
        }
        let place = self.vcpus.len();
        self.places.insert(id, place);
        self.vcpus.push(VcpuTally {
            id: Some(id),
            profile: if self.by_address { Profile::with_addresses() } else { Profile::default() },
            kernel: None,
            has_counters: false,
            last: None,
            entered: now().1,
            carried: 0,
        });
        place
    }

    /// Counts a return of KVM_RUN.
    fn returned(&mut self, id: VcpuId, record: &Record) {
        let (place, clock) = (self.place(id), self.clock());
        let Some(vcpu) = self.vcpus.get_mut(place) else { return };
        let in_kvm = since(record.entered, record.left, &mut self.steps);
        if record.result < 0 && record.reason != MEMORY_FAULT {
            vcpu.carried = vcpu.carried.saturating_add(in_kvm);
            let errno = record.result.saturating_neg();
            let is_known = self.errors.len() < MOST_ERRORS || self.errors.contains_key(&errno);
            if is_known && ![libc::EINTR, libc::EAGAIN].contains(&errno) {
                let count = self.errors.entry(errno).or_default();
                *count = count.saturating_add(1);
            }
            return;
        }
        let in_kvm = clock.nanos(in_kvm.saturating_add(std::mem::take(&mut vcpu.carried)));
        vcpu.entered = record.answered.unwrap_or(record.left);
        // The time after the last exit belongs to the end of the program.
        let answered = record.answered.unwrap_or(record.left);
        let in_vmm = clock.nanos(since(record.left, answered, &mut self.steps));
        let at = clock.nanos(record.left.saturating_sub(self.began.1));
        let elements: Vec<CopiedExit> = self.copy.decode(record.reason, &record.details).collect();
        if let Some(first) = elements.first() {
            self.answers.take(id, record, first);
        }
        // The program answers all elements of string I/O at once.
        let share = in_vmm.checked_div(elements.len() as u64).unwrap_or(0);
        let rest = in_vmm.saturating_sub(share.saturating_mul(elements.len() as u64));
        for (index, element) in elements.into_iter().enumerate() {
            let (arrival, times) = match index {
                0 => (Arrival::FromGuest, Times { in_kvm, in_vmm: share.saturating_add(rest) }),
                _ => (Arrival::NextElement, Times { in_kvm: 0, in_vmm: share }),
            };
            let CopiedExit { exit, value, fault } = element;
            vcpu.profile.record(&exit, arrival, times);
            if let Some(addresses) = vcpu.profile.addresses_mut() {
                addresses.record(&exit, arrival, record.rip, times);
            }
            vcpu.last = Some(exit);
            self.seen = self.seen.saturating_add(1);
            if self.capacity > 0 {
                let id = u32::try_from(place).unwrap_or(u32::MAX);
                self.traced
                    .push((id, TracedExit { exit, arrival, at, times, rip: record.rip, value, fault }));
            }
        }
        // The vCPUs come one after the other, so there must be more than the trace needs before the oldest can go.
        if self.traced.len() > self.capacity.saturating_mul(2).saturating_add(SLACK) {
            self.shorten();
        }
    }

    /// Drops the exits that are too old for the trace.
    fn shorten(&mut self) {
        sort_by_key(&mut self.traced, |(_, traced)| traced.at);
        let surplus = self.traced.len().saturating_sub(self.capacity);
        self.traced.drain(..surplus);
    }

    /// Returns the trace. The numbers of its vCPUs are their places in `vcpus`.
    pub(crate) fn trace(&mut self) -> Option<Trace> {
        self.shorten();
        (self.capacity > 0).then(|| Trace::of(self.seen, std::mem::take(&mut self.traced)))
    }
}

/// The number of exits of one vCPU that may come before those of another one of the same time: a few rings.
const SLACK: usize = 1 << 16;

/// Reads both clocks at the same time. The thread may lose its processor between the readings, so it tries several times.
fn now() -> (Instant, u64) {
    let ticks = Clock::new(Some(1));
    let read = || {
        let (before, instant, after) = (ticks.now(), Instant::now(), ticks.now());
        (after.saturating_sub(before), instant, before)
    };
    let (_, instant, ticks) = (0..8).map(|_| read()).min_by_key(|(width, ..)| *width).unwrap_or_else(read);
    (instant, ticks)
}

/// The ticks between two readings.
fn since(earlier: u64, later: u64, steps: &mut u64) -> u64 {
    if later < earlier {
        *steps = steps.saturating_add(1);
    }
    later.saturating_sub(earlier)
}

/// The name of an exit's reason.
pub(crate) fn reason(exit: &Exit) -> String {
    Site::of(exit).map_or_else(String::new, |site| site.reason.to_string())
}

#[cfg(test)]
mod tests;
