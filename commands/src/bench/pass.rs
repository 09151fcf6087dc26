//! One measurement, in its own process: a thread for each core creates its share of the VMs, and runs them to their end
//! when all are alive.

use crate::bench::bare;
use crate::bench::resources::{Resources, resident_bytes};
use crate::bench::sys::{cpu_time, share_one_heap};
use crate::status;
use crate::target::RunTarget;
use guest::Guest;
use serde_json::{Value, json};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};
use vmm::device::Transport;
use vmm::machine::Processor;
use vmm::{Error, Machine, Output};

/// A program that creates and runs VMs.
pub trait VmFactory: Sync {
    /// A VM that is ready to run.
    type Vm;
    /// Creates a VM.
    ///
    /// # Errors
    /// The host failed.
    fn create(&self) -> Result<Self::Vm, Error>;
    /// Runs a VM to its end, and drops it. Returns true if the guest left 42.
    ///
    /// # Errors
    /// The host failed.
    fn run(&self, vm: Self::Vm) -> Result<bool, Error>;
}

/// Creates the machines of this VMM, with all devices of `vmm run`.
#[derive(Debug)]
pub struct VmmFactory(pub &'static Guest);

impl VmFactory for VmmFactory {
    type Vm = Machine;

    fn create(&self) -> Result<Machine, Error> {
        let builder = RunTarget::embedded(self.0)?
            .builder()
            .processor(Some(Processor::Kvm))
            .transport(Some(Transport::Exit))
            .verify(true);
        builder.output(Output::new(io::sink(), true)).build()
    }

    fn run(&self, mut machine: Machine) -> Result<bool, Error> {
        let report = machine.run()?;
        report.host_failure().map_or(Ok(status::of_report(&report) == status::OK), Err)
    }
}

impl VmFactory for bare::Host {
    type Vm = bare::Vm;

    fn create(&self) -> Result<bare::Vm, Error> {
        bare::Host::create(self).map_err(bare_error)
    }

    fn run(&self, vm: bare::Vm) -> Result<bool, Error> {
        vm.run().map_err(bare_error)
    }
}

/// Converts an error message of the bare program.
pub fn bare_error(text: String) -> Error {
    Error::Host { operation: "the bare program", source: io::Error::other(text) }
}

/// An amount of wall time and CPU time.
#[derive(Clone, Copy, Debug, Default)]
struct TimeUsed {
    wall: Duration,
    cpu: Duration,
}

/// Measures wall time and CPU time from its start.
struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu_time() }
    }

    fn add_to(&self, used: &mut TimeUsed) {
        used.cpu += cpu_time().saturating_sub(self.cpu);
        used.wall += self.wall.elapsed();
    }
}

/// The result of a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measurement {
    /// The number of VMs that were created in all passes.
    made: usize,
    /// The number of guests that left 42.
    verified: usize,
    /// The time to create the VMs.
    create: TimeUsed,
    /// The time to run the VMs and drop them.
    run: TimeUsed,
    /// The memory of all VMs that are alive at the same time, in bytes.
    memory: u64,
    /// The number of their file descriptors.
    descriptors: usize,
    /// The resources that were not released.
    left_over: Resources,
}

impl Measurement {
    /// Converts the result to JSON, for the process that requested it.
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

/// The state that the worker threads share.
struct Workers<'a, F> {
    factory: &'a F,
    barrier: Barrier,
    error: Mutex<Option<Error>>,
    verified: Mutex<usize>,
    passes: usize,
}

/// A point that all threads have reached.
enum Event {
    /// Each thread has run one VM to warm up.
    WarmedUp,
    /// The threads start to create VMs.
    CreateStarts,
    /// All VMs of the pass are alive.
    AllAlive,
    /// The threads start to run the VMs.
    RunStarts,
    /// All VMs of the pass have ended and are dropped.
    AllDropped,
    /// All passes are over.
    Finished,
}

