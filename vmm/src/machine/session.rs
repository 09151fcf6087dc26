//! One run of a machine: its vCPUs and its background work, until the machine stops.

use crate::console::output::Output;
use crate::controller::vcpu::Vcpu;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, KickTimer};
use crate::machine::background::{Background, SideResult};
use crate::machine::debug::{Debuggable, Debugger, Parts, debugged};
use crate::machine::ending::{Reasons, ending};
use crate::machine::processors::Processors;
use crate::machine::sample::{SampleReport, Sampled, Sampling, sampled};
use crate::machine::turns;
use crate::machine::vcpu_run::{RunContext, VcpuResult, VcpuRun};
use crate::machine::watched::WatchedVcpu;
use crate::machine::{Machine, VcpuControllers};
use crate::run::vcpu_threads::{VcpuResults, VcpuThreads, WithKicks};
use crate::shutdown::Deadline;
use std::sync::Arc;

/// The result of a run.
pub(super) struct RunResult {
    pub(super) stop: Stop,
    pub(super) vcpus: Vec<(Stop, VcpuResult)>,
    /// The index of the vCPU that stopped the machine; 0 if each stopped by itself.
    pub(super) stopped_by: usize,
    pub(super) side: SideResult,
    pub(super) samples: Option<SampleReport>,
}

/// Something that watches the vCPUs of a run.
pub(super) enum Watch<'a> {
    Nothing,
    Debugger(&'a mut dyn Debugger),
    Sampling(&'a mut Sampling),
}

/// Runs the vCPUs and the background work of a machine until it stops. The first vCPU runs on the calling thread.
///
/// # Errors
/// The host failed before the guest ran. A later failure is the end of the run ([`Stop::HostFailed`]), so that the text
/// that the guest has printed and the exits that were recorded are not lost.
pub(super) fn run_machine(machine: &mut Machine, watch: Watch<'_>) -> Result<RunResult, Error> {
    let kicks = machine.needs_kicks();
    let Machine { processors, controllers, devices, msrs, background, output, timer, memory, .. } = machine;
    let deadline = Deadline::after(machine.timeout).with_wall_limit(machine.wall_timeout);
    output.begin_run(deadline.clone(), machine.output_limit);
    let context = RunContext {
        devices,
        msrs,
        output,
        // The timer repeats, so it also kicks at the longer limit.
        limit: machine.timeout.into_iter().chain(machine.wall_timeout).chain(kicks).min(),
        deadline,
        clock: machine.clock.map(|clock| (clock, clock.now())),
        trace: machine.trace,
        by_address: machine.by_address,
        timeline: background.timeline(),
        inquiry: background.inquiry(),
        is_linux: matches!(background, Background::Pc(_)),
    };
    let leaves_on_halt = !matches!(background, Background::Pc(_) | Background::Classic(_));
    let parts = Parts {
        memory,
        devices,
        deadline: &context.deadline,
        inquiry: context.inquiry.as_deref(),
        leaves_on_halt,
    };
    let ran = match (processors, watch) {
        (Processors::Kvm { vcpus, .. }, Watch::Nothing) => {
            run_threads(vcpus, controllers, &context, background, timer)
        }
        (Processors::Soft(vcpus), Watch::Nothing) => {
            turns::run(vcpus, controllers, &context, background, timer)
        }
        (Processors::Kvm { vcpus, .. }, watch) => watched(vcpus, &parts, watch, |vcpus| {
            run_threads(vcpus, controllers, &context, background, timer)
        }),
        (Processors::Soft(vcpus), watch) => {
            watched(vcpus, &parts, watch, |vcpus| turns::run(vcpus, controllers, &context, background, timer))
        }
    };
    timer.iter_mut().for_each(KickTimer::stop);
    ran
}

/// Runs vCPUs that are watched.
fn watched<V: Debuggable + Sampled>(
    vcpus: &mut [V],
    parts: &Parts<'_>,
    watch: Watch<'_>,
    run: impl FnOnce(&mut [WatchedVcpu<'_, '_, V>]) -> Result<RunResult, Error>,
) -> Result<RunResult, Error> {
    match watch {
        Watch::Debugger(debugger) => debugged(vcpus, parts, debugger, |vcpus| {
            let watched = vcpus.into_iter().map(|by| WatchedVcpu::debugged(by, parts.memory));
            run(&mut watched.collect::<Option<Vec<_>>>().unwrap_or_default())
        })?,
        Watch::Sampling(sampling) => {
            let (ran, samples) = sampled(vcpus, parts, sampling, |vcpus| {
                let watched = vcpus.into_iter().map(|by| WatchedVcpu::sampled(by, parts.memory));
                run(&mut watched.collect::<Vec<_>>())
            })?;
            Ok(RunResult { samples: Some(samples), ..ran? })
        }
        Watch::Nothing => Err(Error::Config("nothing watches the vCPUs".into())),
    }
}

/// Runs vCPUs of KVM, each on its own thread.
fn run_threads<V: WithKicks + Vcpu>(
    vcpus: &mut [V],
    controllers: &mut [VcpuControllers],
    context: &RunContext<'_>,
    background: &mut Background,
    timer: &mut Option<KickTimer>,
) -> Result<RunResult, Error> {
    let deadline = &context.deadline;
    let threads = Arc::new(VcpuThreads::new(vcpus.len(), deadline.clone()));
    let (Some((first, others)), Some((for_first, for_others))) =
        (vcpus.split_first_mut(), controllers.split_first_mut())
    else {
        return Err(Error::Config("a machine without a vCPU cannot run".into()));
    };
    let run = |vcpu: &mut V, own| VcpuRun::new(context, vcpu.id(), own).run(vcpu);
    first.with_kicks(|first, kicker| {
        context.restart(timer)?;
        threads.enter(0, kicker);
        let running = background.start(deadline, threads.clone())?;
        let results = threads.run(
            others.iter_mut().zip(for_others),
            || run(first, for_first),
            |vcpu, own| match context.timer() {
                Ok(_timer) => run(vcpu, own),
                Err(error) => (error.into(), VcpuResult::default()),
            },
        );
        let side = running.finish(deadline);
        // The timer still runs: it interrupts a write that blocks.
        Ok(end(results, side, context.output))
    })?
}

/// Writes the text that is still buffered, and decides how the run ended.
pub(super) fn end(results: VcpuResults<VcpuResult>, side: SideResult, output: &Output) -> RunResult {
    let VcpuResults { vcpus, stopped_by } = results;
    let stop = ending(Reasons {
        vcpus: &vcpus.iter().map(|(stop, _)| stop).collect::<Vec<_>>(),
        stopped_by,
        background: side.stop.as_ref(),
        panic: side.boot.as_ref().and_then(|boot| boot.panic.as_deref()),
        output: output.clone().end_run(),
        interrupted: host::interrupted(),
    });
    RunResult { stop, vcpus, stopped_by: stopped_by.unwrap_or(0), side, samples: None }
}
