//! The watchdog: the controller that ends a run at its deadline.

use crate::controller::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome};
use crate::shutdown::Deadline;

/// Decides what an interruption means: the time is up, somebody asked for an end, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// When the run must have ended.
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
