//! One run of a machine with software processors: its vCPUs and its device take turns on the calling thread.
//!
//! A turn of a vCPU ends after a fixed share of instructions and exits, and the turns have a fixed order. So two runs of a
//! guest make the same exits in the same order. The deadline and signals are checked at the end of each turn.

use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Exit, Stop};
use crate::host::{self, KickTimer, Kicker, REPEAT};
use crate::machine::VcpuControllers;
use crate::machine::background::Background;
use crate::machine::session::{RunResult, end};
use crate::machine::vcpu_run::{RunContext, VcpuRun};
use crate::run::vcpu_threads::VcpuResults;
use crate::shutdown::{Kick, Wait};
use crate::soft::vcpu::SoftVcpu;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The thread of the processors.
struct OneThread(Kicker);

impl Kick for OneThread {
    fn kick_all(&self) {
        self.0.kick();
    }
}

/// A vCPU that takes turns.
pub(super) trait TurnVcpu: Vcpu {
    /// The number of rings of SIMVIRTIO's doorbell since the last call.
    fn take_rings(&mut self) -> u64;
}

impl TurnVcpu for SoftVcpu {
    fn take_rings(&mut self) -> u64 {
        Self::take_rings(self)
    }
}

/// A vCPU in its run.
struct Turn<'a, V> {
    vcpu: &'a mut V,
    run: VcpuRun<'a>,
    /// The answer to the last exit.
    entry: Entry,
    /// The exit that must be handled again, because it waits for input.
    again: Option<Exit>,
    /// The vCPU has printed text that waits for its reader.
    prints: bool,
    /// The reason why the vCPU stopped, if it has.
    stop: Option<Stop>,
}

impl<V: TurnVcpu> Turn<'_, V> {
    /// Takes a turn, unless text of the vCPU waits for its reader. `text_waits` is set if any text does. Returns its new value.
    fn take(&mut self, context: &RunContext<'_>, mut text_waits: bool) -> bool {
        if text_waits {
            self.stop = context.output.go_on().break_value();
            text_waits = context.deadline.go_on().is_some();
        }
        self.prints &= text_waits;
        if self.stop.is_some() || self.prints {
            return text_waits;
        }
        self.stop = self.run.run_slice(self.vcpu, &mut self.entry, &mut self.again);
        self.prints = context.deadline.go_on() == Some(Wait::Reader);
        text_waits || self.prints
    }
}

/// Starts the timer of a run. With several vCPUs it also interrupts writes that block, so that they give way.
fn start_timer(vcpus: usize, context: &RunContext<'_>, timer: &mut Option<KickTimer>) -> Result<(), Error> {
    if vcpus == 1 {
        return context.restart(timer);
    }
    let first = context.limit.map_or(REPEAT, |limit| limit.min(REPEAT));
    KickTimer::restart(timer, first).map_err(Error::host("starting the watchdog"))
}

/// Runs software processors until the machine stops.
///
/// # Errors
/// The host failed before the guest ran.
pub(super) fn run<V: TurnVcpu>(
    vcpus: &mut [V],
    controllers: &mut [VcpuControllers],
    context: &RunContext<'_>,
    background: &mut Background,
    timer: &mut Option<KickTimer>,
) -> Result<RunResult, Error> {
    let ran = host::with_kick_byte(|kicker, kicked| {
        start_timer(vcpus.len(), context, timer)?;
        let mut side = background.take_turns(&context.deadline, Arc::new(OneThread(kicker)))?;
        let mut turns: Vec<_> = vcpus
            .iter_mut()
            .zip(controllers)
            .map(|(vcpu, own)| {
                let mut run = VcpuRun::new(context, vcpu.id(), own);
                let stop = run.begin(vcpu);
                Turn { vcpu, run, entry: Entry::Resume, again: None, prints: false, stop }
            })
            .collect();
        let ends = |turn: &Turn<'_, V>| turn.stop.as_ref().is_some_and(|stop| !stop.parks());
        let mut stopped_by = turns.iter().position(ends);
        let mut text_waits = false;
        while stopped_by.is_none() && !side.has_stopped() && turns.iter().any(|turn| turn.stop.is_none()) {
            for index in 0..turns.len() {
                let running = turns.iter().filter(|turn| turn.stop.is_none()).count();
                context.deadline.share_thread(running > 1);
                let Some(turn) = turns.get_mut(index).filter(|turn| turn.stop.is_none()) else { continue };
                // A kick only interrupts a blocking system call.
                kicked.store(0, Ordering::Relaxed);
                text_waits = turn.take(context, text_waits);
                side.add_rings(turn.vcpu.take_rings());
                if ends(turn) {
                    stopped_by = Some(index);
                    break;
                }
                if !text_waits {
                    side.take_turn();
                    text_waits = context.deadline.go_on().is_some();
                }
                if side.has_stopped() {
                    break;
                }
            }
        }
        context.deadline.share_thread(false);
        // On KVM the thread of such a vCPU is kicked out of its write. The device's text still goes to a slow reader.
        if (stopped_by.is_some() || side.has_stopped()) && turns.iter().any(|turn| turn.prints) {
            context.output.drop_waiting();
        }
        let vcpus = turns.into_iter().map(|turn| (turn.stop.unwrap_or(Stop::Interrupted), turn.run.finish()));
        let results = VcpuResults { vcpus: vcpus.collect(), stopped_by };
        let side = side.finish();
        // The timer still runs: it interrupts a write that blocks.
        Ok(end(results, side, context.output))
    });
    ran.map_err(Error::host("sigaction"))?
}
