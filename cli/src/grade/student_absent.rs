//! `vmm grade --vmm` on hosts without KVM, where no program uses it.

use crate::grade::Task;
use crate::grade::student_args::VmmArgs;
use crate::status::Failure;
use std::time::Duration;
use vmm::Error;
use vmm::device::Layout;

/// The settings that the options of the whole grade decide.
pub(super) struct Settings {
    pub(super) layout: Option<Layout>,
    pub(super) timeout: Option<Duration>,
}

/// The grade of a VMM.
pub(super) struct Grade {
    pub(super) tasks: Vec<Task>,
    pub(super) remark: String,
}

/// Says that there is nothing to observe.
///
/// # Errors
/// Always.
pub(super) fn grade(arguments: &VmmArgs, settings: &Settings) -> Result<Grade, Failure> {
    let _ = (arguments, settings.layout, settings.timeout);
    Err(Error::NoKvm.into())
}
