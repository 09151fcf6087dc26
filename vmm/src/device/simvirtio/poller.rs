//! The device's own thread: it runs the device while the vCPU runs its guest, by polling the window, or where the
//! driver rings a doorbell, when it does.

use crate::device::simvirtio::Simvirtio;
use crate::device::simvirtio::doorbell::Doorbell;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, REPEAT};
use crate::memory::GuestMemory;
use crate::shutdown::{Deadline, Kick, Worker};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

/// How many looks without work go by before anything else is done, such as reading the clock.
const LOOKS: u32 = 32;
/// For how long without work the poller only pauses.
const SPIN: Duration = Duration::from_micros(20);
/// After how long without work it sleeps. In between it yields, since a host may have one CPU.
const YIELD: Duration = Duration::from_millis(1);
/// How long it sleeps at a time.
const NAP: Duration = Duration::from_micros(50);

/// The device when its thread has ended.
#[derive(Debug)]
pub(crate) struct PollerResult {
    pub(crate) simvirtio: Simvirtio<GuestMemory>,
    /// Why it ended the run, where it did.
    pub(crate) stop: Option<Stop>,
    /// Processor time that the thread has used.
    pub(crate) thread_time: Duration,
    /// How often the driver rang.
    pub(crate) rings: u64,
}

/// A device in the hands of its thread.
#[derive(Debug)]
pub(crate) struct Poller {
    /// Tells the thread that the run is over.
    run_ended: Arc<AtomicBool>,
    doorbell: Option<Arc<Doorbell>>,
    thread: Option<Worker<PollerResult>>,
}

impl Poller {
    /// Starts the thread, which sleeps until the driver rings where there is a doorbell. Where the device ends the run, it asks for the end and kicks the vCPUs.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn start(
        mut simvirtio: Simvirtio<GuestMemory>,
        doorbell: Option<Arc<Doorbell>>,
        vcpus: Arc<dyn Kick>,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let run_ended = Arc::new(AtomicBool::new(false));
        let over = run_ended.clone();
        let bell = doorbell.clone();
        let body = move || {
            let mut rings = 0;
            let stop = match bell {
                Some(bell) => bell.serve(&mut simvirtio, &over, &deadline, &mut rings),
                None => poll(&mut simvirtio, &over, &deadline),
            }
            .break_value();
            let thread_time = host::thread_cpu_time();
            if stop.is_some() {
                deadline.abandon();
                // Again and again: a vCPU's thread may be about to enter the guest, or to write text.
                while !over.load(Ordering::Acquire) {
                    vcpus.kick_all();
                    thread::park_timeout(REPEAT);
                }
            }
            PollerResult { simvirtio, stop, thread_time, rings }
        };
        let thread = Worker::spawn("simvirtio", "starting the poller's thread", body)?;
        Ok(Self { run_ended, doorbell, thread: Some(thread) })
    }

    /// Ends the thread, then takes what is still in the queue. Where the thread hangs in a write that
    /// nobody reads, it is kicked out once the deadline has passed.
    ///
    /// # Errors
    /// The thread panicked.
    pub(crate) fn finish(mut self, deadline: &Deadline) -> Result<PollerResult, Error> {
        self.end();
        let thread = self.thread.take().ok_or_else(panicked)?;
        thread.thread().unpark();
        let mut ended = thread.join(deadline).ok_or_else(panicked)?;
        while ended.stop.is_none() {
            match ended.simvirtio.advance() {
                ControlFlow::Continue(true) => {}
                ControlFlow::Continue(false) => break,
                ControlFlow::Break(found) => ended.stop = Some(found),
            }
        }
        ended.simvirtio.repair();
        Ok(ended)
    }

    /// Tells the thread that the run is over.
    fn end(&self) {
        self.run_ended.store(true, Ordering::Release);
        if let Some(doorbell) = &self.doorbell {
            doorbell.end();
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.end();
    }
}

fn panicked() -> Error {
    let source = io::Error::other("it panicked; this is a bug of the VMM");
    Error::Host { operation: "the poller's thread", source }
}

/// Runs the device until the run is over, or until the device ends it.
fn poll(simvirtio: &mut Simvirtio<GuestMemory>, over: &AtomicBool, deadline: &Deadline) -> ControlFlow<Stop> {
    let mut looks: u32 = 0;
    let mut idle: Option<Idle> = None;
    while !over.load(Ordering::Acquire) {
        if simvirtio.advance()? {
            (looks, idle) = (0, None);
            continue;
        }
        // The next message may be a moment away: what is not for it waits, the clock too.
        looks = looks.saturating_add(1);
        if looks < LOOKS {
            std::hint::spin_loop();
            continue;
        }
        simvirtio.repair();
        let Some(idle) = &mut idle else {
            // The queues have run dry: is there more?
            let waits = simvirtio.reads() && simvirtio.feed(Some(Duration::ZERO))?;
            let now = Instant::now();
            (looks, idle) = (0, Some(Idle { since: now, waits_since: waits.then_some(now) }));
            continue;
        };
        match idle.since.elapsed() {
            time if time < SPIN => looks = 0,
            time if time < YIELD => thread::yield_now(),
            _ => {
                let waits = nap(simvirtio)?;
                // Time in which the guest says that it waits does not count.
                if let Some(since) = idle.waits_since {
                    deadline.extend_by_wait_since(since);
                }
                idle.waits_since = waits.then(Instant::now);
            }
        }
    }
    ControlFlow::Continue(())
}

/// The device has nothing to do.
struct Idle {
    /// Since when.
    since: Instant,
    /// Since when the guest waits for input, as far as that time was not yet taken off what counts.
    waits_since: Option<Instant>,
}

/// Sleeps for a moment, or until there is input for a driver that has none left. Returns whether the driver
/// says that it waits for input, and there still is none.
fn nap(simvirtio: &mut Simvirtio<GuestMemory>) -> ControlFlow<Stop, bool> {
    let started = Instant::now();
    // The input is left alone for a driver that does not read: it may be somebody else's.
    let waits = simvirtio.reads() && simvirtio.feed(Some(NAP))?;
    // Without anything to wait for, the whole moment is left to sleep.
    if !waits && started.elapsed() < NAP {
        thread::sleep(NAP);
    }
    ControlFlow::Continue(waits)
}
