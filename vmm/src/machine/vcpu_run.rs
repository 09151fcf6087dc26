//! One run of a vCPU: its chain of controllers, and its records.

use crate::console::output::Output;
use crate::controller::hypercall::{FailedCalls, Hypercalls};
use crate::controller::inquiry::{Inquiry, Respondent};
use crate::controller::msr::{MsrForwarder, MsrPolicy};
use crate::controller::vcpu::{Entry, Vcpu};
use crate::controller::{Devices, ExitController, OpenBus, TerminalExits, VcpuState, Watchdog};
use crate::error::Error;
use crate::exit::{Exit, Outcome, Stop};
use crate::host::KickTimer;
use crate::machine::VcpuControllers;
use crate::profile::clock::Clock;
use crate::profile::recorder::{Recorder, Recording};
use crate::profile::timeline::Timeline;
use crate::run;
use crate::shutdown::Deadline;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// The records of one vCPU after a run.
#[derive(Default)]
pub(super) struct VcpuResult {
    pub(super) recording: Option<Recording>,
    pub(super) open_bus: OpenBus,
    /// The hypercalls that failed, if any.
    pub(super) failed_calls: Option<FailedCalls>,
}

/// The parts of a machine that its vCPUs share during a run.
pub(super) struct RunContext<'a> {
    pub(super) devices: &'a Devices,
    pub(super) msrs: &'a MsrPolicy,
    pub(super) output: &'a Output,
    /// The time after which the vCPUs are kicked: the shorter one of the run's limits.
    pub(super) limit: Option<Duration>,
    pub(super) deadline: Deadline,
    pub(super) timeline: Option<Arc<Timeline>>,
    /// The questions to the vCPUs of a PC.
    pub(super) inquiry: Option<Arc<Inquiry>>,
    /// The guest is Linux.
    pub(super) is_linux: bool,
    /// The clock that times exits, and its reading at the start of the run.
    pub(super) clock: Option<(Clock, u64)>,
    /// The number of exits that a trace keeps.
    pub(super) trace: Option<usize>,
    /// Exits are also counted per address of the guest's code.
    pub(super) by_address: bool,
}

impl RunContext<'_> {
    /// Starts a timer that kicks the calling thread at the limit of the run.
    pub(super) fn timer(&self) -> Result<Option<KickTimer>, Error> {
        let mut timer = None;
        self.restart(&mut timer)?;
        Ok(timer)
    }

    /// Starts the timer of an earlier run again.
    pub(super) fn restart(&self, timer: &mut Option<KickTimer>) -> Result<(), Error> {
        let restart = |limit| KickTimer::restart(timer, limit);
        self.limit.map_or(Ok(()), restart).map_err(Error::host("starting the watchdog"))
    }

    /// The side of a PC's vCPU that answers questions. The first vCPU of a PC has number 0.
    fn respondent(&self, vcpu: u32) -> Option<Respondent> {
        let index = usize::try_from(vcpu).ok()?;
        Some(Respondent { inquiry: self.inquiry.clone()?, index })
    }
}

/// A run of one vCPU.
pub(super) struct VcpuRun<'a> {
    context: &'a RunContext<'a>,
    controllers: &'a mut VcpuControllers,
    watchdog: Watchdog,
    own: OfItsKind,
    open_bus: OpenBus,
    recorder: Option<Recorder>,
}

impl<'a> VcpuRun<'a> {
    /// Prepares a run of the vCPU with this number.
    pub(super) fn new(context: &'a RunContext<'a>, vcpu: u32, controllers: &'a mut VcpuControllers) -> Self {
        let recorder = |(clock, origin)| {
            Recorder::new(clock, origin, context.trace, context.by_address, context.timeline.clone())
        };
        let respondent = context.respondent(vcpu);
        controllers.bios.iter_mut().for_each(|bios| bios.begin_run(context.deadline.clone()));
        Self {
            controllers,
            own: match respondent.clone() {
                None => OfItsKind::Bare(Hypercalls::new(context.output.clone())),
                Some(respondent) if context.is_linux => OfItsKind::Linux(respondent),
                Some(respondent) => OfItsKind::Classic(respondent, Hypercalls::new(context.output.clone())),
            },
            watchdog: Watchdog { deadline: context.deadline.clone(), respondent },
            open_bus: OpenBus::default(),
            recorder: context.clock.map(recorder),
            context,
        }
    }

