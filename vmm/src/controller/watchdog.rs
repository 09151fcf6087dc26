//! The watchdog: the controller that ends a run at its deadline.

use crate::controller::inquiry::Respondent;
use crate::controller::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome, Stop};
use crate::shutdown::Deadline;

/// Handles interruptions: ends the run if the deadline has passed or a stop was requested, otherwise resumes the guest. Also
/// answers a thread that asks for the state of the vCPU.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// The deadline of the run.
    pub deadline: Deadline,
    /// `None` if no thread asks.
    pub(crate) respondent: Option<Respondent>,
}

impl Watchdog {
    /// Creates the watchdog of a run with this deadline.
    pub fn new(deadline: Deadline) -> Self {
        Self { deadline, respondent: None }
    }
}

impl ExitController for Watchdog {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        if *exit != Exit::Interrupted {
            return Outcome::Unclaimed;
        }
        if let Some(respondent) = &self.respondent {
            respondent.answer(vcpu);
            if respondent.has_ended() {
                return Outcome::Stop(Stop::Halted);
            }
        }
        self.deadline.must_end().map_or(Outcome::Resume, Outcome::Stop)
    }
}
