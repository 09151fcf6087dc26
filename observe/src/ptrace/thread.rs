//! The stops of the program's threads.

use super::calls::{self, CREATE_VCPU, CREATE_VM, RUN};
use super::filter::{IOCTL, is_kvm};
use super::inject::{AT_SYSTEM_CALL, Broken, Injection, filters, repeat};
use super::objects::{Key, Meaning, Who};
use super::sys::{self, Resume};
use super::vcpu::{is_death, is_halt};
use super::{Ptrace, SWEEP_AT_NEW_VM};
use crate::engine::{Call, Event, Stop, StopCause, Target, VcpuId};
use std::fs;
use std::time::Duration;
use vmm::x86::{Regs, Sregs};

/// The results of system calls that the kernel begins again after a signal (`linux/errno.h`).
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

/// A thread of the program.
#[derive(Debug, Default)]
pub(super) struct Thread {
    /// Its process, once that is known.
    tgid: Option<i32>,
    call: Option<OpenCall>,
    /// Calls of the observer that take longer than it waits.
    pub(super) stuck: Option<Injection>,
}

/// A call to KVM that a thread is in.
#[derive(Clone, Copy, Debug)]
enum OpenCall {
    Run { key: Key, fd: i32, entered: u64 },
    Other { meaning: Meaning, target: Target, fd: i32, request: u32, argument: u64 },
}

/// The registers of a vCPU; `None` if KVM refuses them. An error if the thread does not wait any more.
type Inspected = Result<Option<Box<(Regs, Sregs)>>, Broken>;