    /// The chain of controllers, and the recorder.
    fn parts(&mut self) -> (impl ExitController, Option<&mut Recorder>) {
        let Self { context, controllers, watchdog, own, open_bus, recorder } = self;
        let last = (context.devices, (MsrForwarder(context.msrs), (TerminalExits, open_bus)));
        let VcpuControllers { callers, printer, bios } = &mut **controllers;
        let chain = (bios, (watchdog, (&mut callers.0, (own, (context.msrs, (printer, last))))));
        (chain, recorder.as_mut())
    }

    /// Runs the vCPU until it stops, on the calling thread, which handles kicks.
    pub(super) fn run(mut self, vcpu: &mut impl Vcpu) -> (Stop, VcpuResult) {
        let run = || {
            let (mut chain, recorder) = self.parts();
            run::run(vcpu, &mut chain, recorder)
        };
        let stop = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| panicked(&*panic));
        (stop, self.finish())
    }

    /// Begins the run of a vCPU that runs in slices. Returns the reason if the vCPU has already stopped.
    pub(super) fn begin(&mut self, vcpu: &mut impl Vcpu) -> Option<Stop> {
        let begin = || self.parts().0.begin(vcpu).break_value();
        let stop = catch_unwind(AssertUnwindSafe(begin)).unwrap_or_else(|panic| Some(panicked(&*panic)));
        self.recorder.iter_mut().for_each(Recorder::begin);
        stop
    }

    /// Runs the vCPU for a slice: see [`run::run_slice`].
    pub(super) fn run_slice(
        &mut self,
        vcpu: &mut impl Vcpu,
        entry: &mut Entry,
        again: &mut Option<Exit>,
    ) -> Option<Stop> {
        let deadline = &self.context.deadline;
        self.recorder.iter_mut().for_each(Recorder::resume);
        let run = || {
            let (mut chain, recorder) = self.parts();
            run::run_slice(vcpu, &mut chain, recorder, entry, deadline, again)
        };
        let stop = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Some(panicked(&*panic)));
        self.recorder.iter_mut().for_each(Recorder::pause);
        stop
    }

    /// The records of the run.
    pub(super) fn finish(self) -> VcpuResult {
        let failed_calls = match &self.own {
            OfItsKind::Bare(hypercalls) | OfItsKind::Classic(_, hypercalls) => hypercalls.failed(),
            OfItsKind::Linux(_) => None,
        };
        VcpuResult { recording: self.recorder.map(Recorder::finish), open_bus: self.open_bus, failed_calls }
    }
}

/// The stop of a vCPU whose controller panicked. The machine then stops, so a controller in a half-changed state is not
/// asked again in this run.
fn panicked(panic: &(dyn Any + Send)) -> Stop {
    Stop::failed(format!("it panicked: {}", message(panic)))
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// The controller that depends on the kind of the machine.
enum OfItsKind {
    Bare(Hypercalls),
    /// The vCPU of a classic PC is asked if it has halted.
    Classic(Respondent, Hypercalls),
    /// Linux does not know the hypercalls.
    Linux(Respondent),
}

impl ExitController for OfItsKind {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self {
            Self::Bare(hypercalls) => hypercalls.handle(exit, vcpu),
            Self::Classic(respondent, hypercalls) => {
                let _ = respondent.handle(exit, vcpu);
                hypercalls.handle(exit, vcpu)
            }
            Self::Linux(respondent) => respondent.handle(exit, vcpu),
        }
    }
}
