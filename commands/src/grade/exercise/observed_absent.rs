//! A VMM of a submission on hosts without KVM, where no program uses it.

use super::run::{Failed, Recorded};
use crate::jail::JailArgs;
use exercise::file::Task;
use exercise::template::Values;
use exercise::{Check, Facts};
use std::path::Path;
use vmm::Error;
use vmm::machine::Processor;

/// A run, which there is none of.
pub enum ObservedRun {}

/// Says that there is nothing to observe.
///
/// # Errors
/// Always.
pub fn run(
    _: &Task,
    _: &Path,
    _: &Values,
    _: (Option<Processor>, JailArgs),
    _: Recorded,
    _: &[(u64, usize)],
) -> Result<ObservedRun, Failed> {
    Err(Error::NoKvm.into())
}

impl ObservedRun {
    /// Nothing.
    pub fn end(&self) -> Check {
        match *self {}
    }

    /// Nothing.
    pub fn facts(&self) -> Facts<'_> {
        match *self {}
    }
}
