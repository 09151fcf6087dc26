//! Sampling a guest: a timer interrupts its vCPUs, and the stacks that they have then are counted. Or each exit is a sample.
//!
//! ```text
//! exit loop -> WatchedVcpu::enter -> Sampler::enter -> the vCPU
//!                                       | at a sample: registers, stack
//!                                    Collector
//! ```
//!
//! The exit loop, the controllers and the devices are those of every run. Only the vCPU is another one, as under a debugger.
//! A run without samples has none of this code on its path.
//!
//! | file | contents |
//! |---|---|
//! | `sampler.rs` | the sampler of a vCPU: when a sample is taken, and what the vCPU did |
//! | `walk.rs` | the stack of a vCPU |
//! | `kinds.rs` | the two kinds of vCPUs |

mod kinds;
mod sampler;
mod walk;

pub(super) use sampler::Sampler;

use super::debug::Parts;
use super::explain::Frame;
use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::{SampleSlot, with_samples};
use crate::profile::{StackSample, Stacks};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The highest rate of samples, per second.
pub const MAX_SAMPLE_RATE: u32 = 10_000;

/// The reason for a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleBy {
    /// Time: so many samples a second, 1 to [`MAX_SAMPLE_RATE`].
    Rate(u32),
    /// Each exit is a sample.
    Exits,
}

/// Finds the callers of a function on the guest's stack.
pub trait Unwinder: Send {
    /// The addresses to which the functions on the stack return, the innermost first.
    fn callers(&mut self, frame: &Frame) -> Vec<u64>;
}

/// A request to sample the runs of a machine.
pub struct Sampling {
    /// The reason for a sample.
    pub by: SampleBy,
    /// Finds callers. Without one, the chain of frame pointers is followed.
    pub unwinder: Option<Box<dyn Unwinder>>,
}

impl fmt::Debug for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampling").field("by", &self.by).finish_non_exhaustive()
    }
}

/// The samples of a run.
#[derive(Clone, Debug)]
pub struct SampleReport {
    /// The reason for a sample.
    pub by: SampleBy,
    /// The samples.
    pub stacks: Stacks,
    /// The time that taking the samples took, in nanoseconds: the sum over all vCPUs. The exits of the vCPUs for it are not
    /// part of it.
    pub cost: u64,
}

/// A vCPU that can be sampled.
pub(crate) trait Sampled: Vcpu + Send {
    /// A sample makes the vCPU leave its guest. Otherwise it counts instructions up to the sample.
    const LEAVES: bool;

    /// Enters the guest like [`Vcpu::enter`]. Returns `None` if the vCPU has executed `instructions`, and made no exit.
    /// Reduces `instructions` by those that it has executed.
    ///
    /// # Errors
    /// As for [`Vcpu::enter`].
    fn enter_for(&mut self, entry: Entry, instructions: &mut u64) -> Result<Option<(Exit, Arrival)>, Error>;

    /// The number of instructions that the vCPU executes at once.
    fn slice(&self) -> u64;

    /// The number of times that an interrupt of the host made the vCPU leave its guest. `None` if the host does not tell.
    fn interrupt_exits(&mut self) -> Option<u64>;
}

/// The samples of all vCPUs during a run.
pub(super) struct Collector(Mutex<Collected>);

struct Collected {
    unwinder: Option<Box<dyn Unwinder>>,
    stacks: Stacks,
    cost: Duration,
}

impl Collector {
    /// Takes a sample: `take` gets the function that finds callers. Counts it `count` times.
    fn sample(
        &self,
        count: u64,
        take: impl FnOnce(Option<&mut (dyn Unwinder + 'static)>) -> Option<StackSample>,
    ) {
        let start = Instant::now();
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = take(collected.unwinder.as_deref_mut());
        if let Some(sample) = sample {
            collected.stacks.add(sample, count);
        }
        collected.cost += start.elapsed();
    }
}

/// Runs `run` with vCPUs that are sampled. Returns its result, and the samples.
///
/// # Errors
/// The timer cannot be started.
pub(super) fn sampled<V: Sampled, R>(
    vcpus: &mut [V],
    parts: &Parts<'_>,
    sampling: &mut Sampling,
    run: impl FnOnce(Vec<Sampler<'_, '_, V>>) -> R,
) -> Result<(R, SampleReport), Error> {
    let by = sampling.by;
    let collected =
        Collected { unwinder: sampling.unwinder.take(), stacks: Stacks::default(), cost: Duration::ZERO };
    let collector = Collector(Mutex::new(collected));
    // vCPUs that take turns on one thread share its slot.
    let slots: Vec<_> =
        (0..if V::LEAVES { vcpus.len() } else { 1 }).map(|_| SampleSlot::new(V::LEAVES)).collect();
    let vcpus: Vec<_> = vcpus.iter_mut().map(Mutex::new).collect();
    let slot = |index: usize| slots.get(index).or(slots.first());
    let missing = || Error::Config("a machine without a vCPU cannot be sampled".into());
    let sampler =
        |(index, vcpu)| Some(Sampler::new(&collector, slot(index)?, by, parts.leaves_on_halt, vcpu));
    let samplers: Option<Vec<_>> = vcpus.iter().enumerate().map(sampler).collect();
    let samplers = samplers.ok_or_else(missing)?;
    let result = match (V::LEAVES, slots.first()) {
        (false, Some(slot)) => sample_thread(slot, by, || run(samplers)),
        _ => Ok(run(samplers)),
    };
    let Collected { stacks, cost, unwinder } =
        collector.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    sampling.unwinder = unwinder;
    let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
    Ok((result?, SampleReport { by, stacks, cost }))
}

/// Runs `body`, while a timer samples the calling thread, if samples are taken by time.
///
/// # Errors
/// The timer cannot be started.
pub(super) fn sample_thread<R>(
    slot: &SampleSlot,
    by: SampleBy,
    body: impl FnOnce() -> R,
) -> Result<R, Error> {
    match by {
        SampleBy::Exits => Ok(body()),
        SampleBy::Rate(rate) => {
            let interval = Duration::from_secs(1) / rate.clamp(1, MAX_SAMPLE_RATE);
            with_samples(slot, interval, body).map_err(Error::host("starting the timer of --sample"))
        }
    }
}
