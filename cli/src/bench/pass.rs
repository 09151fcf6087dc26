//! One measurement, in a process of its own: VMs are created until all are there, and then run to their end, by a thread
//! for each core.

use crate::bench::bare;
use crate::bench::count::{Holdings, resident};
use crate::bench::sys::{cpu_time, one_heap};
use crate::status;
use crate::target::RunTarget;
use guest::Guest;
use serde_json::{Value, json};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};
use vmm::device::Transport;
use vmm::{Error, Machine, Output};

/// What makes and runs VMs.
pub trait Contender: Sync {
    /// A VM that is ready to run.
    type Vm;
    /// Makes one.
    ///
    /// # Errors
    /// The host refused.
    fn create(&self) -> Result<Self::Vm, Error>;
    /// Runs it to its end, and drops it. Returns whether its guest has left 42.
    ///
    /// # Errors
    /// The host failed.
    fn run(&self, vm: Self::Vm) -> Result<bool, Error>;
}

/// This VMM's machines, as `vmm run` makes them.
#[derive(Debug)]
pub struct Machines(pub &'static Guest);

impl Contender for Machines {
    type Vm = Machine;

    fn create(&self) -> Result<Machine, Error> {
        let builder = RunTarget::embedded(self.0)?.builder().transport(Some(Transport::Exit)).verify(true);
        builder.output(Output::new(io::sink(), true)).build()
    }

    fn run(&self, mut machine: Machine) -> Result<bool, Error> {
        Ok(status::of_report(&machine.run()?) == status::OK)
    }
}

impl Contender for bare::Host {
    type Vm = bare::Vm;

    fn create(&self) -> Result<bare::Vm, Error> {
        bare::Host::create(self).map_err(of_bare)
    }

    fn run(&self, vm: bare::Vm) -> Result<bool, Error> {
        vm.run().map_err(of_bare)
    }
}

/// A failure of the bare program, which has no words of its own.
pub fn of_bare(text: String) -> Error {
    Error::Host { operation: "the bare program", source: io::Error::other(text) }
}

/// Wall time and CPU time.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

/// A moment from which time is counted.
struct Moment {
    wall: Instant,
    cpu: Duration,
}

impl Moment {
    fn now() -> Self {
        Self { wall: Instant::now(), cpu: cpu_time() }
    }

    fn add_to(&self, spent: &mut Spent) {
        spent.cpu += cpu_time().saturating_sub(self.cpu);
        spent.wall += self.wall.elapsed();
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// How many VMs were made in all.
    made: usize,
    /// How many of them have left 42.
    verified: usize,
    /// Until all were there.
    create: Spent,
    /// Until all had ended and gone.
    run: Spent,
    /// Memory of all that were there at once, in bytes.
    memory: u64,
    /// Their file descriptors.
    descriptors: usize,
    left_over: Holdings,
}

impl Measured {
    /// The same for whoever asked for it.
    pub fn as_json(&self) -> Value {
        json!({
            "made": self.made,
            "verified": self.verified,
            "create": { "wall": self.create.wall.as_secs_f64(), "cpu": self.create.cpu.as_secs_f64() },
            "run": { "wall": self.run.wall.as_secs_f64(), "cpu": self.run.cpu.as_secs_f64() },
            "memory": self.memory,
            "descriptors": self.descriptors,
            "left_over": self.left_over.as_json(),
        })
    }
}

/// What the threads share.
struct Pool<'a, C> {
    contender: &'a C,
    barrier: Barrier,
    failed: Mutex<Option<Error>>,
    verified: Mutex<usize>,
    passes: usize,
}

impl<C: Contender> Pool<'_, C> {
    /// What a thread does with its share of the VMs; `watch` sees what is between the phases.
    fn work(&self, share: usize, mut watch: impl FnMut(Phase)) {
        // What a thread needs for its first VM it has from then on, and what it keeps them in is none of theirs.
        let mut mine = Vec::with_capacity(share);
        self.try_all(1, |vm| {
            self.run(vm);
        });
        self.barrier.wait();
        watch(Phase::Ready);
        for _ in 0..self.passes {
            self.barrier.wait();
            watch(Phase::Create);
            self.try_all(share, |vm| mine.push(vm));
            self.barrier.wait();
            watch(Phase::AllAlive);
            self.barrier.wait();
            watch(Phase::Run);
            let right = mine.drain(..).filter_map(|vm| self.run(vm)).filter(|right| *right).count();
            *self.verified.lock().unwrap_or_else(PoisonError::into_inner) += right;
            self.barrier.wait();
            watch(Phase::AllGone);
        }
        self.barrier.wait();
        watch(Phase::Over);
        // The threads stay until what is left over was counted.
        self.barrier.wait();
    }

    /// Makes so many VMs, unless something has gone wrong.
    fn try_all(&self, count: usize, mut each: impl FnMut(C::Vm)) {
        for _ in 0..count {
            if self.has_failed() {
                return;
            }
            match self.contender.create() {
                Ok(vm) => each(vm),
                Err(error) => self.fail(error),
            }
        }
    }

    fn run(&self, vm: C::Vm) -> Option<bool> {
        if self.has_failed() {
            return None;
        }
        self.contender.run(vm).map_err(|error| self.fail(error)).ok()
    }

    fn fail(&self, error: Error) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn has_failed(&self) -> bool {
        vmm::host::interrupted() || self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Where all threads are.
enum Phase {
    Ready,
    Create,
    AllAlive,
    Run,
    AllGone,
    Over,
}

/// Makes and runs `vms` VMs at a time on `threads` threads, `passes` times.
///
/// # Errors
/// The host failed, or a signal asked for the end.
pub fn measure(
    contender: &impl Contender,
    vms: usize,
    passes: usize,
    threads: usize,
) -> Result<Measured, Error> {
    let threads = threads.clamp(1, vms.max(1));
    one_heap();
    let pool = Pool {
        contender,
        barrier: Barrier::new(threads),
        failed: Mutex::default(),
        verified: Mutex::default(),
        passes,
    };
    let share = |worker: usize| (vms + worker) / threads;
    let mut measured = Measured { made: vms * passes, ..Default::default() };
    let (mut before, mut memory, mut moment) = (Holdings::default(), 0, Moment::now());
    let mut alive = false;
    let watch = |phase| match phase {
        Phase::Ready => (before, memory) = (Holdings::now(), resident()),
        Phase::Create | Phase::Run => moment = Moment::now(),
        Phase::AllAlive => {
            moment.add_to(&mut measured.create);
            // Once: from the second pass on there is memory to be used again.
            if !std::mem::replace(&mut alive, true) {
                measured.memory = resident().saturating_sub(memory);
                measured.descriptors = Holdings::now().descriptors.saturating_sub(before.descriptors);
            }
        }
        Phase::AllGone => moment.add_to(&mut measured.run),
        Phase::Over => measured.left_over = Holdings::left_over_since(before),
    };
    thread::scope(|scope| {
        let pool = &pool;
        for worker in 1..threads {
            scope.spawn(move || pool.work(share(worker), |_| {}));
        }
        pool.work(share(0), watch);
    });
    if vmm::host::interrupted() {
        return Err(Error::Interrupted);
    }
    if let Some(error) = pool.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    measured.verified = pool.verified.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how many are there at once, and fails where it is told to.
    #[derive(Default)]
    struct Counting {
        made: AtomicUsize,
        alive: AtomicUsize,
        most: AtomicUsize,
        fail_at: Option<usize>,
    }

    impl Contender for Counting {
        type Vm = ();

        fn create(&self) -> Result<(), Error> {
            let made = self.made.fetch_add(1, Ordering::SeqCst);
            if self.fail_at == Some(made) {
                return Err(of_bare("as it was told".into()));
            }
            let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(alive, Ordering::SeqCst);
            Ok(())
        }

        fn run(&self, (): ()) -> Result<bool, Error> {
            self.alive.fetch_sub(1, Ordering::SeqCst);
            Ok(true)
        }
    }

    #[test]
    fn all_are_alive_before_the_first_one_ends() {
        for (vms, threads) in [(1, 1), (1, 8), (7, 2), (20, 3)] {
            let counting = Counting::default();
            let measured = measure(&counting, vms, 2, threads).unwrap();
            assert_eq!((measured.made, measured.verified), (2 * vms, 2 * vms));
            assert_eq!(counting.most.load(Ordering::SeqCst), vms.max(threads.min(vms)), "{vms} on {threads}");
            assert_eq!(counting.alive.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn a_failure_ends_it_on_all_threads() {
        for fail_at in [0, 1, 5, 11] {
            let counting = Counting { fail_at: Some(fail_at), ..Default::default() };
            let error = measure(&counting, 10, 1, 2).unwrap_err();
            assert!(error.to_string().contains("as it was told"), "{error}");
        }
    }
}
