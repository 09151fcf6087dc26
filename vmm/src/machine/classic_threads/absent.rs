//! The threads of a classic PC on hosts without KVM, which do not have it. The interface is that of `classic_threads.rs`.

use crate::controller::inquiry::Inquiry;
use crate::error::Error;
use crate::exit::Stop;
use crate::shutdown::{Deadline, Kick};
use std::sync::Arc;

/// The threads, before they start.
pub(super) struct Classic {
    pub(super) inquiry: Option<Arc<Inquiry>>,
    never: Never,
}

/// The threads, while they run.
pub(super) enum RunningClassic {}

enum Never {}

impl Classic {
    pub(super) fn start(self, _: Deadline, _: Arc<dyn Kick>) -> Result<RunningClassic, Error> {
        match self.never {}
    }
}

impl RunningClassic {
    pub(super) fn has_ended(&self) -> bool {
        match *self {}
    }

    pub(super) fn finish(self, _: &Deadline) -> Option<Stop> {
        match self {}
    }
}

/// The error if a classic PC is reset.
pub(super) fn is_not_reset() -> Error {
    Error::NoKvm
}
