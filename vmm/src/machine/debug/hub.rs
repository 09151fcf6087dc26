//! The state that the vCPUs and the debugger share.
//!
//! The guest is stopped if it is to stop and no vCPU is inside the guest. A vCPU comes back from the guest, sees that, and
//! waits before it enters again. A vCPU whose exit is handled by a slow device is not inside, either: it waits later.

use super::patches::{Hit, Patches};
use super::vcpu::Debuggable;
use super::{Action, DebugGuest, Debugger, GuestStatus, Method, Parts, Plan, SeenExit, Waker, Why};
use crate::controller::inquiry::Inquiry;
use crate::controller::{Devices, VcpuState};
use crate::exit::Exit;
use crate::host::{Kicker, REPEAT};
use crate::memory::{Gpa, GuestMemory};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// The number of exits that are kept.
const KEPT_EXITS: usize = 64;

/// The shared state of a debugged guest.
pub(super) struct Hub<'a, V> {
    vcpus: Vec<Mutex<&'a mut V>>,
    kickers: Vec<OnceLock<Kicker>>,
    parts: Parts<'a>,
    waker: Waker,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Set while the guest is to stop: since when, the vCPU that has the reason, and the reason.
    stop: Option<(Instant, usize, Why)>,
    plan: Arc<Plan>,
    /// The breakpoints in memory, while the guest runs.
    patches: Option<Patches>,
    /// The number of times that the guest went on.
    round: u64,
    /// For each vCPU: it is inside the guest.
    inside: Vec<bool>,
    ended: bool,
    exits: VecDeque<SeenExit>,
    exit_count: u64,
}

/// The permission of a vCPU.
pub(super) enum Pass {
    /// It may enter the guest: the plan, and the round.
    Enter(Arc<Plan>, u64),
    /// It gives way to other vCPUs.
    GiveWay,
    /// The run ends.
    End,
}

/// Locks a mutex. A panic of another thread does not matter: it ends the run.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks the end of the run when it is dropped.
pub(super) struct EndGuard<'h>(&'h dyn Ends);

trait Ends {
    fn has_ended(&self);
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.has_ended();
    }
}

impl<V> Ends for Hub<'_, V> {
    fn has_ended(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.remove_patches(self.parts.memory);
        drop(state);
        (self.waker)();
    }
}

