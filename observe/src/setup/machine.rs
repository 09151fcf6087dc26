//! The setup of one machine.

use super::calls::registers;
use super::map::{MOST_ROWS, Map};
use super::steps::{Step, Steps};
use super::values::{half, long};
use super::{lines, row, rows};
use crate::engine::{Call, Stop, Target};
use crate::memory::{MemorySlot, ObservedMemory};
use report::SavedSetup;
use report::view::plural;
use std::collections::BTreeMap;
use std::fmt::Write;
use vmm::memory::Gpa;
use vmm::x86::summary;

/// The number of vCPUs whose calls are kept.
const MOST_VCPUS: usize = 64;
/// The largest slot that is searched for content.
const SEARCHED: u64 = 4 << 20;
/// The size of a piece that is read of it.
const PIECE: usize = 0x1_0000;

/// The setup of a vCPU.
#[derive(Clone, Debug, Default)]
struct Vcpu {
    /// The calls; those of the first vCPU are in the list of the machine.
    steps: Steps,
    has_cpuid: bool,
    has_sregs: bool,
    has_regs: bool,
    /// The registers at the first entry, in words.
    entry: Option<String>,
}

/// The setup of a VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// The calls of the VM and of its first vCPU.
    steps: Steps,
    first: Option<u32>,
    vcpus: BTreeMap<u32, Vcpu>,
    /// The number of calls of vCPUs past the limit.
    more: u64,
    map: Map,
    /// The map is that of the first entry, and stays.
    has_entered: bool,
}

impl Machine {
    /// Keeps a call that was made on this VM or on one of its vCPUs, whose request has this name. `slot` finds a slot by its
    /// number after the call. A program may make tens of thousands of slots, so only the one that changes is looked up.
    pub(super) fn called(
        &mut self,
        call: &Call,
        name: &str,
        step: Step,
        slot: impl Fn(u32) -> Option<MemorySlot>,
    ) {
        let ok = call.result >= 0;
        match name {
            "SET_TSS_ADDR" if ok => self.map.tss = Some(call.argument),
            "SET_IDENTITY_MAP_ADDR" if ok => self.map.identity = long(&call.data, 0),
            "CREATE_IRQCHIP" if ok => self.map.has_irqchip = true,
            "SET_USER_MEMORY_REGION" | "SET_USER_MEMORY_REGION2" if ok && !self.has_entered => {
                if let Some(number) = half(&call.data, 0) {
                    self.map.set(number, slot(number));
                }
            }
            _ => {}
        }
        let Target::Vcpu(id) = call.target else { return self.steps.push(step) };
        let first = *self.first.get_or_insert(id.vcpu);
        if self.vcpus.len() >= MOST_VCPUS && !self.vcpus.contains_key(&id.vcpu) {
            self.more = self.more.saturating_add(1);
            return;
        }
        let vcpu = self.vcpus.entry(id.vcpu).or_default();
        match name {
            "SET_CPUID" | "SET_CPUID2" => vcpu.has_cpuid |= ok,
            "SET_SREGS" | "SET_SREGS2" => vcpu.has_sregs |= ok,
            "SET_REGS" => vcpu.has_regs |= ok,
            _ => {}
        }
        let step = Step { vcpu: Some(id.vcpu), ..step };
        match id.vcpu == first {
            true => self.steps.push(step),
            false => vcpu.steps.push(step),
        }
    }

    /// A vCPU enters its guest for the first time.
    pub(super) fn entered(&mut self, stop: &Stop, memory: &ObservedMemory) {
        if !self.has_entered {
            self.has_entered = true;
            self.map.slots.clear();
            self.map.slots.extend(memory.slots(stop.vcpu.vm).map(|slot| (slot.number, *slot)));
            // The vCPU waits, so only the slots that have a row are read.
            let is_empty = |slot: &&MemorySlot| slot.number >> 16 == 0 && holds_zeroes(slot, stop, memory);
            let rows = self.map.rows().into_iter().take(MOST_ROWS);
            self.map.zeroes = rows.filter(is_empty).map(|slot| slot.number).collect();
        }
        if self.vcpus.len() < MOST_VCPUS || self.vcpus.contains_key(&stop.vcpu.vcpu) {
            let words = stop
                .registers
                .as_deref()
                .map(|(regs, sregs)| format!("{}, {}", summary(sregs), registers(regs)));
            let vcpu = self.vcpus.entry(stop.vcpu.vcpu).or_default();
            vcpu.entry = Some(words.unwrap_or_else(|| "with registers that KVM does not show".into()));
        }
    }

    /// The calls, the memory and the remarks.
    pub(super) fn text(&self, vm: u32) -> String {
        let mut text = format!("vmm: calls on VM {vm}:\n");
        text += &lines(&self.steps);
        text += &self.other_vcpus();
        if self.more > 0 {
            let _ = writeln!(text, "  and {} of further vCPUs", plural(self.more, "call"));
        }
        self.entries().iter().fold(text, |text, entry| text + "  " + entry + "\n") + &self.map.text(vm)
    }

    /// The calls of the vCPUs other than the first one.
    fn other_vcpus(&self) -> String {
        let mut text = String::new();
        for (steps, ids) in self.others() {
            match steps {
                // Writing to a String cannot fail.
                None => drop(writeln!(text, "  {}", self.alike(&ids))),
                Some(steps) => {
                    for step in steps {
                        let _ = writeln!(text, "  {}: {}", vcpus(&ids), step.text());
                    }
                }
            }
        }
        text
    }

