//! A device's interrupts and status: used buffers, and a needed reset (virtio 1.2, sections 2.1.2, 2.9 and 4.2.2).
//!
//! The device's thread raises interrupts, and the transport reads the registers. The thread also learns here when it must
//! end its work, and ends the run here if the host fails.

use crate::device::virtio::register_mirror::RegisterMirror;
use crate::device::virtio::registers::{register, status};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{EventFd, event, signal};
use crate::shutdown::{Deadline, StopHandle};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// InterruptStatus: the device has used a buffer.
pub const USED_BUFFER: u32 = 1;
/// InterruptStatus: the configuration or the status of the device has changed.
pub const CONFIG_CHANGE: u32 = 2;

/// The registers that the device's thread also changes: InterruptStatus and Status.
#[derive(Debug, Default)]
struct Registers {
    interrupt: u32,
    device: u32,
}

/// A device's interrupt, and the other state that its thread and the transport share.
#[derive(Debug)]
pub struct Interrupt {
    device: &'static str,
    registers: Mutex<Registers>,
    /// Set if the device must not start another request.
    halted: AtomicBool,
    /// The kinds of mistakes of the driver that were reported.
    reported: Mutex<Vec<String>>,
    /// The run that uses the device. Empty before it.
    run: OnceLock<(Deadline, Arc<StopHandle>)>,
    event: EventFd,
    mirror: RegisterMirror,
}

impl Interrupt {
    /// Creates the interrupt of `device`, whose name appears in log messages.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new(device: &'static str) -> Result<Self, Error> {
        Ok(Self {
            device,
            registers: Mutex::default(),
            halted: AtomicBool::new(false),
            reported: Mutex::default(),
            run: OnceLock::new(),
            event: event().map_err(Error::host("eventfd"))?,
            mirror: RegisterMirror::default(),
        })
    }

    /// The event that is signalled for each interrupt. KVM raises the interrupt line for it (KVM_IRQFD).
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The copy of the registers in memory.
    pub(crate) fn mirror(&self) -> &RegisterMirror {
        &self.mirror
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.lock().interrupt
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers and updates their copies under one lock, so that a copy never goes back to an older value.
    fn change(&self, change: impl FnOnce(&mut Registers)) {
        let mut registers = self.lock();
        change(&mut registers);
        self.mirror.store(register::INTERRUPT_STATUS, registers.interrupt);
        self.mirror.store(register::STATUS, registers.device);
    }

    /// Handles a write to InterruptACK: clears `bits` of InterruptStatus.
    pub fn acknowledge(&self, bits: u32) {
        self.change(|registers| registers.interrupt &= !bits);
    }

    /// Notifies the driver of used buffers.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// Stops the device until the driver resets it: sets DEVICE_NEEDS_RESET and notifies the driver. Then reports the
    /// mistake, as [`report`](Self::report) does.
    pub fn needs_reset(&self, kind: String, why: impl fmt::Display) {
        self.require_reset();
        self.report(kind, why);
    }

    /// Sets DEVICE_NEEDS_RESET and notifies the driver.
    pub(crate) fn require_reset(&self) {
        self.set_device_status(status::DEVICE_NEEDS_RESET);
        self.raise(CONFIG_CHANGE);
    }

    /// Logs a mistake of the driver. Each `kind` is reported once, with `why`, because a guest may repeat it without end.
    pub(crate) fn report(&self, kind: String, why: impl fmt::Display) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if !reported.contains(&kind) {
            reported.push(kind);
            log::warn!("{}: the driver broke the protocol and must reset the device: {why}", self.device);
        }
    }

    /// Delays reports until the guard is dropped.
    #[cfg(test)]
    pub(crate) fn delay_reports(&self) -> impl Drop + '_ {
        self.reported.lock().unwrap()
    }

    /// The number of kinds of mistakes that were reported.
    #[cfg(test)]
    pub(crate) fn reported_kinds(&self) -> usize {
        self.reported.lock().unwrap().len()
    }

    /// The status register (section 2.1): the bits of the driver, and DEVICE_NEEDS_RESET.
    pub fn device_status(&self) -> u32 {
        self.lock().device
    }

    /// Sets bits of the status register.
    pub(crate) fn set_device_status(&self, bits: u32) {
        self.change(|registers| registers.device |= bits);
    }

    /// Asks the device's thread to leave its queues after the current request.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
    }

    /// True if the device must not start another request.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// Begins the run that uses the device. A second call has no effect.
    pub(crate) fn begin_run(&self, deadline: Deadline, stop_handle: Arc<StopHandle>) {
        let _ = self.run.set((deadline, stop_handle));
    }

    /// The deadline of the run.
    pub(crate) fn deadline(&self) -> Option<&Deadline> {
        self.run.get().map(|(deadline, _)| deadline)
    }

    /// True if the device must not continue even its current request, because the deadline has passed or a signal has
    /// asked for the end. A guest that has only powered its machine off still gets this request.
    pub(crate) fn must_give_up(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline.must_give_up().is_some())
    }

    /// Ends the run, because the device cannot continue.
    pub(crate) fn end_run(&self, stop: Stop) {
        match self.run.get() {
            Some((_, stop_handle)) => stop_handle.end(stop),
            None => log::error!("{}: {stop}", self.device),
        }
    }

    /// Resets the registers to their state after power-on.
    pub(crate) fn reset(&self) {
        self.halted.store(false, Ordering::Release);
        self.change(|registers| *registers = Registers::default());
    }

    /// Raises an interrupt. The register is set first, because the driver reads it in its interrupt handler.
    pub(super) fn raise(&self, bit: u32) {
        self.change(|registers| registers.interrupt |= bit);
        signal(&self.event);
    }
}
