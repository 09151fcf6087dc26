//! The threads of a classic PC on hosts without KVM, which do not have it. The interface is that of `classic_threads.rs`.

use crate::controller::inquiry::Inquiry;
use crate::error::Error;
use crate::exit::Stop;
use crate::shutdown::{Deadline, Kick};
use std::sync::Arc;

/// The threads, before they start.
pub(super) struct Classic {
    pub(super) inquiry: Arc<Inquiry>,
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
    pub(super) fn finish(self, _: &Deadline) -> Option<Stop> {
        match self {}
    }
}

/// The error if a classic PC is reset.
pub(super) fn is_not_reset() -> Error {
    Error::NoKvm
}

pub(super) mod disks {
    //! The disks of a classic PC.

    use crate::exit::Stop;
    use crate::shutdown::Deadline;

    /// The disks.
    pub(in crate::machine) enum Disks {}

    impl Disks {
        pub(in crate::machine) fn begin_run(&self, _: &Deadline) {
            match *self {}
        }

        pub(in crate::machine) fn end_run(&self) -> Option<Stop> {
            match *self {}
        }
    }
}