impl<'a, V: Debuggable> Hub<'a, V> {
    pub(super) fn new(vcpus: &'a mut [V], parts: Parts<'a>, debugger: &dyn Debugger) -> Self {
        let len = vcpus.len();
        let stop = debugger.stops_at_start().then(|| (Instant::now(), 0, Why::Start));
        let plan = Plan { catches_death: true, ..Plan::default() };
        Self {
            vcpus: vcpus.iter_mut().map(Mutex::new).collect(),
            kickers: std::iter::repeat_with(OnceLock::new).take(len).collect(),
            parts,
            waker: debugger.waker(),
            state: Mutex::new(State {
                stop,
                plan: Arc::new(plan),
                patches: None,
                round: 0,
                inside: vec![false; len],
                ended: false,
                exits: VecDeque::with_capacity(KEPT_EXITS),
                exit_count: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Marks the end of the run when the result is dropped.
    pub(super) fn ends_with_run(&self) -> EndGuard<'_> {
        EndGuard(self)
    }

    /// A vCPU.
    pub(super) fn vcpu(&self, index: usize) -> Option<&Mutex<&'a mut V>> {
        self.vcpus.get(index)
    }

    pub(super) fn parts(&self) -> &Parts<'a> {
        &self.parts
    }

    /// Sets the kicker of a vCPU's thread.
    pub(super) fn set_kicker(&self, index: usize, kicker: Kicker) {
        if let Some(place) = self.kickers.get(index) {
            let _ = place.set(kicker);
        }
    }

    /// True if the guest is to stop.
    pub(super) fn must_stop(&self) -> bool {
        lock(&self.state).stop.is_some()
    }

    /// Waits until a vCPU may enter the guest, or must do something else. Time in which the guest is stopped moves the
    /// deadline.
    pub(super) fn pass(&self, index: usize) -> Pass {
        let mut state = lock(&self.state);
        loop {
            state.move_deadline(&self.parts);
            if self.parts.deadline.must_end_wait().is_some() {
                return Pass::End;
            }
            if state.stop.is_none() {
                break;
            }
            let waited = self.changed.wait_timeout(state, REPEAT);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.plan.action(index) == Action::Stay {
            return Pass::GiveWay;
        }
        state.inside.get_mut(index).into_iter().for_each(|inside| *inside = true);
        Pass::Enter(state.plan.clone(), state.round)
    }

    /// Notes that a vCPU has left the guest.
    pub(super) fn leave(&self, index: usize) {
        let mut state = lock(&self.state);
        state.inside.get_mut(index).into_iter().for_each(|inside| *inside = false);
        if state.has_stopped() {
            state.remove_patches(self.parts.memory);
            drop(state);
            (self.waker)();
        }
    }

    /// Stops the guest, for a vCPU that has a reason. The first reason counts. That of a vCPU that is inside the guest is
    /// reported when it has left.
    pub(super) fn stop_for(&self, index: usize, why: Why) {
        let mut state = lock(&self.state);
        match state.stop {
            // The debugger's wish is no reason of a vCPU.
            Some((since, _, Why::Asked)) if why != Why::Asked => state.stop = Some((since, index, why)),
            Some(_) => {}
            None => state.stop = Some((Instant::now(), index, why)),
        }
        let has_stopped = state.has_stopped();
        if has_stopped {
            state.remove_patches(self.parts.memory);
        }
        drop(state);
        self.kick_inside();
        if has_stopped {
            (self.waker)();
        }
    }

    /// Keeps an exit.
    pub(super) fn note(&self, vcpu: usize, rip: u64, exit: Exit) {
        let mut state = lock(&self.state);
        if state.exits.len() >= KEPT_EXITS {
            state.exits.pop_front();
        }
        state.exits.push_back(SeenExit { vcpu, rip, exit });
        state.exit_count = state.exit_count.saturating_add(1);
    }

    /// Takes the breakpoint at an address out of memory, so that a vCPU can execute the instruction there.
    pub(super) fn lift(&self, address: u64) {
        if let Some(patches) = &lock(&self.state).patches {
            patches.lift(self.parts.memory, address);
        }
    }

    /// True if an exit may be that of an `out` of a breakpoint.
    pub(super) fn may_be_breakpoint(&self, exit: &Exit) -> bool {
        let Exit::PioOut { port, size: 1, .. } = exit else { return false };
        let state = lock(&self.state);
        let uses = |port| state.patches.as_ref().is_some_and(|patches| patches.uses_port(port));
        u8::try_from(*port).is_ok_and(uses)
    }

    /// True if the guest's own instruction at an address has the bytes of a breakpoint.
    pub(super) fn is_own(&self, address: u64) -> bool {
        lock(&self.state).patches.as_ref().is_some_and(|patches| patches.is_own(address))
    }

    /// The breakpoint whose `out` to this port is at a linear address, and at this place in memory.
    pub(super) fn hit(&self, address: u64, gpa: Gpa, port: u8) -> Option<Hit> {
        lock(&self.state).patches.as_ref()?.hit(address, gpa, port)
    }

    /// Puts it back, if the guest still runs.
    pub(super) fn put_back(&self, address: u64) {
        if let Some(patches) = &lock(&self.state).patches {
            patches.put_back(self.parts.memory, address);
        }
    }

    /// Goes on without breakpoints in memory: the guest is stepped. It has an `int3` of its own, which only then reaches it.
    pub(super) fn give_up_patches(&self) {
        let mut state = lock(&self.state);
        state.remove_patches(self.parts.memory);
        let mut plan = Plan::clone(&state.plan);
        plan.step_only();
        state.plan = Arc::new(plan);
        state.round = state.round.wrapping_add(1);
        drop(state);
        self.kick_inside();
    }

    /// Puts the breakpoints of a plan into memory, if it is one for that. Otherwise, or if that is not possible, the result is
    /// `None`, and the plan does without.
    fn patches(&self, plan: &mut Plan) -> Option<Patches> {
        let Method::Patches(planted) = plan.method() else { return None };
        // All vCPUs are free, unless a debugger goes away while the guest runs.
        let probe = |vcpu: &Mutex<&'a mut V>| vcpu.try_lock().ok().and_then(|mut vcpu| vcpu.probe().ok());
        let probes: Vec<_> = self.vcpus.iter().filter_map(probe).collect();
        let file = plan.file.as_deref();
        let patches = Patches::put(self.parts.memory, &probes, &plan.breakpoints, planted, file);
        if patches.is_none() {
            plan.step_only();
        }
        patches
    }

    /// Makes the vCPUs leave the guest.
    fn kick_inside(&self) {
        let inside = lock(&self.state).inside.clone();
        let kickers = self.kickers.iter().zip(inside).filter(|(_, inside)| *inside);
        kickers.filter_map(|(kicker, _)| kicker.get()).for_each(Kicker::kick);
    }
}

impl State {
    fn has_stopped(&self) -> bool {
        self.stop.is_some() && !self.inside.contains(&true)
    }

    /// Takes the breakpoints out of memory.
    fn remove_patches(&mut self, memory: &GuestMemory) {
        if let Some(patches) = self.patches.take() {
            patches.remove(memory);
        }
    }

    /// Moves the deadline by the time in which the guest was stopped.
    fn move_deadline(&mut self, parts: &Parts<'_>) {
        if let Some((since, ..)) = &mut self.stop {
            let now = Instant::now();
            parts.deadline.extend_by_wait_since(*since);
            parts.inquiry.into_iter().for_each(Inquiry::note_stop);
            *since = now;
        }
    }
}

impl<V: Debuggable> DebugGuest for Hub<'_, V> {
    fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    fn status(&self) -> GuestStatus {
        let mut state = lock(&self.state);
        state.move_deadline(&self.parts);
        let status = match state.stop {
            _ if state.ended => return GuestStatus::Ended,
            None => return GuestStatus::Running,
            Some((_, vcpu, why)) if state.has_stopped() => return GuestStatus::Stopped(vcpu, why),
            Some(_) => GuestStatus::Running,
        };
        drop(state);
        self.kick_inside();
        status
    }

    fn stop(&self) {
        self.stop_for(0, Why::Asked);
    }

    fn resume(&self, plan: Plan) {
        let mut plan = plan.limited();
        // A debugger that goes away lets a guest go on that may be running: its vCPUs are not free then.
        for mut vcpu in self.vcpus.iter().filter_map(|vcpu| vcpu.try_lock().ok()) {
            vcpu.after_stop();
        }
        // Those of a guest that still runs are not those of the new plan.
        lock(&self.state).remove_patches(self.parts.memory);
        let patches = self.patches(&mut plan);
        let mut state = lock(&self.state);
        state.move_deadline(&self.parts);
        state.patches = patches;
        state.plan = Arc::new(plan);
        state.round = state.round.wrapping_add(1);
        state.stop = None;
        drop(state);
        self.changed.notify_all();
        // A vCPU that runs takes the new plan when it comes back.
        self.kick_inside();
    }

    fn method(&self) -> Option<Method> {
        let plan = lock(&self.state).plan.clone();
        let has_points = !plan.breakpoints.is_empty() || !plan.watchpoints.is_empty();
        has_points.then(|| plan.method())
    }

    fn end(&self) {
        self.parts.deadline.request_stop();
        self.changed.notify_all();
        self.kickers.iter().filter_map(OnceLock::get).for_each(Kicker::kick);
    }

    fn with_vcpu(&self, index: usize, body: &mut dyn FnMut(&mut dyn VcpuState)) -> bool {
        let vcpu = self.vcpus.get(index);
        vcpu.map(|vcpu| body(&mut **lock(vcpu))).is_some()
    }

    fn memory(&self) -> &GuestMemory {
        self.parts.memory
    }

    fn devices(&self) -> &Devices {
        self.parts.devices
    }

    fn exits(&self) -> (Vec<SeenExit>, u64) {
        let state = lock(&self.state);
        (state.exits.iter().copied().collect(), state.exit_count)
    }
}
