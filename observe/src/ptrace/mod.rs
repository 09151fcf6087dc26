//! The engine `ptrace`: it traces all threads of the program, which a seccomp filter stops at each call to KVM, and at
//! nothing else.
//!
//! A call makes two stops: before it, the observer reads its arguments, and after it, the result. The observer has duplicates
//! of the program's VMs and vCPUs (pidfd_getfd(2)), and reads `kvm_run` in a mapping of its own. All calls of ptrace(2) come
//! from one thread.

mod calls;
mod filter;
mod inject;
pub(crate) mod inspect;
mod objects;
mod start;
mod sys;
mod thread;
mod vcpu;

use crate::engine::{Engine, Event, Stops, VcpuId};
use crate::error::Error;
use calls::Limits;
use objects::Objects;
use start::Handshake;
use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::{Duration, Instant};
use sys::Ticks;
pub(crate) use sys::install_filter;
use thread::Thread;
use vmm::profile::Clock;

/// The longest time that the observer waits for an event, before it looks at signals and the time limit.
const TICK: Duration = Duration::from_millis(10);
/// The time between two looks for closed VMs.
const SWEEP: Duration = Duration::from_millis(100);
/// The same when the program makes a VM, after it may have closed others.
const SWEEP_AT_NEW_VM: Duration = Duration::from_millis(10);
/// The longest time to end the tracing of children that still run.
const DETACH: Duration = Duration::from_secs(5);
/// The number of open files for the largest number of VMs and vCPUs.
const FILES: u64 = 8192;

/// The engine.
#[derive(Debug)]
pub struct Ptrace {
    program: crate::Program,
    stops: Stops,
    handshake: Option<Handshake>,
    ticks: Option<Ticks>,
    /// The limit of open files of before.
    file_limit: Option<libc::rlimit>,
    /// The number of seccomp filters of a program that adds none.
    filters: Option<u32>,
    threads: HashMap<i32, Thread>,
    objects: Objects,
    limits: Limits,
    /// The processes whose guests have run.
    entered: HashSet<i32>,
    clock: Clock,
    swept: Instant,
    /// The vCPUs that were told of at the end of the time limit; `None` before it.
    inspected: Option<HashSet<VcpuId>>,
}

impl Ptrace {
    /// Creates the engine.
    ///
    /// # Errors
    /// The kernel lacks a call, or does not permit it.
    pub fn new(program: &crate::Program) -> Result<Self, Error> {
        start::check_kernel().map_err(|what| program.untraceable(what))?;
        let own = inject::filters(sys::own_pid());
        Ok(Self {
            program: program.clone(),
            stops: Stops::default(),
            handshake: None,
            ticks: None,
            file_limit: None,
            filters: own.map(|own| own.saturating_add(1)),
            threads: HashMap::new(),
            objects: Objects::default(),
            limits: Limits::default(),
            entered: HashSet::new(),
            clock: Clock::new(Some(1)),
            swept: Instant::now(),
            inspected: None,
        })
    }

    /// Gives up the VMs and vCPUs that the program has closed.
    fn sweep(&mut self, to: &mut dyn FnMut(Event)) {
        self.objects.sweep(to);
        self.swept = Instant::now();
    }

    /// Ends the tracing of all threads. They go on.
    fn detach(&mut self) {
        for (tid, thread) in &mut self.threads {
            if let Some(injection) = thread.stuck.take() {
                injection.end();
            }
            sys::interrupt(*tid);
        }
        // A child whose first stop comes before that of the thread that made it is not expected any more.
        let mut gone = HashSet::new();
        let began = Instant::now();
        while !self.threads.is_empty() && began.elapsed() < DETACH {
            match sys::any_stopped() {
                Ok(Some((tid, status))) => {
                    self.threads.remove(&tid);
                    gone.insert(tid);
                    self.expect_child(tid, status, |child| !gone.contains(&child));
                    if libc::WIFSTOPPED(status) {
                        let is_signal = status >> 16 == 0 && libc::WSTOPSIG(status) != inject::AT_SYSTEM_CALL;
                        sys::detach(tid, if is_signal { libc::WSTOPSIG(status) } else { 0 });
                    }
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
    }
}

impl Engine for Ptrace {
    fn name(&self) -> &'static str {
        "ptrace"
    }

    fn prepare(&mut self, command: &mut Command, stops: Stops, _: bool) -> Result<(), Error> {
        self.stops = stops;
        let handshake = Handshake::prepare(command);
        self.handshake = Some(handshake.map_err(Error::host("creating a connection to the program"))?);
        Ok(())
    }

    fn start(&mut self, command: &mut Command) -> Result<i32, Error> {
        let handshake = match self.handshake.take() {
            Some(handshake) => handshake,
            None => {
                Handshake::prepare(command).map_err(Error::host("creating a connection to the program"))?
            }
        };
        let (pid, filters) = handshake.start(command, &self.program)?;
        // One more filter than expected may protect this process.
        self.filters = filters.or(self.filters);
        self.threads.insert(pid, Thread::default());
        self.ticks = Some(Ticks::new(TICK).map_err(Error::host("starting a timer (timer_create)"))?);
        self.file_limit = sys::raise_file_limit(FILES);
        Ok(pid)
    }

    fn traces(&self) -> bool {
        true
    }

    fn changed(&mut self, tid: i32, status: i32, to: &mut dyn FnMut(Event)) {
        self.take(tid, status, to);
    }

    fn wakes(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn collect(&mut self, to: &mut dyn FnMut(Event)) {
        if self.swept.elapsed() >= SWEEP {
            self.sweep(to);
        }
    }

    fn inspect(&mut self, _to: &mut dyn FnMut(Event)) {
        self.inspected = Some(HashSet::new());
        self.interrupt_runs(|_| true);
    }

    fn finish(&mut self, to: &mut dyn FnMut(Event)) {
        self.detach();
        self.ticks = None;
        self.objects.end_all(to);
        if let Some(limit) = self.file_limit.take() {
            sys::set_file_limit(&limit);
        }
        to(Event::LostCalls(self.limits.lost));
        to(Event::Unrecorded(self.objects.unrecorded));
        if self.objects.is_hidden {
            to(Event::Hidden);
        }
        to(Event::Machines(self.objects.machines));
    }

    fn leave(&mut self) {}
}
