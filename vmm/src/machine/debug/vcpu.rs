//! The vCPU that stops for a debugger.

use super::hub::{Hub, Pass, lock};
use super::patches::{Hit, Planted};
use super::plan::MAX_WATCHED;
use super::{Action, Method, Plan, Why};
use crate::controller::DebugControl;
use crate::controller::vcpu::{Entry, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, DebugStop, Exit, PointKind};
use crate::host::Kicker;
use crate::x86::probe::linear_rip;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

/// The pause of a vCPU that gives way to others.
const PAUSE: Duration = Duration::from_micros(200);
/// Nothing has happened: the exit loop checks the deadline, and comes back.
const GIVES_WAY: (Exit, Arrival) = (Exit::Interrupted, Arrival::FromGuest);

/// A vCPU that a debugger can stop.
pub(crate) trait Debuggable: Vcpu + Send {
    /// A step over a HLT may not report the HLT.
    const LOSES_HALTS: bool;

    /// Completes the access of the last exit, so that the registers are those after its instruction. Returns what the vCPU
    /// did: [`Exit::Interrupted`] if nothing more. `None` if the vCPU can wait with an open access; its answer is then still
    /// to be given.
    ///
    /// # Errors
    /// The host cannot run the vCPU.
    fn complete(&mut self, entry: Entry) -> Result<Option<(Exit, Arrival)>, Error>;

    /// Sets RIP back by `len`, to the instruction of the last exit, which is then executed from its start.
    ///
    /// # Errors
    /// The host refused.
    fn restart(&mut self, len: u64) -> Result<(), Error>;

    /// Called before the guest goes on after a stop.
    fn after_stop(&mut self) {}
}

/// A vCPU that is kicked while its debugger shares it.
pub(crate) trait SharedKicks: Sized {
    /// Runs `body` on this thread, with a kicker that makes the vCPU leave the guest.
    ///
    /// # Errors
    /// The handler of the kick signal cannot be installed.
    fn with_shared_kicks<R>(vcpu: &Mutex<&mut Self>, body: impl FnOnce(Kicker) -> R) -> Result<R, Error>;
}

/// A vCPU that waits while its guest is stopped.
pub(crate) struct DebuggedVcpu<'h, 'a, V> {
    hub: &'h Hub<'a, V>,
    index: usize,
    /// The answer to the last exit, if the vCPU has not entered the guest with it.
    kept: Option<Entry>,
    /// The round in which the vCPU has last entered the guest.
    round: Option<u64>,
    /// The vCPU is set to execute the first instruction of a round, which is at a breakpoint.
    steps_off: bool,
    /// The address of the breakpoint that is not in memory meanwhile.
    lifted: Option<u64>,
    /// The bytes of the watchpoints, if they are compared.
    watched: Vec<Vec<u8>>,
}

impl<'h, 'a, V: Debuggable> DebuggedVcpu<'h, 'a, V> {
    pub(super) fn new(hub: &'h Hub<'a, V>, index: usize) -> Self {
        Self { hub, index, kept: None, round: None, steps_off: false, lifted: None, watched: Vec::new() }
    }

