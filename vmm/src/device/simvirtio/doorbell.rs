//! The doorbell: a page in which the driver's store wakes the device's thread (KVM_IOEVENTFD), without an exit to this
//! program. The thread sleeps until then.
//!
//! The doorbell carries no data: the thread drains the eventfd, then scans the window, so no notification is lost. The
//! loop is in the crate `simvirtio`, module `serve`.
//!
//! The store must be 4 bytes wide, at the start of the page, and its value must be the number of a queue. Every other
//! access to the page is an ordinary exit. Over the other transports every access to the page is one.

use crate::device::bus::{Device, DeviceName};
use crate::device::simvirtio::Simvirtio;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, EventFd};
use crate::memory::SharedMemory;
use crate::shutdown::Deadline;
use simvirtio::serve::{Sleeper, serve};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest time that the device sleeps without a ring. A driver that does not ring is served at this interval.
const SLEEP: Duration = Duration::from_millis(100);

/// The event that the driver signals, and the event that ends the wait for it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    bell: EventFd,
    end: EventFd,
}

impl Doorbell {
    /// Creates a doorbell that is not attached to a page yet.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            bell: host::event().map_err(Error::host("eventfd"))?,
            end: host::event().map_err(Error::host("eventfd"))?,
        })
    }

    /// The event that a store to the doorbell page signals.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Ends the wait of [`serve`](Self::serve), now and until the next [`begin_run`](Self::begin_run).
    pub(crate) fn end(&self) {
        let _ = self.end.write(1);
    }

    /// Drains the event with which an earlier run ended. Otherwise no wait would block.
    pub(crate) fn begin_run(&self) {
        let _ = self.end.read();
    }

    /// Drops the rings that were not counted.
    pub(crate) fn reset(&self) {
        let _ = self.rings();
    }

    /// The number of rings since the last call.
    fn rings(&self) -> u64 {
        // The event does not block: the read fails if there was no ring.
        self.bell.read().unwrap_or(0)
    }

    /// Runs the device each time the driver rings or input arrives that the driver waits for. Returns when `over` is
    /// set or the device ends the run. Adds the number of rings to `rings`.
    pub(crate) fn serve(
        &self,
        simvirtio: &mut Simvirtio<SharedMemory>,
        over: &AtomicBool,
        deadline: &Deadline,
        rings: &mut u64,
    ) -> ControlFlow<Stop> {
        serve(&mut Served { doorbell: self, simvirtio, over, deadline, rings })
    }
}

/// A device with its doorbell, while [`Doorbell::serve`] runs.
struct Served<'a> {
    doorbell: &'a Doorbell,
    simvirtio: &'a mut Simvirtio<SharedMemory>,
    over: &'a AtomicBool,
    deadline: &'a Deadline,
    rings: &'a mut u64,
}

impl Sleeper for Served<'_> {
    type Stop = Stop;

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn drain(&mut self) {
        *self.rings = self.rings.saturating_add(self.doorbell.rings());
    }

    fn scan(&mut self) -> ControlFlow<Stop, bool> {
        self.simvirtio.advance()
    }

    fn sleep(&mut self) -> ControlFlow<Stop> {
        let simvirtio = &mut *self.simvirtio;
        simvirtio.repair();
        let waits = simvirtio.reads() && simvirtio.feed(Some(Duration::ZERO))?;
        if simvirtio.advance()? {
            return ControlFlow::Continue(());
        }
        let started = Instant::now();
        let input = simvirtio.input().filter(|_| waits);
        let sources =
            [Some(host::borrow(&self.doorbell.bell)), Some(host::borrow(&self.doorbell.end)), input];
        if let Err(error) = host::wait_any(sources, Some(SLEEP)) {
            return ControlFlow::Break(Stop::InputFailed(Arc::new(error)));
        }
        // Time in which the guest waits for input does not count.
        if waits {
            self.deadline.extend_by_wait_since(started);
        }
        ControlFlow::Continue(())
    }
}

/// The doorbell page on the MMIO bus, for accesses that exit. Reads return all ones. Writes do nothing, because the
/// device scans its window by itself.
#[derive(Clone, Copy, Debug)]
pub struct DoorbellPage;

impl Device for DoorbellPage {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }
    fn write(&mut self, _: u64, _: u8, _: u64) -> ControlFlow<Stop> {
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::register("simvirtio", "doorbell")
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::console::input::Input;
    use crate::console::output::Output;
    use crate::memory::{Gpa, GuestMemory};
    use simvirtio::Memory;
    use simvirtio::abi::{self, Layout};
    use simvirtio::device::State;

    /// Runs `serve` on a new device while `body` plays the driver. Returns the device and the number of rings.
    fn served(body: impl FnOnce(&Doorbell, &GuestMemory)) -> (Simvirtio<SharedMemory>, u64) {
        let memory = GuestMemory::new(&[(Gpa(0), abi::DOORBELL)]).unwrap();
        let shared = SharedMemory::new(&memory).unwrap();
        let (output, _) = Output::captured();
        let mut simvirtio =
            Simvirtio::power_on(Layout::Table, 256, shared, output, Input::bytes(b"")).unwrap();
        let doorbell = Doorbell::new().unwrap();
        let (over, mut rings) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let device = scope.spawn(|| {
                let deadline = Deadline::default();
                assert!(doorbell.serve(&mut simvirtio, &over, &deadline, &mut rings).is_continue());
            });
            body(&doorbell, &memory);
            over.store(true, Ordering::Release);
            doorbell.end();
            // ThreadSanitizer does not see the end of a scope, but it sees a join.
            device.join().unwrap();
        });
        (simvirtio, rings)
    }

    fn push(memory: &GuestMemory, head: u32, byte: u8) {
        memory.store_u8(abi::TX_BUFFER + u64::from(head), byte);
        memory.store_u32(abi::WINDOW + abi::offset::TX_HEAD, head + 1);
    }

    fn wait_for_tail(memory: &GuestMemory, tail: u32) {
        let started = Instant::now();
        while memory.load_u32(abi::WINDOW + abi::offset::TX_TAIL) != tail {
            assert!(started.elapsed() < Duration::from_secs(20), "the device does not take the byte");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_ring_wakes_the_device() {
        let (simvirtio, rings) = served(|doorbell, memory| {
            push(memory, 0, b'R');
            doorbell.bell.write(1).unwrap();
            wait_for_tail(memory, 1);
            push(memory, 1, b'C');
            doorbell.bell.write(1).unwrap();
            wait_for_tail(memory, 2);
        });
        assert_eq!(rings, 2);
        assert_eq!(simvirtio.report(crate::device::simvirtio::Transport::Doorbell).state, State::Config);
    }

    #[test]
    fn a_driver_that_does_not_ring_is_still_served() {
        let (_, rings) = served(|_, memory| {
            push(memory, 0, b'R');
            wait_for_tail(memory, 1);
        });
        assert_eq!(rings, 0);
    }
}
