//! `vmm bench` on hosts without KVM. It compares this VMM with a bare program that uses KVM, so there is nothing to measure.

use crate::streams::report_error;
use clap::Args;
use std::ffi::OsString;
use vmm::Error;

/// The words after `vmm bench`, which are not read.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<OsString>,
}

/// Says that there is nothing to measure. Returns the exit status.
pub fn main(_: &BenchArgs) -> u8 {
    report_error(&Error::NoKvm)
}
