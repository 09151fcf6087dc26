//! The state of the SIMVIRTIO device.

use super::Check;
use crate::facts::Facts;
use simvirtio::device::State;

const NAMES: [(&str, State); 5] = [
    ("initial", State::Initial),
    ("reset", State::Reset),
    ("config", State::Config),
    ("ready", State::Ready),
    ("broken", State::Broken),
];

/// The state that the SIMVIRTIO device must have at the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState(State);

impl DeviceState {
    /// Parses the name of a state.
    ///
    /// # Errors
    /// There is no such state.
    pub fn parse(text: &str) -> Result<Self, String> {
        let state = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        state.map(|(_, state)| Self(*state)).ok_or_else(|| {
            "there is no such state of SIMVIRTIO: give initial, reset, config, ready or broken".into()
        })
    }

    pub(super) fn check(self, facts: &Facts) -> Check {
        Check {
            passed: facts.simvirtio == Some(self.0),
            subject: "the state of SIMVIRTIO".into(),
            expected: format!("must be {}", self.0),
            seen: match facts.simvirtio {
                Some(state) => format!("is {state}"),
                None => "the machine has no such device".into(),
            },
            possible: facts.simvirtio.is_some(),
        }
    }
}
