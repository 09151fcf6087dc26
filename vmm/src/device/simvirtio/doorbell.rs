//! The doorbell: a page in which a driver's store wakes the device's thread (KVM_IOEVENTFD), without an exit to this
//! program. The thread sleeps until then.
//!
//! The store must be 4 bytes wide, at the page's start, and hold a queue's number. Any other access to the page is an
//! ordinary exit, and so is every one over the other transports.

use crate::device::bus::{Device, DeviceName};
use crate::device::simvirtio::Simvirtio;
use crate::error::Error;
use crate::exit::Stop;
use crate::host;
use crate::memory::GuestMemory;
use crate::shutdown::Deadline;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// For how long the device sleeps at a time. A driver that does not ring is served so often, and no more.
const PATIENCE: Duration = Duration::from_millis(100);

/// What the driver rings, and what ends the wait for that.
#[derive(Debug)]
pub(crate) struct Doorbell {
    bell: EventFd,
    end: EventFd,
}

impl Doorbell {
    /// One that nobody can ring yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
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

    /// Ends the wait, now and from now on.
    pub(crate) fn end(&self) {
        let _ = self.end.write(1);
    }

    /// How often it was rung since this was last asked.
    fn rings(&self) -> u64 {
        // It does not block, and fails where there is nothing to read.
        self.bell.read().unwrap_or(0)
    }

    /// Runs the device whenever the driver has rung, or input has come that it waits for, until the run is over or the
    /// device ends it. Counts the rings.
    pub(crate) fn serve(
        &self,
        simvirtio: &mut Simvirtio<GuestMemory>,
        over: &AtomicBool,
        deadline: &Deadline,
        rings: &mut u64,
    ) -> ControlFlow<Stop> {
        while !over.load(Ordering::Acquire) {
            // First forget the rings and then look: what is stored after this look rings anew.
            *rings = rings.saturating_add(self.rings());
            if simvirtio.advance()? {
                continue;
            }
            simvirtio.repair();
            let waits = simvirtio.reads() && simvirtio.feed(Some(Duration::ZERO))?;
            if simvirtio.advance()? {
                continue;
            }
            let started = Instant::now();
            let input = simvirtio.input().filter(|_| waits);
            let places = [Some(host::borrow(&self.bell)), Some(host::borrow(&self.end)), input];
            if let Err(error) = host::wait_any(places, Some(PATIENCE)) {
                return ControlFlow::Break(Stop::InputFailed(Arc::new(error)));
            }
            // Time in which the guest says that it waits does not count.
            if waits {
                deadline.extend_by_wait_since(started);
            }
        }
        *rings = rings.saturating_add(self.rings());
        ControlFlow::Continue(())
    }
}

/// The page on the bus: where an access is an exit. There is nothing to read, and the device looks at its window by
/// itself.
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
    use crate::memory::Gpa;
    use simvirtio::Memory;
    use simvirtio::abi;
    use simvirtio::device::State;

    /// A device over RAM that holds a driver's `R`, in the hands of `serve` for as long as `body` takes.
    fn served(body: impl FnOnce(&Doorbell, &GuestMemory)) -> (Simvirtio<GuestMemory>, u64) {
        let memory = GuestMemory::new(&[(Gpa(0), abi::DOORBELL)]).unwrap();
        let (output, _) = Output::captured();
        let mut simvirtio = Simvirtio::power_on(256, memory.clone(), output, Input::bytes(b"")).unwrap();
        let doorbell = Doorbell::new().unwrap();
        let (over, mut rings) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Deadline::default();
                assert!(doorbell.serve(&mut simvirtio, &over, &deadline, &mut rings).is_continue());
            });
            body(&doorbell, &memory);
            over.store(true, Ordering::Release);
            doorbell.end();
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
            assert!(started.elapsed() < Duration::from_secs(20), "the device takes nothing");
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
    fn a_driver_that_does_not_ring_is_served_all_the_same() {
        let (_, rings) = served(|_, memory| {
            push(memory, 0, b'R');
            wait_for_tail(memory, 1);
        });
        assert_eq!(rings, 0);
    }
}
