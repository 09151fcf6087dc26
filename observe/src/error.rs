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
    /// The jail is required, and a part is missing.
    #[error("the program was not started, because its jail is required (--jail=require): {0}")]
    Jail(&'static str),
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
    /// The operation of a program that cannot be started.
    pub(crate) const STARTING: &'static str = "starting the program";

    /// Makes an error of a failed host call.
    pub(crate) fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }

    /// The reason why a program that was found could not be started, if it lies in the program's file: it was removed, say, or
    /// has an interpreter that does not exist. `None` if the host lacks something.
    pub fn program_fault(&self) -> Option<String> {
        const FAULTS: [i32; 8] = [
            libc::ENOENT,
            libc::EACCES,
            libc::ENOEXEC,
            libc::ETXTBSY,
            libc::ELOOP,
            libc::ENOTDIR,
            libc::EINVAL,
            libc::ELIBBAD,
        ];
        match self {
            Self::Host { operation: Self::STARTING, source }
                if source.raw_os_error().is_some_and(|errno| FAULTS.contains(&errno)) =>
            {
                Some(source.to_string())
            }
            _ => None,
        }
    }
}
