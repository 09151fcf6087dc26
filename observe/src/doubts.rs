//! Reasons to doubt that an observed guest did its work, although it only halted.
//!
//! They are those of this program's own guests ([`Doubt`]), as far as the registers at the halt, the memory and the exits show
//! them.

use crate::death::View;
use crate::engine::{Call, Event, Record, Stop, StopCause, Target, VcpuId};
use crate::memory::ObservedMemory;
use std::collections::{BTreeMap, BTreeSet};
use vmm::controller::Location;
use vmm::machine::{Doubt, HaltedVcpu};

/// KVM_EXIT_HLT.
const HLT: u32 = 5;
/// The most vCPUs whose exits are followed, and the most whose doubts are kept.
const MOST_VCPUS: usize = 1024;
const MOST_HALTED: usize = 64;
/// The numbers of KVM_REGISTER_COALESCED_MMIO and KVM_IOEVENTFD.
const QUIET: [u32; 2] = [0x67, 0x79];

/// The doubts about a vCPU that has halted.
#[derive(Clone, Debug)]
pub struct HaltedGuest {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The place of the vCPU.
    pub location: Location,
    /// The doubts, the most telling one first, as clauses.
    pub doubts: Vec<String>,
}

impl HaltedGuest {
    /// The place and the doubts.
    pub fn text(&self) -> String {
        format!("{}; {}", self.location, self.doubts.join("; "))
    }
}

/// The exits of a vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The number of stops at a halt.
    stops: u64,
    halts: u64,
    others: u64,
    /// The last exit was a halt.
    has_halted: bool,
}

/// Follows the exits of an observation, and looks at the vCPUs that halt. Hand it each event.
#[derive(Debug, Default)]
pub struct Doubts {
    seen: BTreeMap<VcpuId, Seen>,
    halted: BTreeMap<VcpuId, (Location, Vec<Doubt>)>,
    /// The VMs whose guests reach the program without an exit.
    quiet: BTreeSet<u32>,
}

impl Doubts {
    /// Takes an event.
    pub fn see(&mut self, event: &Event, memory: &ObservedMemory) {
        match event {
            Event::Returned(vcpu, record) if record.result >= 0 => self.returned(*vcpu, record),
            Event::Stopped(stop) => self.stopped(stop, memory),
            Event::Called(Call { target: Target::Vm(vm), request, result: 0.., .. })
                if QUIET.contains(&(request & 0xff)) && self.quiet.len() < MOST_VCPUS =>
            {
                self.quiet.insert(*vm);
            }
            _ => {}
        }
    }

    fn seen(&mut self, vcpu: VcpuId) -> Option<&mut Seen> {
        let is_kept = self.seen.len() < MOST_VCPUS || self.seen.contains_key(&vcpu);
        is_kept.then(|| self.seen.entry(vcpu).or_default())
    }

    fn returned(&mut self, vcpu: VcpuId, record: &Record) {
        let Some(seen) = self.seen(vcpu) else { return };
        seen.has_halted = record.reason == HLT;
        let count = if seen.has_halted { &mut seen.halts } else { &mut seen.others };
        *count = count.saturating_add(1);
    }

    fn stopped(&mut self, stop: &Stop, memory: &ObservedMemory) {
        let is_halt =
            matches!(&stop.cause, StopCause::Exit(record) if record.result >= 0 && record.reason == HLT);
        let Some(registers) = stop.registers.as_deref().filter(|_| is_halt) else { return };
        if let Some(seen) = self.seen(stop.vcpu) {
            seen.stops = seen.stops.saturating_add(1);
        }
        if self.halted.len() >= MOST_HALTED && !self.halted.contains_key(&stop.vcpu) {
            return;
        }
        let (regs, sregs) = registers;
        let view = View::new(memory, stop.vcpu.vm, stop.process);
        // Exits of the VM are counted up to its end.
        let halted = HaltedVcpu { regs, sregs, memory: &view, is_only_exit: true };
        self.halted.insert(stop.vcpu, (Location::of(sregs, regs.rip), Doubt::of_halted(&halted)));
    }

