//! The deaths of observed guests, and the registers that KVM refused, each with its explanation.
//!
//! An engine stops the vCPU, so its registers and the memory of its guest are still those of the death. The explanation is that
//! of this program's own guests ([`Explanation`]).

mod end;
mod last;
mod start;
mod view;

#[cfg(test)]
mod tests;

use crate::engine::{Call, Event, Record, Stop, StopCause, Target, VcpuId};
use crate::layout;
use crate::memory::ObservedMemory;
use end::End;
use last::LastExits;
use start::{Start, entry, is_reset};
use std::collections::BTreeMap;
use std::fmt;
pub(crate) use view::View;
use vmm::controller::Location;
use vmm::exit::{Exit, Instruction};
use vmm::machine::{DeadVcpu, DeathKind, Explanation};
use vmm::memory::ReadMemory;
use vmm::x86::{Regs, Sregs};

/// The most deaths that are kept: as many as there are vCPUs that are told apart.
pub const MOST_DEATHS: usize = 64;
/// The most deaths that are explained. A program may run a dead vCPU again and again.
const MOST_EXPLAINED: u32 = 1000;
/// The most vCPUs whose start is remembered.
const MOST_STARTS: usize = 1024;

/// The death of an observed guest, registers that KVM refused, or a guest that did not end in its time.
#[derive(Clone, Debug)]
pub struct Death {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The way in which it died.
    pub kind: DeathKind,
    /// The end in words, without its cause.
    pub what: String,
    /// The place of the vCPU; `None` if it is not known, or says nothing.
    pub location: Option<Location>,
    /// The probable cause, as a phrase; `None` if the state shows none.
    pub cause: Option<String>,
    /// The explanation; `None` without registers.
    pub explanation: Option<Explanation>,
    /// The parts that are missing, and why.
    pub remarks: Vec<String>,
    /// The last exits of the vCPU before its death, the newest at the end.
    pub last_exits: Vec<Exit>,
    /// The number of later deaths of this vCPU, or of later refusals, at which it stopped.
    again: u64,
    /// The time of the exit, which orders the deaths. 0 for a refusal.
    at: u64,
    /// True when `last_exits` are known.
    is_complete: bool,
}

/// One line: the end, the place, and the probable cause.
impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(location) = self.location {
            match self.kind {
                DeathKind::Fault | DeathKind::Lost | DeathKind::Running => write!(f, ", {location}")?,
                _ => write!(f, "; the guest was then {location}")?,
            }
        }
        match (&self.cause, self.kind) {
            (Some(cause), DeathKind::Refused | DeathKind::Running) => write!(f, ": {cause}"),
            (Some(cause), _) => write!(f, ": probably {cause}"),
            (None, _) => Ok(()),
        }
    }
}

impl Death {
    /// Indented lines with the explanation, the last exits and the remarks, as after a run. `places` are lines about the places
    /// in the guest's code.
    pub fn details(&self, places: &str) -> String {
        let mut text = self.explanation.as_ref().map(Explanation::to_string).unwrap_or_default();
        text += places;
        let last: Vec<_> = self.last_exits.iter().map(Exit::to_string).collect();
        if !last.is_empty() {
            text += &format!("  last exits   {}\n", last.join(", "));
        }
        self.remarks.iter().fold(text, |text, remark| text + "  remark       " + remark + "\n")
    }

    /// Adds mistakes of the registers at the start that are not told yet. Some hosts correct them.
    fn blame_start(&mut self, regs: &Regs, sregs: &Sregs) {
        let told = format!("{:?}{}", self.cause, self.details(""));
        for finding in start::mistakes(regs, sregs) {
            if self.cause.is_none() {
                self.cause = Some(format!("{finding}, at the start"));
            } else if !told.contains(&finding.sentence) {
                self.remarks.push(format!("the vCPU started with a mistake: {finding}"));
            }
        }
    }

    /// True for registers that KVM refused.
    pub fn is_refusal(&self) -> bool {
        self.kind == DeathKind::Refused
    }
}

