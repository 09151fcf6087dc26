//! The polling transport: a host thread that runs the device while the vCPU runs its guest.

use crate::device::simvirtio::Simvirtio;
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::GuestMemory;
use crate::sys::{self, Kicker, REPEAT};
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Rounds without work in which the poller only pauses.
const SPIN: u32 = 64;
/// Rounds without work after which it sleeps. In between it yields, since a host may have one CPU.
const YIELD: u32 = 1024;
/// How long it sleeps at a time.
const NAP: Duration = Duration::from_micros(50);

/// The device when its thread has ended, and why it ended the run, where it did.
type Ended = (Simvirtio<GuestMemory>, Option<Stop>);

/// A device in the hands of its thread.
#[derive(Debug)]
pub(crate) struct Poller {
    /// Tells the thread that the run is over.
    run_ended: Arc<AtomicBool>,
    ended: Receiver<Ended>,
    thread: Thread,
    /// Set by the thread when it begins.
    kicker: Arc<OnceLock<Kicker>>,
}

impl Poller {
    /// Starts the thread. Where the device ends the run, it sets `asked` and kicks the vCPU.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn start(
        mut simvirtio: Simvirtio<GuestMemory>,
        asked: Arc<AtomicBool>,
        vcpu: Kicker,
    ) -> Result<Self, Error> {
        let run_ended = Arc::new(AtomicBool::new(false));
        let over = run_ended.clone();
        let kicker = Arc::new(OnceLock::new());
        let own_kicker = kicker.clone();
        let (end, ended) = mpsc::channel();
        let body = move || {
            own_kicker.get_or_init(Kicker::of_this_thread);
            let stop = poll(&mut simvirtio, &over);
            if stop.is_some() {
                asked.store(true, Ordering::Release);
                // Again and again: the vCPU's thread may be about to enter the guest, or to write text.
                while !over.load(Ordering::Acquire) {
                    vcpu.kick();
                    thread::park_timeout(REPEAT);
                }
            }
            let _ = end.send((simvirtio, stop));
        };
        let failed = Error::host("starting the poller's thread");
        let handle = thread::Builder::new().name("simvirtio".into()).spawn(body).map_err(failed)?;
        Ok(Self { run_ended, ended, thread: handle.thread().clone(), kicker })
    }

    /// Ends the thread, then takes what is still in the queue. Where the thread hangs in a write that
    /// nobody reads, it is kicked out once the deadline has passed.
    ///
    /// # Errors
    /// The thread panicked.
    pub(crate) fn finish(self, deadline: Option<Instant>) -> Result<Ended, Error> {
        self.run_ended.store(true, Ordering::Release);
        self.thread.unpark();
        let (mut simvirtio, mut stop) = loop {
            match self.ended.recv_timeout(REPEAT) {
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Disconnected) => return Err(panicked()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let late = sys::interrupted() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if let Some(kicker) = self.kicker.get().filter(|_| late) {
                kicker.kick();
            }
        };
        while stop.is_none() {
            match simvirtio.advance() {
                ControlFlow::Continue(true) => {}
                ControlFlow::Continue(false) => break,
                ControlFlow::Break(found) => stop = Some(found),
            }
        }
        simvirtio.repair();
        Ok((simvirtio, stop))
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.run_ended.store(true, Ordering::Release);
    }
}

fn panicked() -> Error {
    let source = io::Error::other("it panicked; this is a bug of the VMM");
    Error::Host { operation: "the poller's thread", source }
}

/// Runs the device until the run is over, or until the device ends it.
fn poll(simvirtio: &mut Simvirtio<GuestMemory>, over: &AtomicBool) -> Option<Stop> {
    let mut idle: u32 = 0;
    while !over.load(Ordering::Acquire) {
        match simvirtio.advance() {
            ControlFlow::Continue(true) => idle = 0,
            ControlFlow::Continue(false) => {
                simvirtio.repair();
                idle = idle.saturating_add(1);
                back_off(idle);
            }
            ControlFlow::Break(stop) => return Some(stop),
        }
    }
    None
}

fn back_off(idle: u32) {
    match idle {
        ..SPIN => std::hint::spin_loop(),
        SPIN..YIELD => thread::yield_now(),
        YIELD.. => thread::sleep(NAP),
    }
}
