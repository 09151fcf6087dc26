//! The sums over the vCPUs of a machine.

use crate::controller::OpenBus;
use crate::controller::hypercall::FailedCalls;
use crate::kvm::counters::KvmCounters;
use crate::machine::report::Timing;
use crate::machine::vcpu_run::VcpuResult;
use crate::profile::Profile;
use crate::profile::clock::Clock;
use crate::profile::trace::Trace;

/// The records of all vCPUs, added up.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) profile: Option<Profile>,
    pub(super) trace: Option<Trace>,
    pub(super) open_bus: OpenBus,
    /// The hypercalls that failed, if any.
    pub(super) failed_calls: Option<FailedCalls>,
    /// The cost of counting and timing, in nanoseconds.
    cost: u64,
    /// The number of times that a clock went backwards.
    steps: u64,
    kernel: Option<KvmCounters>,
    /// KVM did not show the counters of one of the vCPUs, so the sum is not known.
    kernel_is_incomplete: bool,
}

impl Totals {
    pub(super) fn new(trace: Option<Trace>) -> Self {
        Self { trace, ..Default::default() }
    }

    /// Adds the records of vCPU `id`.
    pub(super) fn add(&mut self, id: u32, result: VcpuResult, kernel: Option<KvmCounters>) {
        self.open_bus.absorb(&result.open_bus);
        self.failed_calls = match (self.failed_calls, result.failed_calls) {
            (Some(all), Some(more)) => Some(all.and(more)),
            (all, more) => all.or(more),
        };
        match kernel {
            Some(counters) => match &mut self.kernel {
                Some(sum) => sum.absorb(&counters),
                sum => *sum = Some(counters),
            },
            None => self.kernel_is_incomplete = true,
        }
        let Some(recording) = result.recording else { return };
        self.cost = self.cost.saturating_add(recording.cost);
        self.steps = self.steps.saturating_add(recording.steps);
        self.trace.iter_mut().for_each(|trace| trace.add(id, &recording));
        match &mut self.profile {
            Some(all) => all.absorb(&recording.profile),
            all => *all = Some(recording.profile),
        }
    }

    pub(super) fn timing(&self, clock: Clock) -> Timing {
        Timing { clock, cost: self.cost, steps: self.steps }
    }

    pub(super) fn kernel(&mut self) -> Option<KvmCounters> {
        self.kernel.take().filter(|_| !self.kernel_is_incomplete)
    }
}