impl Ptrace {
    /// Takes a state of a thread.
    pub(super) fn take(&mut self, tid: i32, status: i32, to: &mut dyn FnMut(Event)) {
        if !libc::WIFSTOPPED(status) {
            self.threads.remove(&tid);
            self.entered.remove(&tid);
            self.objects.end_process(tid, to);
            return;
        }
        let thread = self.threads.entry(tid).or_default();
        if let Some(mut injection) = thread.stuck.take() {
            if injection.step(status) {
                injection.end();
                sys::resume(tid, Resume::Continue, 0);
            } else {
                thread.stuck = Some(injection);
            }
            return;
        }
        self.expect_child(tid, status, |_| true);
        match (status >> 16, libc::WSTOPSIG(status)) {
            (libc::PTRACE_EVENT_SECCOMP, _) => self.call_begins(tid, to),
            (0, AT_SYSTEM_CALL) => self.call_ends(tid, to),
            (libc::PTRACE_EVENT_EXEC, _) => {
                self.executed(tid, to);
                sys::resume(tid, Resume::Continue, 0);
            }
            // The whole process stops.
            (libc::PTRACE_EVENT_STOP, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => {
                sys::resume(tid, Resume::Listen, 0);
            }
            (0, signal) => sys::resume(tid, Resume::Continue, signal),
            _ => sys::resume(tid, Resume::Continue, 0),
        }
    }

    /// Keeps the child that a thread has made, if it still exists: it is traced, although its first stop may be to come.
    pub(super) fn expect_child(&mut self, tid: i32, status: i32, is_expected: impl Fn(i32) -> bool) {
        let child = sys::new_child(tid, status).filter(|child| is_expected(*child));
        if let Some(child) = child.filter(|child| process_of(*child).is_some()) {
            self.threads.entry(child).or_default();
        }
    }

    /// A process has executed another program. Its other threads are gone.
    fn executed(&mut self, tgid: i32, to: &mut dyn FnMut(Event)) {
        if let Ok(former) = sys::message(tgid)
            && let Ok(former) = i32::try_from(former)
        {
            self.threads.remove(&former);
        }
        self.threads.insert(tgid, Thread { tgid: Some(tgid), ..Thread::default() });
        self.entered.remove(&tgid);
        self.objects.end_process(tgid, to);
    }

    /// The process of a thread.
    fn who(&mut self, tid: i32) -> Who {
        let thread = self.threads.entry(tid).or_default();
        let tgid = *thread.tgid.get_or_insert_with(|| process_of(tid).unwrap_or(tid));
        Who { tid, tgid }
    }

    fn set_call(&mut self, tid: i32, call: Option<OpenCall>) {
        self.threads.entry(tid).or_default().call = call;
    }

    /// A thread has stopped before a call to KVM.
    fn call_begins(&mut self, tid: i32, to: &mut dyn FnMut(Event)) {
        let Ok(registers) = sys::registers(tid) else { return };
        let (fd, request, argument) = (registers.rdi as i32, registers.rsi as u32, registers.rdx);
        let who = self.who(tid);
        self.set_call(tid, None);
        if registers.orig_rax != u64::from(IOCTL) || !is_kvm(request) {
            // A filter of the program stopped here, which does not know of a tracer.
            return sys::resume(tid, Resume::Continue, 0);
        }
        let meaning = self.objects.find(who, fd);
        match (meaning, self.objects.target(meaning)) {
            (Meaning::Object(key), Some(Target::Vcpu(_))) if request == RUN => self.enter(who, fd, key, to),
            (_, Some(target)) => {
                self.set_call(tid, Some(OpenCall::Other { meaning, target, fd, request, argument }));
                sys::resume(tid, Resume::ToSystemCall, 0);
            }
            (_, None) => sys::resume(tid, Resume::Continue, 0),
        }
    }

    /// A thread is about to enter a guest.
    fn enter(&mut self, who: Who, fd: i32, key: Key, to: &mut dyn FnMut(Event)) {
        let now = self.clock.now();
        let Some((vcpu, process)) = self.objects.vcpu(key) else {
            return sys::resume(who.tid, Resume::Continue, 0);
        };
        // KVM refuses a process that did not make the VM, such as a child of `fork`.
        if process != who.tgid && !sys::is_same_memory(who.tid, process) {
            return sys::resume(who.tid, Resume::Continue, 0);
        }
        let id = vcpu.id;
        if !vcpu.has_entered {
            vcpu.has_entered = true;
            vcpu.wants_rip = self.stops.rip && vcpu.ask_for_rip();
            self.objects.enter(id.vm);
            self.entered.insert(who.tgid);
            if self.stops.first_entry && self.stop_at_first_entry(who, fd, id, to) {
                return;
            }
        }
        let completed = self.objects.vcpu(key).and_then(|(vcpu, _)| vcpu.complete(now));
        let entered = self.clock.now();
        self.set_call(who.tid, Some(OpenCall::Run { key, fd, entered }));
        sys::resume(who.tid, Resume::ToSystemCall, 0);
        if let Some(record) = completed {
            to(Event::Returned(id, record));
        }
    }

    /// A thread has stopped after a call to KVM.
    fn call_ends(&mut self, tid: i32, to: &mut dyn FnMut(Event)) {
        let now = self.clock.now();
        let call = self.threads.get_mut(&tid).and_then(|thread| thread.call.take());
        let who = self.who(tid);
        if let (Some(call), Ok(result)) = (call, sys::result(tid)) {
            let is_waiting = match call {
                // The call begins again without a return to the program.
                _ if RESTARTS.contains(&result) => true,
                OpenCall::Run { key, fd, entered } => {
                    self.leave_guest(who, fd, key, (entered, now), errno(result), to)
                }
                OpenCall::Other { meaning, target, fd, request, argument } => {
                    let call = Call {
                        process: who.tgid,
                        target,
                        request,
                        argument,
                        data: Vec::new(),
                        result: errno(result),
                    };
                    self.called(who, fd, meaning, call, to)
                }
            };
            if !is_waiting {
                return;
            }
        }
        sys::resume(tid, Resume::Continue, 0);
    }

    /// A thread has left a guest. Returns false if the thread does not wait any more.
    fn leave_guest(
        &mut self,
        who: Who,
        fd: i32,
        key: Key,
        (entered, left): (u64, u64),
        result: i32,
        to: &mut dyn FnMut(Event),
    ) -> bool {
        let Some((vcpu, _)) = self.objects.vcpu(key) else { return true };
        let id = vcpu.id;
        // Another thread entered the vCPU before this exit was noted.
        let overtaken = vcpu.end();
        let record = vcpu.note(entered, left, result);
        let is_stop = match () {
            () if is_death(&record) => vcpu.may_stop(),
            () if is_halt(&record) => self.stops.halts && vcpu.may_stop_at_halt(),
            () => false,
        };
        if let Some(overtaken) = overtaken {
            to(Event::Returned(id, overtaken));
        }
        let is_inspected =
            result == -libc::EINTR && self.inspected.as_mut().is_some_and(|told| told.insert(id));
        let cause = match (is_stop, is_inspected) {
            (true, _) => StopCause::Exit(record),
            (false, true) => StopCause::Running(Duration::ZERO),
            (false, false) => return true,
        };
        let is_waiting = self.stop(who, fd, id, cause, to);
        if is_waiting && !is_stop {
            repeat(who.tid);
        }
        let now = self.clock.now();
        if let Some((vcpu, _)) = self.objects.vcpu(key) {
            vcpu.waited(now.saturating_sub(left));
        }
        is_waiting
    }

    /// The program has called KVM. Returns false if the thread does not wait any more.
    fn called(&mut self, who: Who, fd: i32, meaning: Meaning, call: Call, to: &mut dyn FnMut(Event)) -> bool {
        let is_building = match meaning {
            Meaning::Object(key) => !self.objects.has_entered(key),
            _ => !self.entered.contains(&who.tgid),
        };
        let Call { target, request, argument, result, .. } = call;
        if self.limits.is_told(request, result, is_building) {
            let call = Call { data: calls::data(who.tid, request, argument), ..call };
            match target {
                Target::Vcpu(id)
                    if result < 0 && calls::sets_registers(request) && self.may_stop(meaning) =>
                {
                    if !self.stop(who, fd, id, StopCause::Refused(call), to) {
                        return false;
                    }
                }
                _ => to(Event::Called(call)),
            }
        }
        match (target, request, result) {
            (Target::System, CREATE_VM, 0..) => {
                if self.swept.elapsed() >= SWEEP_AT_NEW_VM {
                    self.sweep(to);
                }
                self.objects.add_vm(who, result);
                true
            }
            (Target::Vm(vm), CREATE_VCPU, 0..) => {
                let id = VcpuId { vm, vcpu: argument as u32 };
                to(Event::Created(id));
                let added = self.objects.add_vcpu(who, result, id);
                added.is_none_or(|key| self.open_counters(who, result, id, key))
            }
            _ => true,
        }
    }

    /// Makes the program open KVM's counters of a vCPU for the observer. Returns false if the thread does not wait any more.
    fn open_counters(&mut self, who: Who, fd: i32, id: VcpuId, key: Key) -> bool {
        let Some(mut injection) = self.may_inject(who.tid).then(|| Injection::at_return(who.tid)).flatten()
        else {
            return true;
        };
        let process = sys::open_thread(who.tid, who.tgid);
        let taken = injection.counters(fd, |stats| sys::take_descriptor(process.as_ref().ok()?, stats).ok());
        if let (Ok(Some(stats)), Some((vcpu, _))) = (&taken, self.objects.vcpu(key))
            && let Ok(stats) = stats.try_clone()
        {
            vcpu.count_with(stats.into());
        }
        self.end(who.tid, id, injection, taken).is_ok()
    }

    /// Ends an injection, unless its thread is still busy with it: another thread runs the vCPU, and then has to leave it.
    fn end<R>(
        &mut self,
        tid: i32,
        id: VcpuId,
        injection: Injection,
        result: Result<R, Broken>,
    ) -> Result<R, Broken> {
        if !matches!(result, Err(Broken::Late)) {
            injection.end();
            return result;
        }
        self.threads.entry(tid).or_default().stuck = Some(injection);
        self.interrupt_runs(|vcpu| vcpu == id);
        result
    }

    /// Makes the threads leave KVM_RUN that are in it for one of these vCPUs.
    pub(super) fn interrupt_runs(&mut self, is_one: impl Fn(VcpuId) -> bool) {
        for (tid, thread) in &self.threads {
            if let Some(OpenCall::Run { key, .. }) = thread.call
                && self.objects.vcpu(key).is_some_and(|(vcpu, _)| is_one(vcpu.id))
            {
                sys::interrupt(*tid);
            }
        }
    }

    /// True if a death or a refusal of a vCPU makes a stop.
    fn may_stop(&mut self, meaning: Meaning) -> bool {
        let Meaning::Object(key) = meaning else { return false };
        self.objects.vcpu(key).is_some_and(|(vcpu, _)| vcpu.may_stop())
    }

    /// True if a thread may make calls that the program does not expect: it has no seccomp filter of its own.
    fn may_inject(&self, tid: i32) -> bool {
        self.filters.is_some() && filters(tid) == self.filters
    }

    /// Hands over a vCPU that waits after a call. Returns false if the thread does not wait any more.
    fn stop(&mut self, who: Who, fd: i32, id: VcpuId, cause: StopCause, to: &mut dyn FnMut(Event)) -> bool {
        let inspected = match self.may_inject(who.tid).then(|| Injection::at_return(who.tid)).flatten() {
            None => Ok(None),
            Some(mut injection) => {
                let inspected = injection.vcpu_registers(fd);
                self.end(who.tid, id, injection, inspected)
            }
        };
        tell(who, id, cause, inspected, to)
    }

    /// Hands over a vCPU that enters its guest for the first time. Returns true if its call begins again.
    fn stop_at_first_entry(&mut self, who: Who, fd: i32, id: VcpuId, to: &mut dyn FnMut(Event)) -> bool {
        let Some((mut injection, begun)) =
            self.may_inject(who.tid).then(|| Injection::at_start(who.tid)).flatten()
        else {
            tell(who, id, StopCause::FirstEntry, Ok(None), to);
            return false;
        };
        let inspected = begun.and_then(|()| injection.vcpu_registers(fd));
        let inspected = self.end(who.tid, id, injection, inspected);
        if tell(who, id, StopCause::FirstEntry, inspected, to) {
            sys::resume(who.tid, Resume::Continue, 0);
        }
        true
    }
}

/// Hands over a vCPU that waits. Returns false if its thread does not wait any more, or is still busy with a call of the
/// observer, from which it does not return to the program.
fn tell(who: Who, vcpu: VcpuId, cause: StopCause, inspected: Inspected, to: &mut dyn FnMut(Event)) -> bool {
    let is_waiting = inspected.is_ok();
    if inspected != Err(Broken::Ended) {
        let registers = inspected.unwrap_or_default();
        to(Event::Stopped(Box::new(Stop { vcpu, process: who.tgid, cause, registers })));
    }
    is_waiting
}

/// The result of a call to KVM: 0 or more, or a negative errno.
fn errno(result: i64) -> i32 {
    i32::try_from(result).unwrap_or(if result < 0 { i32::MIN } else { i32::MAX })
}

/// The process of a thread.
fn process_of(tid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}
