//! The polling transport: a host thread that runs the device while the vCPU runs its guest.

use crate::device::simvirtio::Simvirtio;
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::GuestMemory;
use crate::sys::Kicker;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Rounds without work in which the poller only pauses.
const SPIN: u32 = 64;
/// Rounds without work after which it sleeps. In between it yields, since a host may have one CPU.
const YIELD: u32 = 1024;
/// How long it sleeps at a time.
const NAP: Duration = Duration::from_micros(50);

/// A device in the hands of its thread.
#[derive(Debug)]
pub struct Poller {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Simvirtio<GuestMemory>, Option<Stop>)>>,
}

impl Poller {
    /// Starts the thread. Where the device ends the run, it sets `asked` and kicks the vCPU.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(
        mut simvirtio: Simvirtio<GuestMemory>,
        asked: Arc<AtomicBool>,
        vcpu: Kicker,
    ) -> Result<Self, Error> {
        let ended = Arc::new(AtomicBool::new(false));
        let run_ended = ended.clone();
        let body = move || {
            let mut idle: u32 = 0;
            while !run_ended.load(Ordering::Acquire) {
                match simvirtio.advance() {
                    ControlFlow::Continue(true) => idle = 0,
                    ControlFlow::Continue(false) => {
                        simvirtio.repair();
                        idle = idle.saturating_add(1);
                        back_off(idle);
                    }
                    ControlFlow::Break(stop) => {
                        asked.store(true, Ordering::Release);
                        vcpu.kick();
                        return (simvirtio, Some(stop));
                    }
                }
            }
            (simvirtio, None)
        };
        let thread = thread::Builder::new().name("simvirtio".into()).spawn(body);
        Ok(Self { ended, thread: Some(thread.map_err(Error::host("starting the poller's thread"))?) })
    }

    /// Ends the thread, then takes what is still in the queue. Returns the device, and why it ended the
    /// run, where it did.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn finish(mut self) -> Result<(Simvirtio<GuestMemory>, Option<Stop>), Error> {
        let (mut simvirtio, stop) = self.join().ok_or_else(|| Error::Host {
            operation: "the poller's thread",
            source: std::io::Error::other("it panicked; this is a bug of the VMM"),
        })?;
        let stop = stop.or_else(|| simvirtio.advance().break_value());
        Ok((simvirtio, stop))
    }

    fn join(&mut self) -> Option<(Simvirtio<GuestMemory>, Option<Stop>)> {
        self.ended.store(true, Ordering::Release);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.join();
    }
}

fn back_off(idle: u32) {
    match idle {
        ..SPIN => std::hint::spin_loop(),
        SPIN..YIELD => thread::yield_now(),
        YIELD.. => thread::sleep(NAP),
    }
}