impl<F: VmFactory> Workers<'_, F> {
    /// Does the work of one thread with its share of the VMs. Calls `on_event` at each event.
    fn work(&self, share: usize, mut on_event: impl FnMut(Event) -> Result<(), Error>) {
        let mut notify = |event| on_event(event).unwrap_or_else(|error| self.fail(error));
        // Memory that a thread allocates once, for its first VM and for the list of VMs, is not part of the measurement.
        let mut vms = Vec::with_capacity(share);
        self.create(1, |vm| {
            self.run(vm);
        });
        self.barrier.wait();
        notify(Event::WarmedUp);
        for _ in 0..self.passes {
            self.barrier.wait();
            notify(Event::CreateStarts);
            self.create(share, |vm| vms.push(vm));
            self.barrier.wait();
            notify(Event::AllAlive);
            self.barrier.wait();
            notify(Event::RunStarts);
            let verified = vms.drain(..).filter_map(|vm| self.run(vm)).filter(|verified| *verified).count();
            *self.verified.lock().unwrap_or_else(PoisonError::into_inner) += verified;
            self.barrier.wait();
            notify(Event::AllDropped);
        }
        self.barrier.wait();
        notify(Event::Finished);
        // The threads stay alive until the remaining resources are counted.
        self.barrier.wait();
    }

    /// Creates `count` VMs. Stops at the first error of any thread.
    fn create(&self, count: usize, mut each: impl FnMut(F::Vm)) {
        for _ in 0..count {
            if self.must_stop() {
                return;
            }
            match self.factory.create() {
                Ok(vm) => each(vm),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Runs a VM, unless a thread has failed. Returns true if the guest left 42.
    fn run(&self, vm: F::Vm) -> Option<bool> {
        if self.must_stop() {
            return None;
        }
        self.factory.run(vm).map_err(|error| self.fail(error)).ok()
    }

    /// Keeps the first error.
    fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn must_stop(&self) -> bool {
        vmm::host::interrupted() || self.error.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Takes the times and counts the resources at the events.
struct Observer {
    result: Measurement,
    stopwatch: Stopwatch,
    resources_before: Resources,
    memory_before: u64,
    is_first_pass: bool,
}

impl Observer {
    fn new(made: usize) -> Self {
        Self {
            result: Measurement { made, ..Default::default() },
            stopwatch: Stopwatch::start(),
            resources_before: Resources::default(),
            memory_before: 0,
            is_first_pass: true,
        }
    }

    /// # Errors
    /// `/proc/self` cannot be read.
    fn on_event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::WarmedUp => {
                self.resources_before = Resources::now().map_err(unreadable)?;
                self.memory_before = resident_bytes().map_err(unreadable)?;
            }
            Event::CreateStarts | Event::RunStarts => self.stopwatch = Stopwatch::start(),
            Event::AllAlive => {
                self.stopwatch.add_to(&mut self.result.create);
                // Later passes reuse the memory of the first one.
                if std::mem::replace(&mut self.is_first_pass, false) {
                    let memory = resident_bytes().map_err(unreadable)?;
                    let descriptors = Resources::now().map_err(unreadable)?.descriptors;
                    self.result.memory = memory.saturating_sub(self.memory_before);
                    self.result.descriptors = descriptors.saturating_sub(self.resources_before.descriptors);
                }
            }
            Event::AllDropped => self.stopwatch.add_to(&mut self.result.run),
            Event::Finished => {
                let left_over = Resources::left_over_since(self.resources_before);
                self.result.left_over = left_over.map_err(unreadable)?;
            }
        }
        Ok(())
    }
}

fn unreadable(source: io::Error) -> Error {
    Error::Host { operation: "reading /proc/self", source }
}

/// Creates and runs `vms` VMs at a time on `threads` threads, `passes` times.
///
/// # Errors
/// The host failed, or a signal interrupted the program.
pub fn measure(
    factory: &impl VmFactory,
    vms: usize,
    passes: usize,
    threads: usize,
) -> Result<Measurement, Error> {
    let threads = threads.clamp(1, vms.max(1));
    share_one_heap();
    let workers = Workers {
        factory,
        barrier: Barrier::new(threads),
        error: Mutex::default(),
        verified: Mutex::default(),
        passes,
    };
    let share = |worker: usize| (vms + worker) / threads;
    let mut observer = Observer::new(vms * passes);
    thread::scope(|scope| {
        let workers = &workers;
        for worker in 1..threads {
            scope.spawn(move || workers.work(share(worker), |_| Ok(())));
        }
        workers.work(share(0), |event| observer.on_event(event));
    });
    if vmm::host::interrupted() {
        return Err(Error::Interrupted);
    }
    if let Some(error) = workers.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let verified = workers.verified.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Measurement { verified, ..observer.result })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts the VMs that are alive at the same time. Creating the VM with the number `fail_at` fails.
    #[derive(Default)]
    struct CountingFactory {
        made: AtomicUsize,
        alive: AtomicUsize,
        max_alive: AtomicUsize,
        fail_at: Option<usize>,
    }

    impl VmFactory for CountingFactory {
        type Vm = ();

        fn create(&self) -> Result<(), Error> {
            let made = self.made.fetch_add(1, Ordering::SeqCst);
            if self.fail_at == Some(made) {
                return Err(bare_error("injected failure".into()));
            }
            let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
            self.max_alive.fetch_max(alive, Ordering::SeqCst);
            Ok(())
        }

        fn run(&self, (): ()) -> Result<bool, Error> {
            self.alive.fetch_sub(1, Ordering::SeqCst);
            Ok(true)
        }
    }

    #[test]
    fn all_vms_are_alive_before_the_first_one_ends() {
        for (vms, threads) in [(1, 1), (1, 8), (7, 2), (20, 3)] {
            let factory = CountingFactory::default();
            let result = measure(&factory, vms, 2, threads).unwrap();
            assert_eq!((result.made, result.verified), (2 * vms, 2 * vms));
            let max_alive = factory.max_alive.load(Ordering::SeqCst);
            assert_eq!(max_alive, vms.max(threads.min(vms)), "{vms} on {threads}");
            assert_eq!(factory.alive.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn a_failure_ends_the_work_of_all_threads() {
        for fail_at in [0, 1, 5, 11] {
            let factory = CountingFactory { fail_at: Some(fail_at), ..Default::default() };
            let error = measure(&factory, 10, 1, 2).unwrap_err();
            assert!(error.to_string().contains("injected failure"), "{error}");
        }
    }
}
