//! The classic PC on hosts without KVM, which do not have it. The interface is that of `classic.rs`.

use crate::boot::Image;
use crate::controller::inquiry::Inquiry;
use crate::error::Error;
use crate::exit::Stop;
use crate::machine::builder::Builder;
use crate::machine::{Machine, MachineKind};
use crate::shutdown::{Deadline, Kick};
use std::sync::Arc;

/// The threads, before they start.
pub(super) struct Classic {
    pub(super) inquiry: Arc<Inquiry>,
    never: Never,
}

/// The threads, while they run.
pub(super) enum RunningClassic {}

/// The disks.
pub(super) enum Disks {}

enum Never {}

impl Classic {
    pub(super) fn start(self, _: Deadline, _: Arc<dyn Kick>) -> Result<RunningClassic, Error> {
        match self.never {}
    }
}

impl RunningClassic {
    pub(super) fn finish(self, _: &Deadline) -> Option<Stop> {
        match self {}
    }
}

impl Disks {
    pub(super) fn begin_run(&self, _: &Deadline) {
        match *self {}
    }

    pub(super) fn end_run(&self) -> Option<Stop> {
        match *self {}
    }
}

impl Builder {
    /// Refuses the machine.
    pub(super) fn build_classic(self, _: Image, _: MachineKind) -> Result<Machine, Error> {
        Err(Error::NoKvm)
    }

    /// False: there is no KVM.
    pub(super) fn has_classic_parts(&self) -> bool {
        false
    }
}

/// The error if a classic PC is reset.
pub(super) fn is_not_reset() -> Error {
    Error::NoKvm
}