/// Collects the deaths in an observation. Hand it each event.
#[derive(Debug, Default)]
pub struct Deaths {
    deaths: Vec<Death>,
    starts: BTreeMap<VcpuId, Start>,
    last: LastExits,
    /// The exits that were deaths, of each vCPU. The vCPU stops only at the first ones.
    died: BTreeMap<VcpuId, u64>,
    explained: u32,
    more: u64,
}

impl Deaths {
    /// Of each vCPU the first death and the first refusal of its registers: the refusals, and then the deaths by time.
    pub fn iter(&self) -> impl Iterator<Item = &Death> {
        self.deaths.iter()
    }

    /// The number of deaths of further vCPUs, past the limit of [`MOST_DEATHS`], and of those that were too many to explain.
    pub fn more(&self) -> u64 {
        self.more
    }

    /// The number of deaths of this vCPU after this one, or of refusals. The vCPU does not stop at all of them.
    pub fn later(&self, death: &Death) -> u64 {
        let died = self.died.get(&death.vcpu).filter(|_| !death.is_refusal());
        died.map_or(0, |died| died.saturating_sub(1)).max(death.again)
    }

    /// Takes an event.
    pub fn see(&mut self, event: &Event, memory: &ObservedMemory) {
        match event {
            Event::Called(call) => self.follow(call),
            Event::Stopped(stop) => self.stopped(stop, memory),
            Event::Returned(vcpu, record) => match end::is_end(record) {
                true => self.died(*vcpu, record),
                false => self.last.take(*vcpu, record),
            },
            _ => {}
        }
    }

    /// Takes the exit of a death. It comes after the stop.
    fn died(&mut self, vcpu: VcpuId, record: &Record) {
        let is_first = |death: &&mut Death| death.vcpu == vcpu && !death.is_refusal() && !death.is_complete;
        if let Some(death) = self.deaths.iter_mut().find(is_first) {
            death.last_exits = self.last.of(vcpu);
            death.is_complete = true;
        }
        if record.result >= 0 {
            self.count(vcpu);
        }
    }

    fn count(&mut self, vcpu: VcpuId) {
        if self.died.len() < MOST_STARTS || self.died.contains_key(&vcpu) {
            let died = self.died.entry(vcpu).or_default();
            *died = died.saturating_add(1);
        }
    }

    /// Remembers registers that the program sets before the first entry.
    fn follow(&mut self, call: &Call) {
        let (Target::Vcpu(vcpu), 0..) = (call.target, call.result) else { return };
        let is_known = [end::SET_REGS, end::SET_SREGS, end::SET_SREGS2].contains(&call.request);
        let Some(start) = Some(vcpu).filter(|_| is_known).and_then(|vcpu| self.start(vcpu)) else { return };
        match call.request {
            end::SET_REGS => start.regs = layout::regs(&call.data),
            _ => start.sregs = layout::sregs(&call.data),
        }
    }

    /// The start of a vCPU, if it is one of the first.
    fn start(&mut self, vcpu: VcpuId) -> Option<&mut Start> {
        let is_kept = self.starts.len() < MOST_STARTS || self.starts.contains_key(&vcpu);
        is_kept.then(|| self.starts.entry(vcpu).or_default())
    }

    fn stopped(&mut self, stop: &Stop, memory: &ObservedMemory) {
        let end = match &stop.cause {
            StopCause::FirstEntry => {
                if let (Some(start), Some(registers)) = (self.start(stop.vcpu), &stop.registers) {
                    *start = Start { regs: Some(registers.0), sregs: Some(registers.1) };
                }
                return;
            }
            StopCause::Exit(record) => End::of_exit(record),
            StopCause::Refused(call) => End::of_call(call),
            StopCause::Running(time) => Some(End::of_time(*time)),
        };
        let Some(end) = end else { return };
        if self.explained >= MOST_EXPLAINED {
            self.more = self.more.saturating_add(1);
            return;
        }
        self.explained = self.explained.saturating_add(1);
        let view = View::new(memory, stop.vcpu.vm, stop.process);
        let death = self.explain(stop, end, &view);
        self.keep(death);
    }