    /// Calls `body` with the vCPU itself.
    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut V) -> R) -> Result<R, Error> {
        let missing = || Error::Config("there is no such vCPU".into());
        let vcpu = self.hub.vcpu(self.index).ok_or_else(missing)?;
        Ok(body(&mut lock(vcpu)))
    }

    /// The linear address of the next instruction.
    fn linear_rip(&self) -> Result<u64, Error> {
        self.with(|vcpu| match vcpu.rip() {
            // Only 64-bit code has such addresses, and its segments have no base. To ask for the segments takes longer.
            Some(rip) if rip > u64::from(u32::MAX) => Ok(rip),
            _ => Ok(linear_rip(&vcpu.regs()?, &vcpu.sregs()?)),
        })?
    }

    /// The bytes of the watchpoints now. Those that are not mapped are empty.
    fn watched(&self, plan: &Plan) -> Result<Vec<Vec<u8>>, Error> {
        let probe = self.with(|vcpu| vcpu.probe())??;
        let mut left = MAX_WATCHED;
        let read = |point: &crate::controller::DebugPoint| {
            let len = point.len.min(left);
            left = left.saturating_sub(len);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            if !probe.read_range(point.address, &mut bytes) {
                bytes.clear();
            }
            bytes
        };
        Ok(plan.watchpoints.iter().map(read).collect())
    }

    /// Prepares the vCPU for a new round.
    fn begin_round(&mut self, plan: &Plan) -> Result<(), Error> {
        let action = plan.action(self.index);
        self.put_back();
        // A processor that stops before an instruction does not get past it by itself.
        self.steps_off = false;
        if !plan.breakpoints.is_empty() {
            let rip = self.linear_rip()?;
            self.steps_off = plan.breaks_at(rip);
            if self.steps_off && matches!(plan.method(), Method::Patches(_)) {
                self.hub.lift(rip);
                self.lifted = Some(rip);
            }
        }
        if plan.method() == Method::Compare {
            self.watched = self.watched(plan)?;
        }
        let control = if self.steps_off { DebugControl::step() } else { plan.control(action) };
        self.with(|vcpu| vcpu.set_debug(&control))?
    }

    /// Puts back the breakpoint that was not in memory.
    fn put_back(&mut self) {
        if let Some(address) = self.lifted.take() {
            self.hub.put_back(address);
        }
    }

    /// Switches steps off for a HLT that is an exit: KVM may report the step only, and the guest would run on behind it.
    fn prepare_halt(&mut self, plan: &Plan) -> Result<(), Error> {
        const HLT: u8 = 0xf4;
        let steps = self.steps_off || plan.control(plan.action(self.index)).step;
        if !steps || !V::LOSES_HALTS || !self.hub.parts().leaves_on_halt {
            return Ok(());
        }
        let mut next = [0];
        let rip = self.linear_rip()?;
        if self.with(|vcpu| vcpu.probe())??.read_range(rip, &mut next) && next == [HLT] {
            self.with(|vcpu| vcpu.set_debug(&DebugControl::default()))??;
            // The vCPU is prepared again when it comes back.
            self.round = None;
        }
        Ok(())
    }

    /// Runs the vCPU once, as the plan says.
    fn run_once(&mut self, entry: Entry, plan: &Plan, round: u64) -> Result<(Exit, Arrival), Error> {
        let prepared = match self.round.replace(round) == Some(round) {
            true => Ok(()),
            false => self.begin_round(plan),
        };
        let prepared = prepared.and_then(|()| self.prepare_halt(plan));
        let left = prepared.and_then(|()| self.with(|vcpu| vcpu.enter(entry))?);
        // The breakpoints are in memory as long as a vCPU is inside.
        let left = left.and_then(|left| match self.hub.may_be_breakpoint(&left.0) {
            true => self.planted_output(left),
            false => Ok(left),
        });
        self.hub.leave(self.index);
        left
    }

    /// Replaces the exit of an `out` that is a breakpoint by a stop before the guest's own instruction. If the vCPU has only
    /// come across the bytes of the breakpoint, it executes the guest's own instruction, and goes on. Another `out` stays as
    /// it is, but it may be complete.
    fn planted_output(&mut self, left: (Exit, Arrival)) -> Result<(Exit, Arrival), Error> {
        let Exit::PioOut { port, .. } = left.0 else { return Ok(left) };
        let port = u8::try_from(port).unwrap_or_default();
        let behind = Planted::Out.len();
        let rip = self.linear_rip()?;
        if self.hit(rip, port)?.is_none() && self.hit(rip.wrapping_sub(behind), port)?.is_none() {
            return Ok(left);
        }
        // RIP may be at the instruction or behind it. It is certain after the instruction is complete.
        let is_complete = self.with(|vcpu| vcpu.complete(Entry::Resume))??.is_some();
        let back = if is_complete { behind } else { 0 };
        let address = self.linear_rip()?.wrapping_sub(back);
        let Some(hit) = self.hit(address, port)? else { return Ok(left) };
        let patch = if let Hit::Other(patch) = hit { patch } else { address };
        // If the vCPU passes this breakpoint, the guest's own instruction may be the same. Or another vCPU has passed it
        // meanwhile, and put it back.
        let passes = self.lifted == Some(patch);
        if passes && self.hub.is_own(patch) {
            return Ok(left);
        }
        self.with(|vcpu| vcpu.restart(back))??;
        match hit {
            Hit::Breakpoint if !passes => Ok((Exit::Debug(DebugStop::Breakpoint(address)), left.1)),
            _ => {
                self.hub.lift(patch);
                (self.lifted, self.steps_off) = (Some(patch), true);
                self.with(|vcpu| vcpu.set_debug(&DebugControl::step()))??;
                Ok(GIVES_WAY)
            }
        }
    }

    /// The breakpoint whose `out` to this port is at a linear address.
    fn hit(&self, address: u64, port: u8) -> Result<Option<Hit>, Error> {
        let place = self.with(|vcpu| vcpu.probe())??.translate_linear(address).ok();
        Ok(place.and_then(|place| self.hub.hit(address, place.gpa, port)))
    }

    /// Stops the guest, if what happened is a reason. Returns the exit if it is for the controllers.
    fn handle(
        &mut self,
        (exit, arrival): (Exit, Arrival),
        plan: &Plan,
    ) -> Result<Option<(Exit, Arrival)>, Error> {
        let why = match exit {
            Exit::Interrupted if self.hub.must_stop() => None,
            Exit::Debug(DebugStop::Step) => self.stepped(plan)?,
            Exit::Debug(DebugStop::Breakpoint(_)) => Some(Why::Breakpoint),
            Exit::Debug(DebugStop::Watchpoint(address, kind)) => Some(Why::Watchpoint(address, kind)),
            Exit::Debug(DebugStop::Software) if plan.method() == Method::Patches(Planted::Int3) => {
                match plan.breaks_at(self.linear_rip()?) {
                    true => Some(Why::Breakpoint),
                    false => {
                        self.hub.give_up_patches();
                        None
                    }
                }
            }
            Exit::Debug(DebugStop::Software) => Some(Why::Software),
            Exit::Interrupted => return Ok(Some((exit, arrival))),
            _ => {
                self.note(exit, plan)?;
                return Ok(Some((exit, arrival)));
            }
        };
        if let Some(why) = why {
            self.hub.stop_for(self.index, why);
        }
        Ok(None)
    }

    /// Keeps an exit. Stops the guest if it dies of it: the controllers then see the exit when the guest goes on.
    fn note(&mut self, exit: Exit, plan: &Plan) -> Result<(), Error> {
        let rip = self.with(|vcpu| vcpu.rip())?.unwrap_or_default();
        self.hub.note(self.index, rip, exit);
        if plan.catches_death && kills(&exit) {
            self.hub.stop_for(self.index, Why::Died(exit));
            if let Pass::Enter(..) = self.hub.pass(self.index) {
                self.hub.leave(self.index);
            }
        }
        Ok(())
    }

    /// The reason to stop after an instruction, if there is one.
    fn stepped(&mut self, plan: &Plan) -> Result<Option<Why>, Error> {
        let action = plan.action(self.index);
        if self.steps_off {
            self.steps_off = false;
            self.put_back();
            let control = plan.control(action);
            self.with(|vcpu| vcpu.set_debug(&control))??;
        }
        let rip = self.linear_rip()?;
        if plan.method() == Method::Compare && !plan.watchpoints.is_empty() {
            let now = self.watched(plan)?;
            let before = std::mem::replace(&mut self.watched, now);
            let changed = before.iter().zip(&self.watched).position(|(before, now)| before != now);
            if let Some(point) = changed.and_then(|index| plan.watchpoints.get(index)) {
                return Ok(Some(Why::Watchpoint(point.address, PointKind::Write)));
            }
        }
        Ok(match action {
            _ if action != Action::Step && plan.breaks_at(rip) => Some(Why::Breakpoint),
            Action::Continue | Action::Stay => None,
            Action::StepInside(first, end) if (first..end).contains(&rip) => None,
            Action::Step | Action::StepInside(..) => Some(Why::Stepped),
        })
    }
}

