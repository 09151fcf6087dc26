//! The sampler of a vCPU: it decides when a sample is taken, and what the vCPU did.

use super::walk::addresses;
use super::{Collector, SampleBy, Sampled};
use crate::controller::VcpuState;
use crate::controller::vcpu::{Activity, Entry};
use crate::error::Error;
use crate::exit::{Arrival, Exit, Reason, Site};
use crate::host::SampleSlot;
use crate::profile::{SampleKind, StackSample};
use std::sync::{Mutex, PoisonError};

/// The sampler of one vCPU.
pub(crate) struct Sampler<'s, 'a, V> {
    vcpu: &'s Mutex<&'a mut V>,
    collector: &'s Collector,
    slot: &'s SampleSlot,
    by: SampleBy,
    /// HLT is an exit: no vCPU is halted in its guest.
    leaves_on_halt: bool,
    /// The number of the vCPU.
    id: u32,
    /// The site of the last exit. `None` before the first one, and after an interruption.
    last: Option<Site>,
    /// The number of instructions up to the sample that is due.
    countdown: Option<u64>,
    /// The number of interrupts of the host that made the vCPU leave its guest, at the last entry.
    interrupts: Option<u64>,
    random: u64,
}

impl<'s, 'a, V: Sampled> Sampler<'s, 'a, V> {
    pub(super) fn new(
        collector: &'s Collector,
        slot: &'s SampleSlot,
        by: SampleBy,
        leaves_on_halt: bool,
        vcpu: &'s Mutex<&'a mut V>,
    ) -> Self {
        let id = vcpu.lock().unwrap_or_else(PoisonError::into_inner).id();
        let random = 0x9e37_79b9_7f4a_7c15 ^ u64::from(id);
        Self {
            vcpu,
            collector,
            slot,
            by,
            leaves_on_halt,
            id,
            last: None,
            countdown: None,
            interrupts: None,
            random,
        }
    }

    /// The vCPU itself.
    pub(crate) fn vcpu(&self) -> &'s Mutex<&'a mut V> {
        self.vcpu
    }

    /// The slot of the vCPU's thread, and the reason for samples.
    pub(crate) fn timer(&self) -> (&'s SampleSlot, SampleBy) {
        (self.slot, self.by)
    }

    /// Enters the guest. Returns the next exit.
    ///
    /// # Errors
    /// The host cannot run the vCPU.
    pub(crate) fn enter(&mut self, mut entry: Entry) -> Result<(Exit, Arrival), Error> {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let vcpu: &mut V = &mut vcpu;
        let in_vmm = self.slot.pause();
        if in_vmm > 0 {
            self.take(vcpu, SampleKind::Vmm(self.last), in_vmm.into());
        }
        if V::LEAVES && self.by != SampleBy::Exits {
            self.interrupts = vcpu.interrupt_exits();
        }
        loop {
            let mut left = self.countdown.unwrap_or(u64::MAX);
            self.slot.enter();
            let entered = vcpu.enter_for(entry, &mut left);
            let interrupted = matches!(entered, Ok(Some((Exit::Interrupted, _))));
            let is_due = self.slot.leave(interrupted);
            if let Some(countdown) = &mut self.countdown {
                *countdown = left.max(1);
            }
            let Some((exit, arrival)) = entered? else {
                self.countdown = None;
                self.take(vcpu, SampleKind::Guest, 1);
                entry = Entry::Resume;
                continue;
            };
            if is_due {
                self.due(vcpu);
            }
            self.last = Site::of(&exit);
            if self.by == SampleBy::Exits
                && arrival == Arrival::FromGuest
                && let Some(site) = self.last
            {
                self.take(vcpu, SampleKind::Exit(site), 1);
            }
            self.slot.handle_exit();
            return Ok((exit, arrival));
        }
    }

    /// Takes the sample that is due, or chooses the instruction at which it is taken.
    fn due(&mut self, vcpu: &mut V) {
        if !V::LEAVES {
            // Slices end at fixed numbers of instructions, so their ends would always meet the same code of a loop.
            let slice = vcpu.slice().max(1);
            let after = self.random() % slice + 1;
            self.countdown.get_or_insert(after);
            return;
        }
        if let Some(kind) = self.kind(vcpu) {
            self.take(vcpu, kind, 1);
        }
    }

    /// The activity of the vCPU when the sample made it leave KVM_RUN. `None` if it has not been started.
    ///
    /// The interrupt of the sample's timer makes a vCPU leave its guest, which KVM counts (`irq_exits`). If the thread was in
    /// KVM's own code, the interrupt finds no guest, and is not counted. Another interrupt of the host since the last entry
    /// can make a sample in KVM one in the guest.
    fn kind(&self, vcpu: &mut V) -> Option<SampleKind> {
        if !self.leaves_on_halt {
            match vcpu.activity() {
                Activity::Running => {}
                Activity::Halted => return Some(SampleKind::Halted),
                Activity::NotStarted => return None,
            }
        }
        Some(match (self.interrupts, vcpu.interrupt_exits()) {
            (Some(before), Some(now)) if now == before => SampleKind::Kvm,
            (Some(_), Some(_)) => SampleKind::Guest,
            _ => SampleKind::GuestOrKvm,
        })
    }

    /// Takes a sample.
    fn take(&self, vcpu: &mut dyn VcpuState, kind: SampleKind, count: u64) {
        // The exit loop waits for input in a HLT that is an exit.
        let halted = matches!(kind, SampleKind::Vmm(Some(site)) if site.reason == Reason::Hlt);
        let kind = if halted { SampleKind::Halted } else { kind };
        self.collector.sample(count, |unwinder| {
            let addresses = addresses(vcpu, unwinder)?;
            Some(StackSample { vcpu: self.id, kind, addresses: addresses.into() })
        });
    }

    /// The next number of a sequence without a pattern (xorshift).
    fn random(&mut self) -> u64 {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.random ^= if left { self.random << shift } else { self.random >> shift };
        }
        self.random
    }
}
