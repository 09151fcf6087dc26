//! What a device tells its driver: used buffers, and that it needs a reset (virtio 1.2, sections 2.1.2, 2.9
//! and 4.2.2).
//!
//! The device's thread tells it, and the transport shows it in its registers.

use crate::device::virtio::register_mirror::RegisterMirror;
use crate::device::virtio::registers::{register, status};
use crate::error::Error;
use crate::host::{event, signal};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Bit of InterruptStatus: the device has used a buffer.
pub const USED_BUFFER: u32 = 1;
/// Bit of InterruptStatus: the device's configuration or status has changed.
pub const CONFIG_CHANGE: u32 = 2;

/// The registers that the device's thread changes, too.
#[derive(Debug, Default)]
struct Registers {
    interrupt: u32,
    device: u32,
}

/// A device's interrupt, and the rest of what its thread and the transport share.
#[derive(Debug)]
pub struct Interrupt {
    device: &'static str,
    registers: Mutex<Registers>,
    /// The device shall take no further request.
    halted: AtomicBool,
    /// Somebody has been told that the driver broke the rules.
    told: AtomicBool,
    event: EventFd,
    mirror: RegisterMirror,
}

impl Interrupt {
    /// The interrupt of `device`, which is named in what is said of it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(device: &'static str) -> Result<Self, Error> {
        Ok(Self {
            device,
            registers: Mutex::default(),
            halted: AtomicBool::new(false),
            told: AtomicBool::new(false),
            event: event().map_err(Error::host("eventfd"))?,
            mirror: RegisterMirror::default(),
        })
    }

    /// What KVM raises the interrupt line for (KVM_IRQFD).
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Where the registers are shown.
    pub(crate) fn mirror(&self) -> &RegisterMirror {
        &self.mirror
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.lock().interrupt
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers and shows them, so that nobody sees an older value after a newer one.
    fn change(&self, change: impl FnOnce(&mut Registers)) {
        let mut registers = self.lock();
        change(&mut registers);
        self.mirror.show(register::INTERRUPT_STATUS, registers.interrupt);
        self.mirror.show(register::STATUS, registers.device);
    }

    /// InterruptACK: the driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.change(|registers| registers.interrupt &= !bits);
    }

    /// Tells the driver of used buffers.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// The device cannot go on until the driver resets it.
    pub fn needs_reset(&self, why: impl fmt::Display) {
        // Once: a guest may do it again and again.
        if !self.told.swap(true, Ordering::Relaxed) {
            log::warn!("{}: the driver broke the protocol, and has to reset the device: {why}", self.device);
        }
        self.set_device_status(status::DEVICE_NEEDS_RESET);
        self.raise(CONFIG_CHANGE);
    }

    /// The status register (section 2.1): the driver's bits, and DEVICE_NEEDS_RESET.
    pub fn device_status(&self) -> u32 {
        self.lock().device
    }

    /// Sets bits of the status register.
    pub(crate) fn set_device_status(&self, bits: u32) {
        self.change(|registers| registers.device |= bits);
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
        self.halted.store(false, Ordering::Release);
        self.change(|registers| *registers = Registers::default());
    }

    /// The status comes first: the driver reads it in its interrupt handler.
    fn raise(&self, bit: u32) {
        self.change(|registers| registers.interrupt |= bit);
        signal(&self.event);
    }
}
