//! The vCPUs of a machine as a team: each on a thread, until all have ended or one has ended the machine.
//!
//! The first vCPU runs on the thread that asked for the run, the others on threads of their own. A vCPU that
//! halts is parked, and the others go on. Anything else that ends a vCPU ends the machine: the others are
//! kicked until they are out.

use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, Kicker, REPEAT};
use crate::kvm::vcpu::KvmVcpu;
use crate::shutdown::Kick;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

/// Size of a vCPU thread's own stack, in bytes: more than the controllers of this crate need.
const STACK: usize = 512 << 10;
/// No vCPU.
const NO_VCPU: usize = usize::MAX;

/// What the threads share.
#[derive(Debug)]
pub struct VcpuThreads {
    /// Tells every vCPU's watchdog that the machine shall end.
    asked: Arc<AtomicBool>,
    /// The first vCPU that ended the machine.
    stopped_by: AtomicUsize,
    threads: Vec<VcpuThread>,
}

/// What came of each vCPU, and which one ended the machine, if one did.
pub(crate) struct VcpuResults<R> {
    pub(crate) vcpus: Vec<(Stop, R)>,
    pub(crate) stopped_by: Option<usize>,
}

#[derive(Debug, Default)]
struct VcpuThread {
    kicker: OnceLock<Kicker>,
    thread: OnceLock<Thread>,
    out: AtomicBool,
}

impl VcpuThreads {
    /// A team of `size` that ends when `asked` is set. The first of them leads.
    pub(crate) fn new(size: usize, asked: Arc<AtomicBool>) -> Self {
        let threads = std::iter::repeat_with(VcpuThread::default).take(size).collect();
        Self { asked, stopped_by: AtomicUsize::new(NO_VCPU), threads }
    }

    /// Runs each of `others`, with what is its own, in `body` on a thread, and `first` on this one.
    ///
    /// # Errors
    /// The host has no threads left, or cannot run a vCPU.
    pub(crate) fn run<'a, C: Send, R: Send>(
        &self,
        others: impl Iterator<Item = (&'a mut KvmVcpu, C)>,
        first: impl FnOnce() -> Result<(Stop, R), Error>,
        body: impl Fn(&mut KvmVcpu, C) -> Result<(Stop, R), Error> + Sync,
    ) -> Result<VcpuResults<R>, Error> {
        let results = thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut failed = None;
            for (place, (vcpu, own)) in (1..).zip(others) {
                let body = &body;
                let run = move || {
                    let run = || {
                        vcpu.with_kicks(|vcpu, kicker| {
                            self.enter(place, kicker);
                            body(vcpu, own)
                        })
                        .and_then(|result| result)
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
                        failed = Some(Error::host("starting a vCPU's thread")(error));
                        break;
                    }
                }
            }
            // Those that were not started are out already.
            for thread in self.threads.iter().skip(1 + threads.len()) {
                thread.out.store(true, Ordering::SeqCst);
            }
            let result = match failed {
                None => self.leave(0, caught(first)),
                Some(error) => self.leave(0, Err(error)),
            };
            self.wait();
            let mut results = vec![result];
            let join =
                |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|_| Err(panicked()));
            results.extend(threads.into_iter().map(join));
            results
        });
        let stopped_by = Some(self.stopped_by.load(Ordering::SeqCst)).filter(|place| *place != NO_VCPU);
        Ok(VcpuResults { vcpus: results.into_iter().collect::<Result<_, _>>()?, stopped_by })
    }

    /// Says how vCPU `place`, which is the calling thread's, can be kicked.
    pub(crate) fn enter(&self, place: usize, kicker: Kicker) {
        if let Some(thread) = self.threads.get(place) {
            let _ = thread.kicker.set(kicker);
            let _ = thread.thread.set(thread::current());
        }
    }

    /// vCPU `place` has ended. Where that ends the machine, the others are kicked until the leader is out; he then
    /// sees to the rest.
    fn leave<R>(&self, place: usize, result: Result<(Stop, R), Error>) -> Result<(Stop, R), Error> {
        if !matches!(&result, Ok((stop, _)) if stop.parks()) {
            let _ = self.stopped_by.compare_exchange(NO_VCPU, place, Ordering::SeqCst, Ordering::SeqCst);
            self.asked.store(true, Ordering::SeqCst);
        }
        if let Some(thread) = self.threads.get(place) {
            thread.out.store(true, Ordering::SeqCst);
        }
        // Whoever waits looks again.
        self.threads.iter().filter_map(|thread| thread.thread.get()).for_each(Thread::unpark);
        // Not him alone: he may wait for a lock that another one holds, in a write that blocks.
        while place != 0 && self.asked.load(Ordering::SeqCst) && !self.is_out(0) {
            self.kick_all();
            thread::park_timeout(REPEAT);
        }
        result
    }

    /// The leader waits until all are out, and kicks them where the machine shall end.
    fn wait(&self) {
        let left = || (1..self.threads.len()).filter(|place| !self.is_out(*place));
        while left().next().is_some() {
            // His own vCPU is parked: nobody else would see an interruption.
            if host::interrupted() {
                self.asked.store(true, Ordering::SeqCst);
            }
            if self.asked.load(Ordering::SeqCst) {
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
    /// All that are not out, since one may hold a lock that another waits for.
    fn kick_all(&self) {
        (0..self.threads.len()).filter(|place| !self.is_out(*place)).for_each(|place| self.kick(place));
    }
}

/// Runs a vCPU; a panic of this VMM's own, since those of controllers are caught earlier, is an error.
fn caught<R>(run: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    let source = io::Error::other("it panicked; this is a bug of the VMM");
    Error::Host { operation: "a vCPU's thread", source }
}
