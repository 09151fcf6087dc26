//! What a device tells its driver: used buffers, and that it needs a reset (virtio 1.2, sections 2.1.2, 2.9
//! and 4.2.2).
//!
//! The device's thread tells it, and the transport shows it in its registers.

use crate::device::virtio::queue::Broken;
use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bit of InterruptStatus: the device has used a buffer.
pub const USED_BUFFER: u32 = 1;
/// Bit of InterruptStatus: the device's configuration or status has changed.
pub const CONFIG_CHANGE: u32 = 2;

/// An event descriptor that nobody blocks on.
pub(crate) fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::host("making an event descriptor"))
}

/// Writes to an event descriptor. The one way in which that fails is a full counter, which says as much.
pub(crate) fn signal(event: &EventFd) {
    let _ = event.write(1);
}

/// A device's interrupt, and the rest of what its thread and the transport share.
#[derive(Debug)]
pub struct Interrupt {
    device: &'static str,
    status: AtomicU32,
    needs_reset: AtomicBool,
    /// The device shall take no further request.
    halted: AtomicBool,
    /// Somebody has been told that the driver broke the rules.
    told: AtomicBool,
    event: EventFd,
}

impl Interrupt {
    /// The interrupt of `device`, which is named in what is said of it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(device: &'static str) -> Result<Self, Error> {
        Ok(Self {
            device,
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            told: AtomicBool::new(false),
            event: event()?,
        })
    }

    /// What KVM raises the interrupt line for (KVM_IRQFD).
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// InterruptACK: the driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Tells the driver of used buffers.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// The device cannot go on until the driver resets it.
    pub fn needs_reset(&self, why: &Broken) {
        // Once: a guest may do it again and again.
        if !self.told.swap(true, Ordering::Relaxed) {
            log::warn!("{}: the driver broke the protocol, and has to reset the device: {why}", self.device);
        }
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// Whether DEVICE_NEEDS_RESET is to be shown.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The device's thread leaves its queues as soon as the request in its hands is done.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
    }

    /// Whether no further request shall be taken.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// As after power-on.
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.halted.store(false, Ordering::Release);
    }

    /// The status comes first: the driver reads it in its interrupt handler.
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::AcqRel);
        signal(&self.event);
    }
}
