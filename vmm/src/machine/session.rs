//! One run of a machine: its vCPUs, each with its chain of controllers, until the machine stops.

use crate::console::output::Output;
use crate::controller::hypercall::{FailedCalls, Hypercalls};
use crate::controller::inquiry::{Inquiry, Respondent};
use crate::controller::msr::{MsrForwarder, MsrPolicy};
use crate::controller::{Devices, ExitController, OpenBus, TerminalExits, VcpuState, Watchdog};
use crate::error::Error;
use crate::exit::{Exit, Outcome, Stop};
use crate::host::{self, KickTimer};
use crate::kvm::vcpu::KvmVcpu;
use crate::machine::background::SideResult;
use crate::machine::ending::{Reasons, ending};
use crate::machine::{Machine, VcpuControllers};
use crate::profile::clock::Clock;
use crate::profile::recorder::{Recorder, Recording};
use crate::profile::timeline::Timeline;
use crate::run;
use crate::run::vcpu_threads::{VcpuResults, VcpuThreads};
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

/// The result of a run.
pub(super) struct RunResult {
    pub(super) stop: Stop,
    pub(super) vcpus: Vec<(Stop, VcpuResult)>,
    /// The index of the vCPU that stopped the machine; 0 if each stopped by itself.
    pub(super) stopped_by: usize,
    pub(super) side: SideResult,
}

/// The parts of a machine that its vCPUs share during a run.
struct RunContext<'a> {
    devices: &'a Devices,
    msrs: &'a MsrPolicy,
    output: &'a Output,
    /// The time after which the vCPUs are kicked: the shorter one of the run's limits.
    limit: Option<Duration>,
    deadline: Deadline,
    timeline: Option<Arc<Timeline>>,
    /// The questions to the vCPUs of a boot.
    inquiry: Option<Arc<Inquiry>>,
    /// The clock that times exits, and its reading at the start of the run.
    clock: Option<(Clock, u64)>,
    /// The number of exits that a trace keeps.
    trace: Option<usize>,
}

impl RunContext<'_> {
    /// Starts a timer that kicks the calling thread at the limit of the run.
    fn timer(&self) -> Result<Option<KickTimer>, Error> {
        let mut timer = None;
        self.restart(&mut timer)?;
        Ok(timer)
    }

    /// Starts the timer of an earlier run again.
    fn restart(&self, timer: &mut Option<KickTimer>) -> Result<(), Error> {
        let restart = |limit| KickTimer::restart(timer, limit);
        self.limit.map_or(Ok(()), restart).map_err(Error::host("starting the watchdog"))
    }

    /// The side of a boot's vCPU that answers questions. The first vCPU of a boot has number 0.
    fn respondent(&self, vcpu: u32) -> Option<Respondent> {
        let index = usize::try_from(vcpu).ok()?;
        Some(Respondent { inquiry: self.inquiry.clone()?, index })
    }

    /// Runs one vCPU until it stops, on the calling thread, which handles kicks.
    fn run(&self, vcpu: &mut KvmVcpu, controllers: &mut VcpuControllers) -> (Stop, VcpuResult) {
        let recorder = |(clock, origin)| Recorder::new(clock, origin, self.trace, self.timeline.clone());
        let mut recorder = self.clock.map(recorder);
        let mut open_bus = OpenBus::default();
        let (deadline, respondent) = (self.deadline.clone(), self.respondent(vcpu.number()));
        let mut own = match respondent.clone() {
            None => OfItsKind::Bare(Hypercalls::new(self.output.clone())),
            Some(respondent) => OfItsKind::Pc(respondent),
        };
        let run = || {
            let watchdog = Watchdog { deadline, respondent };
            let last = (self.devices, (MsrForwarder(self.msrs), (TerminalExits, &mut open_bus)));
            let VcpuControllers { callers, printer } = &mut *controllers;
            let mut chain = (watchdog, (&mut callers.0, (&mut own, (self.msrs, (printer, last)))));
            run::run(vcpu, &mut chain, recorder.as_mut())
        };
        // After a panic the machine stops, so a controller in a half-changed state is not asked again in this run.
        let stop = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(stop) => stop,
            Err(panic) => Stop::failed(format!("it panicked: {}", message(&*panic))),
        };
        let failed_calls = match &own {
            OfItsKind::Bare(hypercalls) => hypercalls.failed(),
            OfItsKind::Pc(_) => None,
        };
        (stop, VcpuResult { recording: recorder.map(Recorder::finish), open_bus, failed_calls })
    }
}

/// The controller that depends on the kind of the machine.
enum OfItsKind {
    Bare(Hypercalls),
    /// Linux does not know the hypercalls.
    Pc(Respondent),
}

impl ExitController for OfItsKind {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match self {
            Self::Bare(hypercalls) => hypercalls.handle(exit, vcpu),
            Self::Pc(respondent) => respondent.handle(exit, vcpu),
        }
    }
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Runs the vCPUs and the background work of a machine until it stops. The first vCPU runs on the calling thread.
///
/// # Errors
/// The host failed before the guest ran. A later failure is the end of the run ([`Stop::HostFailed`]), so that the text
/// that the guest has printed and the exits that were recorded are not lost.
pub(super) fn run_machine(machine: &mut Machine) -> Result<RunResult, Error> {
    let Machine { vcpus, controllers, devices, msrs, background, output, timer, .. } = machine;
    let deadline = Deadline::after(machine.timeout).with_wall_limit(machine.wall_timeout);
    output.begin_run(deadline.clone(), machine.output_limit);
    let context = RunContext {
        devices,
        msrs,
        output,
        // The timer repeats, so it also kicks at the longer limit.
        limit: machine.timeout.into_iter().chain(machine.wall_timeout).min(),
        deadline: deadline.clone(),
        clock: machine.clock.map(|clock| (clock, clock.now())),
        trace: machine.trace,
        timeline: background.timeline(),
        inquiry: background.inquiry(),
    };
    let threads = Arc::new(VcpuThreads::new(vcpus.len(), deadline.clone()));
    let (Some((first, others)), Some((for_first, for_others))) =
        (vcpus.split_first_mut(), controllers.split_first_mut())
    else {
        return Err(Error::Config("a machine without a vCPU cannot run".into()));
    };
    let ran = first.with_kicks(|first, kicker| {
        context.restart(timer)?;
        threads.enter(0, kicker);
        let running = background.start(&deadline, threads.clone())?;
        let results = threads.run(
            others.iter_mut().zip(for_others),
            || context.run(first, for_first),
            |vcpu, own| match context.timer() {
                Ok(_timer) => context.run(vcpu, own),
                Err(error) => (error.into(), VcpuResult::default()),
            },
        );
        let side = running.finish(&deadline);
        // The timer still runs: it interrupts a write that blocks.
        Ok(end(results, side, output))
    });
    timer.iter_mut().for_each(KickTimer::stop);
    ran?
}

/// Writes the text that is still buffered, and decides how the run ended.
fn end(results: VcpuResults<VcpuResult>, side: SideResult, output: &Output) -> RunResult {
    let VcpuResults { vcpus, stopped_by } = results;
    let stop = ending(Reasons {
        vcpus: &vcpus.iter().map(|(stop, _)| stop).collect::<Vec<_>>(),
        stopped_by,
        background: side.stop.as_ref(),
        panic: side.boot.as_ref().and_then(|boot| boot.panic.as_deref()),
        output: output.clone().end_run(),
        interrupted: host::interrupted(),
    });
    RunResult { stop, vcpus, stopped_by: stopped_by.unwrap_or(0), side }
}
