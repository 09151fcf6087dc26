//! The watchdog: the controller that ends a run at its deadline.

use crate::controller::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome};
use crate::shutdown::Deadline;

/// Handles interruptions: ends the run if the deadline has passed or a stop was requested, otherwise resumes the guest.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// The deadline of the run.
    pub deadline: Deadline,
}

impl ExitController for Watchdog {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        if *exit != Exit::Interrupted {
            return Outcome::Unclaimed;
        }
        self.deadline.must_end().map_or(Outcome::Resume, Outcome::Stop)
    }
}
