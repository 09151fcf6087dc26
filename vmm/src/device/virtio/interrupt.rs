//! What a device tells its driver: used buffers, and that it needs a reset (virtio 1.2, sections 2.1.2, 2.9
//! and 4.2.2).
//!
//! The device's thread tells it, and the transport shows it in its registers.

use crate::device::virtio::queue::Broken;
use crate::device::virtio::registers::{register, status};
use crate::device::virtio::shown::Shown;
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
    device_status: AtomicU32,
    /// The device shall take no further request.
    halted: AtomicBool,
    /// Somebody has been told that the driver broke the rules.
    told: AtomicBool,
    event: EventFd,
    shown: Shown,
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
            device_status: AtomicU32::new(0),
            halted: AtomicBool::new(false),
            told: AtomicBool::new(false),
            event: event()?,
            shown: Shown::default(),
        })
    }

    /// What KVM raises the interrupt line for (KVM_IRQFD).
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Where the registers are shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn show_status(&self) {
        self.shown.show(register::INTERRUPT_STATUS, || self.status());
    }

    /// InterruptACK: the driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
        self.show_status();
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
        self.device_status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::SeqCst);
        self.show_device_status();
        self.raise(CONFIG_CHANGE);
    }

    /// The status register (section 2.1): the driver's bits, and DEVICE_NEEDS_RESET.
    pub fn device_status(&self) -> u32 {
        self.device_status.load(Ordering::SeqCst)
    }

    /// Sets bits of the status register.
    pub(crate) fn set_device_status(&self, bits: u32) {
        self.device_status.fetch_or(bits, Ordering::SeqCst);
        self.show_device_status();
    }

    fn show_device_status(&self) {
        self.shown.show(register::STATUS, || self.device_status());
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
        self.status.store(0, Ordering::SeqCst);
        self.device_status.store(0, Ordering::SeqCst);
        self.halted.store(false, Ordering::Release);
        self.show_status();
        self.show_device_status();
    }

    /// The status comes first: the driver reads it in its interrupt handler.
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.show_status();
        signal(&self.event);
    }
}