    /// The other vCPUs in groups with the same calls; `None` if they are those of the first vCPU.
    fn others(&self) -> Vec<(Option<&[Step]>, Vec<u32>)> {
        let first = self.steps.steps.iter().filter(|step| step.vcpu.is_some() && step.vcpu == self.first);
        let first: Vec<String> = first.map(Step::text).collect();
        let groups = self.groups(|id, vcpu| match Some(id) == self.first {
            true => Vec::new(),
            false => vcpu.steps.steps.iter().map(Step::text).collect::<Vec<_>>(),
        });
        let groups = groups.into_iter().filter(|(steps, _)| !steps.is_empty());
        let known = groups.filter_map(|(steps, ids)| {
            let own = self.vcpus.get(ids.first()?)?.steps.steps.as_slice();
            Some((Some(own).filter(|_| steps != first), ids))
        });
        known.collect()
    }

    /// A sentence about vCPUs with the calls of the first one.
    fn alike(&self, ids: &[u32]) -> String {
        format!("{}: the same calls as vCPU {}", vcpus(ids), self.first.unwrap_or_default())
    }

    /// The sentences about the entries of vCPUs.
    fn entries(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (entry, ids) in self.groups(|_, vcpu| vcpu.entry.clone().unwrap_or_default()) {
            if !entry.is_empty() {
                sentences.push(format!("{} first entered in {entry}", vcpus(&ids)));
            }
        }
        for (remark, ids) in self.groups(|_, vcpu| vcpu.remark()) {
            if !remark.is_empty() {
                let was = if ids.len() > 1 { "were" } else { "was" };
                sentences.push(format!("{} {was} entered {remark}", vcpus(&ids)));
            }
        }
        sentences
    }

    /// Adds the calls, the memory and the remarks to those of a profile. Returns the number of calls that it leaves out.
    pub(super) fn save(&self, vm: u32, saved: &mut SavedSetup) -> u64 {
        let mut left_out = rows(&self.steps, Some(vm), saved).saturating_add(self.more);
        let remark = |text: String| format!("VM {vm}: {text}.");
        for (steps, ids) in self.others() {
            match steps {
                None => saved.remarks.push(remark(self.alike(&ids))),
                Some(steps) => {
                    for step in steps {
                        left_out = left_out.saturating_add(row(step, Some(vm), vcpus(&ids), saved));
                    }
                }
            }
        }
        saved.remarks.extend(self.entries().into_iter().map(remark));
        self.map.save(vm, saved);
        left_out
    }

    /// The vCPUs in a row for which a function has the same value.
    fn groups<V: PartialEq>(&self, value: impl Fn(u32, &Vcpu) -> V) -> Vec<(V, Vec<u32>)> {
        let mut groups: Vec<(V, Vec<u32>)> = Vec::new();
        for (id, vcpu) in &self.vcpus {
            let value = value(*id, vcpu);
            match groups.last_mut().filter(|(last, _)| *last == value) {
                Some((_, ids)) => ids.push(*id),
                None => groups.push((value, vec![*id])),
            }
        }
        groups
    }
}

impl Vcpu {
    /// The calls that are missing before the first entry.
    fn remark(&self) -> String {
        if self.entry.is_none() {
            return String::new();
        }
        let missing = [
            (self.has_sregs, "KVM_SET_SREGS, so in real mode at the reset vector"),
            (self.has_regs, "KVM_SET_REGS"),
            (self.has_cpuid, "KVM_SET_CPUID2, so CPUID returns zeroes"),
        ];
        let missing: Vec<_> =
            missing.iter().filter(|(is_there, _)| !is_there).map(|(_, name)| *name).collect();
        if missing.is_empty() { String::new() } else { format!("without {}", missing.join(", and without ")) }
    }
}

/// vCPUs by number.
fn vcpus(ids: &[u32]) -> String {
    match ids {
        [first, .., last] => format!("vCPUs {first} to {last}"),
        [only] => format!("vCPU {only}"),
        [] => String::new(),
    }
}

/// True if a slot is small, can be read, and has only zeroes.
fn holds_zeroes(slot: &MemorySlot, stop: &Stop, memory: &ObservedMemory) -> bool {
    if slot.size > SEARCHED {
        return false;
    }
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < slot.size {
        let size = slot.size.saturating_sub(at).min(PIECE as u64);
        let Some(piece) = piece.get_mut(..size as usize) else { return false };
        let gpa = Gpa(slot.gpa.saturating_add(at));
        if !memory.read(stop.vcpu.vm, stop.process, gpa, piece) || piece.iter().any(|byte| *byte != 0) {
            return false;
        }
        at = at.saturating_add(size);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{StopCause, VcpuId};

    #[test]
    fn only_slots_with_a_row_are_searched_for_content() {
        let process = std::process::id().cast_signed();
        let (zeroes, mut memory) = ([0u8; 4096], ObservedMemory::default());
        for number in 0..1000u32 {
            let words = [u64::from(number), u64::from(number) << 20, 4096, zeroes.as_ptr() as u64];
            let data = words.into_iter().flat_map(u64::to_ne_bytes).collect();
            let (target, request) = (Target::Vm(1), 0x4020_ae46);
            memory.follow(&Call { process, target, request, argument: 0, data, result: 0 });
        }
        let (vcpu, cause) = (VcpuId { vm: 1, vcpu: 0 }, StopCause::FirstEntry);
        let mut machine = Machine::default();
        machine.entered(&Stop { vcpu, process, cause, registers: None }, &memory);
        assert_eq!((machine.map.slots.len(), machine.map.zeroes.len()), (1000, MOST_ROWS));
    }
}
