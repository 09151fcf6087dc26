//! The vCPU threads of a machine: each vCPU runs on its own thread, until all have ended or one has ended the machine.
//!
//! The first vCPU runs on the caller's thread, the leader. A vCPU that halts is parked, and the others continue. Any
//! other end of a vCPU ends the machine: the other vCPUs are kicked until they have left the guest.

use crate::error::Error;
use crate::exit::Stop;
use crate::host::{Kicker, REPEAT, ThreadKind, thread_started};
use crate::kvm::vcpu::KvmVcpu;
use crate::shutdown::{Deadline, Kick};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};

/// Stack size of a vCPU thread, in bytes. It is more than the controllers of this crate need.
const STACK: usize = 512 << 10;
/// The value of `stopped_by` while no vCPU has ended the machine.
const NO_VCPU: usize = usize::MAX;

/// A vCPU that kicks make leave its guest.
pub(crate) trait WithKicks: Send {
    /// Runs `body` on this thread, with a kicker that makes this vCPU leave the guest.
    ///
    /// # Errors
    /// The handler of the kick signal cannot be installed.
    fn with_kicks<R>(&mut self, body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error>;
}

impl WithKicks for KvmVcpu {
    fn with_kicks<R>(&mut self, body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error> {
        Self::with_kicks(self, body)
    }
}

/// The state that the threads share.
#[derive(Debug)]
pub struct VcpuThreads {
    /// Reports the end of the machine to each vCPU's watchdog.
    deadline: Deadline,
    /// The index of the first vCPU that ended the machine.
    stopped_by: AtomicUsize,
    threads: Vec<VcpuThread>,
}

/// The result of each vCPU, and the index of the vCPU that ended the machine, if one did.
pub(crate) struct VcpuResults<R> {
    pub(crate) vcpus: Vec<(Stop, R)>,
    pub(crate) stopped_by: Option<usize>,
}

#[derive(Debug, Default)]
struct VcpuThread {
    kicker: OnceLock<Kicker>,
    thread: OnceLock<Thread>,
    /// Set when the vCPU has ended.
    out: AtomicBool,
}

impl VcpuThreads {
    /// Creates the state of `size` vCPUs that end at `deadline`.
    pub(crate) fn new(size: usize, deadline: Deadline) -> Self {
        let threads = std::iter::repeat_with(VcpuThread::default).take(size).collect();
        Self { deadline, stopped_by: AtomicUsize::new(NO_VCPU), threads }
    }

    /// Runs `first` on this thread, and `body` with each of `others` on a new thread. If the host has no thread left,
    /// or a thread panics, its vCPU ends with [`Stop::HostFailed`] and without a result of its own.
    pub(crate) fn run<'a, V: WithKicks + 'a, C: Send, R: Default + Send>(
        &self,
        others: impl Iterator<Item = (&'a mut V, C)>,
        first: impl FnOnce() -> (Stop, R),
        body: impl Fn(&mut V, C) -> (Stop, R) + Sync,
    ) -> VcpuResults<R> {
        let vcpus = thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut missing = None;
            for (place, (vcpu, own)) in (1..).zip(others) {
                let body = &body;
                let run = move || {
                    thread_started(ThreadKind::Vcpu);
                    let run = || {
                        vcpu.with_kicks(|vcpu, kicker| {
                            self.enter(place, kicker);
                            body(vcpu, own)
                        })
                        .unwrap_or_else(failed)
                    };
                    self.leave(place, caught(run))
                };
                match thread::Builder::new()
                    .name(format!("vcpu {place}"))
                    .stack_size(STACK)
                    .spawn_scoped(scope, run)
                {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        missing = Some(Error::host("starting a vCPU's thread")(error));
                        break;
                    }
                }
            }
            // vCPUs that were not started count as ended.
            for thread in self.threads.iter().skip(1 + threads.len()) {
                thread.out.store(true, Ordering::SeqCst);
            }
            let result = match missing {
                None => self.leave(0, caught(first)),
                Some(error) => self.leave(0, failed(error)),
            };
            self.wait();
            let mut results = vec![result];
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| failed(panicked()))
            };
            results.extend(threads.into_iter().map(join));
            let unstarted = || (Stop::Interrupted, R::default());
            results.resize_with(self.threads.len(), unstarted);
            results
        });
        let stopped_by = Some(self.stopped_by.load(Ordering::SeqCst)).filter(|place| *place != NO_VCPU);
        VcpuResults { vcpus, stopped_by }
    }

    /// Registers the calling thread as that of vCPU `place`, with its kicker.
    pub(crate) fn enter(&self, place: usize, kicker: Kicker) {
        if let Some(thread) = self.threads.get(place) {
            let _ = thread.kicker.set(kicker);
            let _ = thread.thread.set(thread::current());
        }
    }

    /// Notes the end of vCPU `place`. If that ends the machine, kicks the others until the leader's vCPU has ended. The
    /// leader then kicks the rest.
    fn leave<R>(&self, place: usize, result: (Stop, R)) -> (Stop, R) {
        if !result.0.parks() {
            let _ = self.stopped_by.compare_exchange(NO_VCPU, place, Ordering::SeqCst, Ordering::SeqCst);
            self.deadline.request_stop();
        }
        if let Some(thread) = self.threads.get(place) {
            thread.out.store(true, Ordering::SeqCst);
        }
        // Wake the threads that wait for this end.
        self.threads.iter().filter_map(|thread| thread.thread.get()).for_each(Thread::unpark);
        // Kick all, not only the leader: it may wait for a lock whose owner blocks in a write.
        while place != 0 && self.deadline.is_asked() && !self.is_out(0) {
            self.kick_all();
            thread::park_timeout(REPEAT);
        }
        result
    }

    /// Waits, on the leader's thread, until all vCPUs have ended, and kicks them if the machine must end.
    fn wait(&self) {
        let left = || (1..self.threads.len()).filter(|place| !self.is_out(*place));
        while left().next().is_some() {
            // Includes signals: the leader's own vCPU is parked, so no other thread would see them.
            if self.deadline.is_asked() {
                left().for_each(|place| self.kick(place));
            }
            thread::park_timeout(REPEAT);
        }
    }

    fn is_out(&self, place: usize) -> bool {
        self.threads.get(place).is_none_or(|thread| thread.out.load(Ordering::SeqCst))
    }

    fn kick(&self, place: usize) {
        if let Some(kicker) = self.threads.get(place).and_then(|thread| thread.kicker.get()) {
            kicker.kick();
        }
    }
}

impl Kick for VcpuThreads {
    /// Kicks all vCPUs that have not ended. All, because one may hold a lock that another waits for.
    fn kick_all(&self) {
        (0..self.threads.len()).filter(|place| !self.is_out(*place)).for_each(|place| self.kick(place));
    }
}

/// Runs a vCPU, and turns a panic into a failure. Panics of controllers are caught earlier, so this one is our bug.
fn caught<R: Default>(run: impl FnOnce() -> (Stop, R)) -> (Stop, R) {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| failed(panicked()))
}

/// The end of a vCPU that the host cannot run.
fn failed<R: Default>(error: Error) -> (Stop, R) {
    (error.into(), R::default())
}

fn panicked() -> Error {
    let source = io::Error::other("it panicked: this is a bug in the VMM");
    Error::Host { operation: "a vCPU's thread", source }
}
