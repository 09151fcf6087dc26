//! A handle that ends a machine from a thread that runs none of its vCPUs.

use super::Deadline;
use crate::error::Error;
use crate::exit::Stop;
use crate::host;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The threads that run a machine's vCPUs, as seen by a thread that ends the machine.
pub(crate) trait Kick: Send + Sync {
    /// Makes every vCPU leave the guest, and every blocking call of its thread return.
    fn kick_all(&self);
}

impl fmt::Debug for dyn Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

/// Ends a machine from a thread that is none of its vCPUs'.
#[derive(Debug)]
pub struct StopHandle {
    /// What tells the vCPUs, and kicks them.
    machine: OnceLock<(Deadline, Arc<dyn Kick>)>,
    reason: Mutex<Option<Stop>>,
    /// Written to at the end: the console's thread then repeats the kicks, of which one may be lost.
    event: EventFd,
}

impl StopHandle {
    /// Nothing to end yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            machine: OnceLock::new(),
            reason: Mutex::default(),
            event: host::event().map_err(Error::host("eventfd"))?,
        })
    }

    /// From now on the machine that ends by this deadline, and has these vCPUs, is the one to end.
    pub(crate) fn attach(&self, deadline: Deadline, vcpus: Arc<dyn Kick>) {
        let _ = self.machine.set((deadline, vcpus));
        self.kick_again();
    }

    /// Ends the machine, for this reason unless there was one before.
    pub(crate) fn end(&self, reason: Stop) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.kick_again();
        let _ = self.event.write(1);
    }

    /// Kicks the vCPUs of a machine that shall end.
    pub(crate) fn kick_again(&self) {
        if let Some((deadline, vcpus)) = self.machine.get().filter(|_| self.has_ended()) {
            deadline.abandon();
            vcpus.kick_all();
        }
    }

    /// Written to when the machine shall end.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether the machine was ended by this.
    pub fn has_ended(&self) -> bool {
        self.reason().is_some()
    }

    /// Why, if it was.
    pub fn reason(&self) -> Option<Stop> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
