//! A handle that ends a machine from a thread that does not run its vCPUs.

use super::Deadline;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, EventFd};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The vCPU threads of a machine, as seen by a thread that ends the machine.
pub(crate) trait Kick: Send + Sync {
    /// Makes each vCPU leave the guest, and interrupts blocking system calls of its thread.
    fn kick_all(&self);
}

impl fmt::Debug for dyn Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

/// Ends a machine from a thread that does not run its vCPUs.
#[derive(Debug)]
pub struct StopHandle {
    /// The deadline that reports the stop to the vCPUs, and the threads to kick.
    machine: OnceLock<(Deadline, Arc<dyn Kick>)>,
    reason: Mutex<Option<Stop>>,
    /// Signalled at the end. The console's thread then repeats the kicks, because a single kick can be lost.
    event: EventFd,
}

impl StopHandle {
    /// Creates a handle without a machine.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            machine: OnceLock::new(),
            reason: Mutex::default(),
            event: host::event().map_err(Error::host("eventfd"))?,
        })
    }

    /// Sets the machine to end: its deadline and its vCPU threads.
    pub(crate) fn attach(&self, deadline: Deadline, vcpus: Arc<dyn Kick>) {
        let _ = self.machine.set((deadline, vcpus));
        self.kick_again();
    }

    /// Ends the machine. The first reason counts.
    pub(crate) fn end(&self, reason: Stop) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.kick_again();
        let _ = self.event.write(1);
    }

    /// Kicks the vCPUs if the machine must end. After an orderly end, output and the data of disks are still written.
    pub(crate) fn kick_again(&self) {
        if let (Some((deadline, vcpus)), Some(reason)) = (self.machine.get(), self.reason()) {
            if reason.is_orderly() {
                deadline.request_stop();
            } else {
                deadline.abandon();
            }
            vcpus.kick_all();
        }
    }

    /// Makes each vCPU leave the guest once. The machine continues.
    pub(crate) fn kick_all(&self) {
        if let Some((_, vcpus)) = self.machine.get() {
            vcpus.kick_all();
        }
    }

    /// The event that is signalled when the machine must end.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// True if this handle ended the machine.
    pub fn has_ended(&self) -> bool {
        self.reason().is_some()
    }

    /// The reason for the end, if this handle ended the machine.
    pub fn reason(&self) -> Option<Stop> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
