//! A check of `vmm doctor`.

use crate::error::Error;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The host has what the check looks for.
    Good,
    /// Something is missing, but guests run without it. Some features are missing or slower.
    Missing,
    /// Guests cannot run with KVM on this host.
    Bad,
}

/// One check of the host, with its outcome.
#[derive(Clone, Debug)]
pub struct Check {
    /// The name of the thing that was checked.
    pub what: String,
    /// The outcome.
    pub outcome: CheckOutcome,
    /// The finding, in words. If the outcome is not good, also the consequence and the next step.
    pub found: String,
}

impl Check {
    /// A check that is good or bad.
    pub(super) fn of(what: impl Into<String>, result: Result<String, Error>) -> Self {
        let what = what.into();
        match result {
            Ok(found) => Self { what, outcome: CheckOutcome::Good, found },
            Err(error) => Self { what, outcome: CheckOutcome::Bad, found: error.to_string() },
        }
    }
}