/// True for an exit of a guest that cannot go on.
fn kills(exit: &Exit) -> bool {
    matches!(exit, Exit::Shutdown | Exit::EmulationFailure(_) | Exit::FailedEntry { .. } | Exit::Other(_))
}

impl<'h, 'a, V: Debuggable> DebuggedVcpu<'h, 'a, V> {
    /// Enters the guest, as far as the debugger lets it. Returns the next exit for the controllers.
    ///
    /// # Errors
    /// The host cannot run the vCPU.
    pub(crate) fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error> {
        let mut entry = self.kept.take().unwrap_or(entry);
        loop {
            if self.hub.must_stop()
                && let Some(left) = self.with(|vcpu| vcpu.complete(entry))??
            {
                entry = Entry::Resume;
                if let Some(exit) = self.handle(left, &Plan::default())? {
                    return Ok(exit);
                }
            }
            let (plan, round) = match self.hub.pass(self.index) {
                Pass::Enter(plan, round) => (plan, round),
                pass => {
                    self.kept = Some(entry);
                    if matches!(pass, Pass::GiveWay) {
                        thread::sleep(PAUSE);
                    }
                    return Ok(GIVES_WAY);
                }
            };
            let left = self.run_once(entry, &plan, round)?;
            entry = Entry::Resume;
            if let Some(exit) = self.handle(left, &plan)? {
                return Ok(exit);
            }
        }
    }

    /// The vCPU itself.
    pub(crate) fn vcpu(&self) -> Option<&'h Mutex<&'a mut V>> {
        self.hub.vcpu(self.index)
    }

    /// Sets the kicker of the vCPU's thread.
    pub(crate) fn set_kicker(&self, kicker: Kicker) {
        self.hub.set_kicker(self.index, kicker);
    }
}
