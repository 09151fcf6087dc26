//! One run of a machine with software processors: its vCPUs and its device take turns on the calling thread.
//!
//! A turn of a vCPU ends after a fixed share of instructions and exits, and the turns have a fixed order. So two runs of a
//! guest make the same exits in the same order. The deadline and signals are checked at the end of each turn.

use crate::controller::VcpuState;
use crate::controller::vcpu::Entry;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, KickTimer};
use crate::machine::VcpuControllers;
use crate::machine::background::Background;
use crate::machine::session::{RunResult, end};
use crate::machine::vcpu_run::{RunContext, VcpuRun};
use crate::run::vcpu_threads::VcpuResults;
use crate::soft::vcpu::SoftVcpu;
use std::sync::atomic::Ordering;

/// A vCPU in its run.
struct Turn<'a> {
    vcpu: &'a mut SoftVcpu,
    run: VcpuRun<'a>,
    /// The answer to the last exit.
    entry: Entry,
    /// The reason why the vCPU stopped, if it has.
    stop: Option<Stop>,
}

/// Runs software processors until the machine stops.
///
/// # Errors
/// The host failed before the guest ran.
pub(super) fn run(
    vcpus: &mut [SoftVcpu],
    controllers: &mut [VcpuControllers],
    context: &RunContext<'_>,
    background: &mut Background,
    timer: &mut Option<KickTimer>,
) -> Result<RunResult, Error> {
    let ran = host::with_kick_byte(|_, kicked| {
        context.restart(timer)?;
        let mut side = background.take_turns(&context.deadline)?;
        let mut turns: Vec<_> = vcpus
            .iter_mut()
            .zip(controllers)
            .map(|(vcpu, own)| {
                let mut run = VcpuRun::new(context, vcpu.id(), own);
                run.begin();
                Turn { vcpu, run, entry: Entry::Resume, stop: None }
            })
            .collect();
        let mut stopped_by = None;
        while stopped_by.is_none() && !side.has_stopped() && turns.iter().any(|turn| turn.stop.is_none()) {
            for (index, turn) in turns.iter_mut().enumerate().filter(|(_, turn)| turn.stop.is_none()) {
                // A kick only interrupts a blocking system call.
                kicked.store(0, Ordering::Relaxed);
                turn.stop = turn.run.run_slice(turn.vcpu, &mut turn.entry);
                side.add_rings(turn.vcpu.take_rings());
                if turn.stop.as_ref().is_some_and(|stop| !stop.parks()) {
                    stopped_by = Some(index);
                    break;
                }
                side.take_turn();
                if side.has_stopped() {
                    break;
                }
            }
        }
        let vcpus = turns.into_iter().map(|turn| (turn.stop.unwrap_or(Stop::Interrupted), turn.run.finish()));
        let results = VcpuResults { vcpus: vcpus.collect(), stopped_by };
        let side = side.finish();
        // The timer still runs: it interrupts a write that blocks.
        Ok(end(results, side, context.output))
    });
    ran.map_err(Error::host("sigaction"))?
}
