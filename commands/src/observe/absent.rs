//! `vmm observe` on hosts without KVM, where no program uses it.

use crate::streams::report_error;
use clap::Args;
use std::ffi::OsString;
use vmm::Error;

/// The words after `vmm observe`, which are not read.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<OsString>,
}

/// Says that there is nothing to observe. Returns the exit status.
pub fn main(_: &ObserveArgs) -> u8 {
    report_error(&Error::NoKvm)
}
