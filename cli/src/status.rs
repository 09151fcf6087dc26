//! Exit statuses of the program.
//!
//! 0 is a good end; 1 to 99 belong to the guest; 110 to 119 are this program's own. 101 (a Rust panic) and
//! 124 and above (timeout(1), the shell, signals) mean other things and are never used.

use report::FileError;
use std::fmt;
use vmm::exit::Stop;
use vmm::{Error, Report};

/// The guest halted, and was right where it was verified.
pub const OK: u8 = 0;
/// The largest code that is the guest's own. A larger one becomes this one.
pub const MOST_OF_GUEST: u8 = 99;
/// The command line does not make sense.
pub const USAGE: u8 = 110;
/// The guest ended, but left something else than 42; or the grade is below 100.
pub const WRONG_RESULT: u8 = 111;
/// The guest faulted.
pub const GUEST_FAULT: u8 = 112;
/// The guest broke the SIMVIRTIO protocol.
pub const PROTOCOL_ERROR: u8 = 113;
/// The guest did not end in time.
pub const TIMEOUT: u8 = 114;
/// The host failed: no KVM, no memory, an output that cannot be written.
pub const HOST_ERROR: u8 = 115;
/// The image cannot be read or run; or the file is no profile or trace.
pub const BAD_IMAGE: u8 = 116;
/// The guest wrote more than `--output-limit`.
pub const OUTPUT_LIMIT: u8 = 118;
/// The guest reset its machine. No good end: a kernel that has crashed does so, too.
pub const REBOOTED: u8 = 119;
/// The run was interrupted.
pub const INTERRUPTED: u8 = 117;

/// A failure that ends the program with a status of its own.
pub trait Failed: fmt::Display {
    /// The status.
    fn status(&self) -> u8;
}

impl Failed for Error {
    fn status(&self) -> u8 {
        match self {
            Self::Config(_) => USAGE,
            Self::Image(_) => BAD_IMAGE,
            Self::Interrupted => INTERRUPTED,
            _ => HOST_ERROR,
        }
    }
}

impl Failed for FileError {
    fn status(&self) -> u8 {
        match self {
            Self::Path { .. } => USAGE,
            Self::Read { .. } | Self::Content { .. } => BAD_IMAGE,
            // The user interrupted the wait for the reader of a pipe.
            Self::Write { source, .. } if source.raw_os_error() == Some(libc::ECANCELED) => INTERRUPTED,
            Self::Write { .. } => HOST_ERROR,
        }
    }
}

/// A failure of the library, or of a file of results.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Of the library.
    #[error(transparent)]
    Vmm(#[from] Error),
    /// Of a file.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Failed for Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Vmm(error) => error.status(),
            Self::File(error) => error.status(),
        }
    }
}

/// The status for a run.
pub fn of_report(report: &Report) -> u8 {
    let right = report.verdict.is_none_or(|verdict| verdict.passed());
    match report.stop {
        Stop::Halted | Stop::Exited(0) if right => OK,
        Stop::PoweredOff => OK,
        Stop::Rebooted => REBOOTED,
        Stop::Halted | Stop::Exited(0) => WRONG_RESULT,
        Stop::Exited(code) | Stop::CpuExited(code) => {
            u8::try_from(code).unwrap_or(MOST_OF_GUEST).min(MOST_OF_GUEST)
        }
        Stop::ProtocolError(_) => PROTOCOL_ERROR,
        Stop::Timeout => TIMEOUT,
        Stop::OutputFailed(_) | Stop::InputFailed(_) | Stop::ControllerFailed(_) => HOST_ERROR,
        Stop::Interrupted | Stop::Quit => INTERRUPTED,
        Stop::OutputLimit(_) => OUTPUT_LIMIT,
        Stop::Panicked(_)
        | Stop::TripleFault
        | Stop::EmulationFailure(_)
        | Stop::FailedEntry(_)
        | Stop::UnknownExit(_) => GUEST_FAULT,
    }
}
