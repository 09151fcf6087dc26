//! The setup of the machines of an observed program: the calls that built them, in words.
//!
//! [`Setup`] is a watcher. The calls and their structures are those of Linux `Documentation/virt/kvm/api.rst`, section 4.

mod calls;
mod capabilities;
mod errors;
mod machine;
mod map;
mod requests;
mod steps;
#[cfg(test)]
mod tests;
mod values;

use crate::engine::{Call, Event, StopCause, VcpuId};
use crate::memory::ObservedMemory;
use machine::Machine;
use report::SavedSetup;
use report::setup::{MOST_SETUP, SavedCall};
use report::view::plural;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use steps::{Step, Steps};

/// The number of VMs that are shown.
const MOST_MACHINES: usize = 32;
/// KVM_EXIT_SHUTDOWN, KVM_EXIT_FAIL_ENTRY and KVM_EXIT_INTERNAL_ERROR.
const DEATHS: [u32; 3] = [8, 9, 17];

/// The calls that built the machines of a program.
#[derive(Debug, Default)]
pub struct Setup {
    /// The calls on `/dev/kvm`.
    system: Steps,
    machines: BTreeMap<u32, Machine>,
    /// The number of VMs past the limit.
    more: BTreeSet<u32>,
    /// The vCPUs whose guests died and did not run again.
    dead: BTreeSet<VcpuId>,
    has_refused: bool,
    /// True if a call failed.
    has_failed: bool,
    lost: u64,
}

impl Setup {
    /// Follows an event. It must see all events from the start of the program on.
    pub fn take(&mut self, event: &Event, memory: &ObservedMemory) {
        match event {
            Event::Called(call) => self.called(call, memory),
            Event::Stopped(stop) => match &stop.cause {
                StopCause::FirstEntry => {
                    if let Some(machine) = self.machine(stop.vcpu.vm) {
                        machine.entered(stop, memory);
                    }
                }
                StopCause::Refused(call) => {
                    self.has_refused = true;
                    self.called(call, memory);
                }
                StopCause::Exit(_) | StopCause::Running(_) => {}
            },
            Event::Returned(vcpu, record) => {
                let is_interrupted = [-libc::EINTR, -libc::EAGAIN].contains(&record.result);
                let is_dead = record.result < 0 || DEATHS.contains(&record.reason);
                if is_interrupted {
                    // The guest may run again.
                } else if is_dead && self.dead.len() < MOST_MACHINES {
                    self.dead.insert(*vcpu);
                } else if !is_dead && !self.dead.is_empty() {
                    self.dead.remove(vcpu);
                }
            }
            Event::LostCalls(lost) => self.lost = self.lost.saturating_add(*lost),
            _ => {}
        }
    }

    /// True if a guest died, or KVM refused registers.
    pub fn has_died(&self) -> bool {
        !self.dead.is_empty() || self.has_refused
    }

    /// True if a call to KVM failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The machine with this number, if it is one of the first.
    fn machine(&mut self, vm: u32) -> Option<&mut Machine> {
        if self.machines.len() >= MOST_MACHINES && !self.machines.contains_key(&vm) {
            if self.more.len() < 1 << 16 {
                self.more.insert(vm);
            }
            return None;
        }
        Some(self.machines.entry(vm).or_default())
    }

    fn called(&mut self, call: &Call, memory: &ObservedMemory) {
        let known = requests::known(call.request);
        let vm = calls::vm_of(call.target);
        self.has_failed |= call.result < 0;
        let failure = (call.result < 0).then(|| errors::meaning(call, known, memory));
        let step = Step {
            vcpu: None,
            name: requests::name(call.request),
            words: [known.map_or_else(String::new, |name| calls::describe(call, name))].into(),
            failure,
            is_question: known.is_some_and(calls::is_question),
            count: 1,
            is_rest: false,
        };
        match vm {
            None => self.system.push(step),
            Some(vm) => {
                if let Some(machine) = self.machine(vm) {
                    machine.called(call, known.unwrap_or_default(), step, |number| {
                        memory.slot(vm, number).copied()
                    });
                }
            }
        }
    }

    /// The setup as text: the calls of each machine, its memory, and remarks. Empty without a call.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.system.steps.is_empty() {
            text += "vmm: calls on /dev/kvm:\n";
            text += &lines(&self.system);
        }
        for (vm, machine) in &self.machines {
            text += &machine.text(*vm);
        }
        // Writing to a String cannot fail.
        if !self.more.is_empty() {
            let _ = writeln!(text, "vmm: and {}", plural(self.more.len() as u64, "more VM"));
        }
        if self.lost > 0 {
            let _ = writeln!(text, "vmm: {} not shown", plural(self.lost, "more call"));
        }
        text
    }
}

impl Setup {
    /// The setup as a part of a profile. `None` without a call.
    pub fn saved(&self) -> Option<SavedSetup> {
        let mut saved = SavedSetup::default();
        let mut left_out = rows(&self.system, None, &mut saved);
        for (vm, machine) in &self.machines {
            left_out = left_out.saturating_add(machine.save(*vm, &mut saved));
        }
        let more = [(self.more.len() as u64, "VM"), (left_out.saturating_add(self.lost), "call")];
        for (count, what) in more.into_iter().filter(|(count, _)| *count > 0) {
            saved.remarks.push(format!("{} not shown.", plural(count, &format!("more {what}"))));
        }
        saved.remarks.truncate(MOST_SETUP);
        (saved != SavedSetup::default()).then_some(saved)
    }
}

/// Adds the calls of a list to those of a profile. Returns the number of calls that it leaves out.
fn rows(steps: &Steps, vm: Option<u32>, saved: &mut SavedSetup) -> u64 {
    let object = |step: &Step| match (vm, step.vcpu) {
        (None, _) => "/dev/kvm".into(),
        (_, None) => "VM".into(),
        (_, Some(vcpu)) => format!("vCPU {vcpu}"),
    };
    steps
        .steps
        .iter()
        .fold(steps.more, |left_out, step| left_out.saturating_add(row(step, vm, object(step), saved)))
}

/// Adds a call to those of a profile. Returns the number of calls that it leaves out.
fn row(step: &Step, vm: Option<u32>, object: String, saved: &mut SavedSetup) -> u64 {
    if saved.calls.len() >= MOST_SETUP {
        return step.count;
    }
    let words = if step.is_rest { "(more of them)".into() } else { step.words() };
    saved.calls.push(SavedCall {
        vm,
        object,
        call: step.name.clone(),
        times: step.count,
        words,
        failure: step.failure.clone(),
    });
    0
}

/// The lines of a list of calls.
fn lines(steps: &Steps) -> String {
    let mut text = String::new();
    for step in &steps.steps {
        let vcpu = step.vcpu.map_or_else(String::new, |vcpu| format!("vCPU {vcpu}: "));
        let _ = writeln!(text, "  {vcpu}{}", step.text());
    }
    if steps.more > 0 {
        let _ = writeln!(text, "  and {} more calls", steps.more);
    }
    text
}