    /// Keeps the first death of each vCPU, and its first refusal. What follows is often only a consequence.
    fn keep(&mut self, death: Death) {
        let is_same = |old: &&mut Death| old.vcpu == death.vcpu && old.is_refusal() == death.is_refusal();
        if let Some(first) = self.deaths.iter_mut().find(is_same) {
            first.again = first.again.saturating_add(1);
        } else if self.deaths.len() < MOST_DEATHS {
            // Engines hand over the stops of several vCPUs nearly in the order of time.
            let place = self.deaths.partition_point(|old| old.at <= death.at);
            self.deaths.insert(place, death);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn explain(&self, stop: &Stop, end: End, view: &View<'_>) -> Death {
        let start = self.starts.get(&stop.vcpu).and_then(Start::registers);
        let entry = start.and_then(|(regs, sregs)| entry(&regs, &sregs, view));
        let State { kind, registers, location, remark } = State::of(stop, end.kind, start);
        let unreadable = view.unreadable();
        let mut remarks: Vec<String> = remark.into_iter().map(String::from).collect();
        remarks.extend(
            unreadable.as_ref().map(|why| format!("the memory of the guest could not be read: {why}")),
        );
        let explain = |memory: Option<&dyn ReadMemory>| {
            let (regs, sregs) = registers.as_ref()?;
            Some(Explanation::of(&DeadVcpu { kind, regs, sregs, memory, entry }))
        };
        let mut explanation = explain(if unreadable.is_some() { None } else { Some(view) });
        if unreadable.is_none() && view.missed().is_some() {
            // A place without memory in the program is not one outside of the slots.
            explanation = explain(None);
        }
        let suspicion = explanation.as_ref().and_then(Explanation::suspicion);
        let cause = end.cause(stop, view).or_else(|| suspicion.map(String::from));
        remarks.extend(end::refusal_advice(&stop.cause).filter(|_| cause.is_none()).map(String::from));
        let what = end.what(explanation.as_ref());
        let (at, last_exits) = match &stop.cause {
            StopCause::Exit(record) => (record.left, Vec::new()),
            // All of its exits have come.
            StopCause::Running(_) => (u64::MAX, self.last.of(stop.vcpu)),
            _ => (0, Vec::new()),
        };
        let mut death = Death {
            vcpu: stop.vcpu,
            kind,
            what,
            location,
            cause,
            explanation,
            remarks,
            last_exits,
            again: 0,
            at,
            is_complete: kind == DeathKind::Running,
        };
        if let (Some((regs, sregs)), false) =
            (start, matches!(kind, DeathKind::Refused | DeathKind::Lost | DeathKind::Running))
        {
            death.blame_start(&regs, &sregs);
        }
        death
    }
}

/// The state that is explained.
struct State {
    kind: DeathKind,
    registers: Option<(Regs, Sregs)>,
    location: Option<Location>,
    remark: Option<&'static str>,
}

impl State {
    /// The state of a stopped vCPU, or that of its start if the host has reset it.
    fn of(stop: &Stop, kind: DeathKind, start: Option<(Regs, Sregs)>) -> Self {
        let found = stop.registers.as_deref().copied();
        if let StopCause::Refused(call) = &stop.cause {
            return Self { kind, registers: end::asked(call, found.or(start)), location: None, remark: None };
        }
        let Some((regs, sregs)) = found else {
            let remark = Some("KVM did not return the registers of the vCPU");
            return Self { kind, registers: None, location: None, remark };
        };
        let was_reset = kind == DeathKind::Fault && is_reset(&regs, &sregs);
        match start.filter(|(regs, sregs)| was_reset && !is_reset(regs, sregs)) {
            Some(start) => Self {
                kind: DeathKind::Lost,
                registers: Some(start),
                location: Some(Location::Reset),
                remark: Some("the registers are those with which the vCPU started"),
            },
            None => {
                let location = Some(Location::of(&sregs, regs.rip));
                Self { kind, registers: found, location, remark: None }
            }
        }
    }
}
