//! The errors of this package.

use std::io;
use vmm::host::host_advice;

/// A program cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be found or executed.
    #[error("cannot run {program}: {what}")]
    Program {
        /// The program, safe to print.
        program: String,
        /// The reason, and advice.
        what: String,
    },
    /// The program can run, but cannot be observed.
    #[error("cannot observe {program}: {what}")]
    Unfit {
        /// The program, safe to print.
        program: String,
        /// The reason.
        what: &'static str,
    },
    /// An option is wrong.
    #[error("{0}")]
    Option(String),
    /// A host call failed.
    #[error("{operation}: {source}{}", host_advice(.source))]
    Host {
        /// The operation.
        operation: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl Error {
    /// Makes an error of a failed host call.
    pub(crate) fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}
