//! `vmm grade --vmm` on hosts without KVM, where no program uses it.

use crate::grade::student_args::VmmArgs;
use crate::grade::{Course, Task};
use crate::jail::JailArgs;
use crate::status::Failure;
use std::time::Duration;
use vmm::Error;
use vmm::device::Layout;

/// The grade of a VMM.
pub(super) struct Grade {
    pub(super) tasks: Vec<Task>,
    pub(super) seed: u64,
    pub(super) remark: String,
}

/// A grade whose programs were found, which there is none of.
pub(super) enum Prepared {}

/// Says that there is nothing to observe.
///
/// # Errors
/// Always.
pub(super) fn prepare(
    _: Course,
    arguments: &VmmArgs,
    layout: Option<Layout>,
    _: JailArgs,
) -> Result<Prepared, Failure> {
    let _ = (arguments, layout);
    Err(Error::NoKvm.into())
}

impl Prepared {
    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub(super) fn grade(self, _: &VmmArgs, _: Option<Duration>) -> Result<Grade, Failure> {
        match self {}
    }
}