    /// The vCPUs whose last exit is a halt, and about whose guests there are doubts.
    pub fn iter(&self) -> impl Iterator<Item = HaltedGuest> {
        self.halted.iter().filter_map(|(vcpu, (location, doubts))| {
            let seen = self.seen.get(vcpu)?;
            // The vCPU does not stop at each halt.
            let is_last = seen.has_halted && seen.halts <= seen.stops;
            let exits = |seen: &Seen| seen.halts.saturating_add(seen.others);
            let of_vm = self.seen.iter().filter(|(other, _)| other.vm == vcpu.vm);
            let is_only_exit = of_vm.map(|(_, seen)| exits(seen)).sum::<u64>() == 1;
            let has_effect = !is_only_exit || self.quiet.contains(&vcpu.vm);
            let is_seen =
                |doubt: &&Doubt| !(has_effect && matches!(doubt, Doubt::NothingSeen | Doubt::NoInterrupts));
            let doubts: Vec<_> = doubts.iter().filter(is_seen).map(Doubt::of_another_program).collect();
            (is_last && !doubts.is_empty()).then_some(HaltedGuest {
                vcpu: *vcpu,
                location: *location,
                doubts,
            })
        })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use vmm::x86::{Regs, Sregs};

    const VCPU: VcpuId = VcpuId { vm: 1, vcpu: 0 };

    /// A VM whose memory is a part of this process.
    struct Guest {
        bytes: Vec<u8>,
        memory: ObservedMemory,
        doubts: Doubts,
    }

    impl Guest {
        fn new() -> Self {
            let bytes = vec![0; 0x1_0000];
            let mut memory = ObservedMemory::default();
            let words = [0, 0, 0x1_0000, bytes.as_ptr() as u64];
            let data = words.into_iter().flat_map(u64::to_ne_bytes).collect();
            let (target, request) = (Target::Vm(1), 0x4020_ae46);
            memory.follow(&Call { process: 0, target, request, argument: 0, data, result: 0 });
            Self { bytes, memory, doubts: Doubts::default() }
        }

        fn exit(&mut self, vcpu: u32, reason: u32) {
            let record = Record { reason, ..Record::default() };
            self.doubts.see(&Event::Returned(VcpuId { vm: 1, vcpu }, record), &self.memory);
        }

        /// A halt at 0x1001, at which the vCPU stops.
        fn halt(&mut self) {
            let cause = StopCause::Exit(Record { reason: HLT, ..Record::default() });
            let regs = Regs { rip: 0x1001, rsp: 0x8000, rflags: 2, ..Regs::default() };
            let process = std::process::id().cast_signed();
            let registers = Some(Box::new((regs, Sregs::default())));
            let stop = Stop { vcpu: VCPU, process, cause, registers };
            self.doubts.see(&Event::Stopped(Box::new(stop)), &self.memory);
            self.exit(0, HLT);
        }

        fn texts(&self) -> Vec<String> {
            std::hint::black_box(&self.bytes);
            self.doubts.iter().map(|guest| guest.text()).collect()
        }
    }

    const NOTHING: &str =
        "in real mode at 0000:1001; it had no visible effect: no exit but this one, and no result at 0x400";

    #[test]
    fn a_guest_that_only_halts_is_doubted() {
        let mut guest = Guest::new();
        guest.halt();
        assert_eq!(guest.texts(), [NOTHING]);
        // Another vCPU of the VM did something.
        guest.exit(1, 2);
        assert_eq!(guest.texts(), [""; 0]);
    }

    #[test]
    fn a_guest_that_goes_on_or_has_doorbells_is_not_doubted() {
        let mut guest = Guest::new();
        guest.halt();
        guest.exit(0, 2);
        assert_eq!(guest.texts(), [""; 0]);
        // A halt at which it did not stop.
        let mut guest = Guest::new();
        guest.halt();
        guest.exit(0, HLT);
        assert_eq!(guest.texts(), [""; 0]);
        let mut guest = Guest::new();
        let call = Call {
            process: 0,
            target: Target::Vm(1),
            request: 0x4040_ae79,
            argument: 0,
            data: vec![],
            result: 0,
        };
        guest.doubts.see(&Event::Called(call), &guest.memory);
        guest.halt();
        assert_eq!(guest.texts(), [""; 0]);
    }

    #[test]
    fn a_call_of_a_missing_handler_is_told_after_other_exits() {
        let mut guest = Guest::new();
        guest.bytes[0x1000..0x1003].copy_from_slice(&[0xcd, 0x10, 0xf4]);
        guest.bytes[0x7ffa..0x8000].copy_from_slice(&[0x02, 0x10, 0, 0, 0x02, 0x02]);
        guest.exit(0, 2);
        guest.bytes.copy_within(0x7ffa..0x8000, 0x8004);
        guest.halt();
        let texts = guest.texts();
        assert!(
            texts.len() == 1 && texts[0].contains("; it called int 0x10, which has no handler"),
            "{texts:?}"
        );
    }
}
