//! The device's own thread: it runs the device while the vCPU runs the guest. It polls the window or, with a doorbell,
//! waits until the driver rings.

use crate::device::simvirtio::Simvirtio;
use crate::device::simvirtio::doorbell::Doorbell;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::ThreadKind;
use crate::host::{self, REPEAT};
use crate::memory::SharedMemory;
use crate::shutdown::{Deadline, Kick, Worker};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

/// The number of polls without work before the poller does anything else, such as reading the clock.
const POLLS_PER_ROUND: u32 = 32;
/// The time without work in which the poller only spins.
const SPIN_TIME: Duration = Duration::from_micros(20);
/// The time without work after which the poller sleeps. Before that it yields, because the host may have only one CPU.
const YIELD_TIME: Duration = Duration::from_millis(1);
/// The time between two polls of a sleeping poller.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// The device after its thread has ended.
#[derive(Debug)]
pub(crate) struct PollerResult {
    pub(crate) simvirtio: Simvirtio<SharedMemory>,
    /// The reason if the device ended the run.
    pub(crate) stop: Option<Stop>,
    /// The processor time that the thread has used.
    pub(crate) thread_time: Duration,
    /// The number of rings of the doorbell.
    pub(crate) rings: u64,
}

/// A device whose thread runs.
#[derive(Debug)]
pub(crate) struct Poller {
    /// Set when the run is over.
    run_ended: Arc<AtomicBool>,
    doorbell: Option<Arc<Doorbell>>,
    thread: Option<Worker<PollerResult>>,
}

impl Poller {
    /// Starts the thread. With a doorbell it sleeps until the driver rings. If the device ends the run, the thread
    /// abandons `deadline` and kicks the vCPUs.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn start(
        mut simvirtio: Simvirtio<SharedMemory>,
        doorbell: Option<Arc<Doorbell>>,
        vcpus: Arc<dyn Kick>,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        doorbell.iter().for_each(|doorbell| doorbell.begin_run());
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
                // Repeated, because a kick may come just before the vCPU's thread enters the guest or a blocking write.
                while !over.load(Ordering::Acquire) {
                    vcpus.kick_all();
                    thread::park_timeout(REPEAT);
                }
            }
            PollerResult { simvirtio, stop, thread_time, rings }
        };
        let thread = Worker::spawn("simvirtio", ThreadKind::Device, "starting SIMVIRTIO's thread", body)?;
        Ok(Self { run_ended, doorbell, thread: Some(thread) })
    }

    /// Ends the thread, then processes the rest of the queue. If the thread blocks in a write because the reader has
    /// stopped reading, it is kicked out of the write after the deadline.
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

    /// Signals to the thread that the run is over.
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
    let source = io::Error::other("it panicked; this is a bug in the VMM");
    Error::Host { operation: "SIMVIRTIO's thread", source }
}

/// Polls the device until `over` is set or the device ends the run.
fn poll(
    simvirtio: &mut Simvirtio<SharedMemory>,
    over: &AtomicBool,
    deadline: &Deadline,
) -> ControlFlow<Stop> {
    let mut polls: u32 = 0;
    let mut idle: Option<Idle> = None;
    while !over.load(Ordering::Acquire) {
        if simvirtio.advance()? {
            (polls, idle) = (0, None);
            continue;
        }
        // The next byte may come at once, so everything else waits, even reading the clock.
        polls = polls.saturating_add(1);
        if polls < POLLS_PER_ROUND {
            std::hint::spin_loop();
            continue;
        }
        simvirtio.repair();
        let Some(idle) = &mut idle else {
            // The queues have just become empty.
            let waits = simvirtio.reads() && simvirtio.feed(Some(Duration::ZERO))?;
            let now = Instant::now();
            (polls, idle) = (0, Some(Idle { since: now, waits_since: waits.then_some(now) }));
            continue;
        };
        match idle.since.elapsed() {
            time if time < SPIN_TIME => polls = 0,
            time if time < YIELD_TIME => thread::yield_now(),
            _ => {
                let waits = sleep(simvirtio)?;
                // Time in which the guest waits for input does not count.
                if let Some(since) = idle.waits_since {
                    deadline.extend_by_wait_since(since);
                }
                idle.waits_since = waits.then(Instant::now);
            }
        }
    }
    ControlFlow::Continue(())
}

/// The state of a device that has nothing to do.
struct Idle {
    /// The start of the idle time.
    since: Instant,
    /// The start of the time in which the guest waits for input and that has not been added to the deadline yet.
    waits_since: Option<Instant>,
}

/// Sleeps for [`POLL_INTERVAL`], or until input arrives for a driver that waits for it. Returns true if the driver
/// waits for input and none has arrived.
fn sleep(simvirtio: &mut Simvirtio<SharedMemory>) -> ControlFlow<Stop, bool> {
    let started = Instant::now();
    // Without a driver that reads, the input is not touched: another program may want it.
    let waits = simvirtio.reads() && simvirtio.feed(Some(POLL_INTERVAL))?;
    // If `feed` had nothing to wait for, the thread sleeps here.
    if !waits && started.elapsed() < POLL_INTERVAL {
        thread::sleep(POLL_INTERVAL);
    }
    ControlFlow::Continue(waits)
}
