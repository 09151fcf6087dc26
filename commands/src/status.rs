//! Exit statuses of the program.
//!
//! 0 means success. 1 to 99 are the guest's own codes, and 110 to 121 are defined here. Of those from 124 on, which timeout(1), the
//! shell and signals use, there is one: [`BROKEN_PIPE`]. The program never uses 101 (a Rust panic).

use report::FileError;
use std::fmt;
use vmm::exit::Stop;
use vmm::host::is_shortage;
use vmm::machine::Doubt;
use vmm::{Error, ImageError, Report};

/// The guest halted, and its result is right if it was verified.
pub const OK: u8 = 0;
/// The largest code of a guest. A larger one is reported as this one.
pub const MAX_GUEST_CODE: u8 = 99;
/// The command line is wrong.
pub const USAGE: u8 = 110;
/// The guest ended, but did not leave 42, or its result is in doubt; or a grade is below the full points.
pub const WRONG_RESULT: u8 = 111;
/// The guest crashed.
pub const GUEST_FAULT: u8 = 112;
/// The guest broke the SIMVIRTIO protocol.
pub const PROTOCOL_ERROR: u8 = 113;
/// The guest did not end within the time limit.
pub const TIMEOUT: u8 = 114;
/// The host failed: no KVM, no memory, an output that cannot be written.
pub const HOST_ERROR: u8 = 115;
/// The image cannot be read or run; or the file is not a profile or a trace.
pub const BAD_IMAGE: u8 = 116;
/// A signal or the user interrupted the run.
pub const INTERRUPTED: u8 = 117;
/// The guest wrote more than `--output-limit`.
pub const OUTPUT_LIMIT: u8 = 118;
/// The guest reset its machine. This is not a success, because a crashed kernel does so, too.
pub const REBOOTED: u8 = 119;
/// The run did not do what an option such as `--expect` requires.
pub const UNEXPECTED: u8 = 120;
/// The jail stopped a system call of the program itself (`--jail`).
#[cfg(has_kvm)]
pub const JAIL_BROKEN: u8 = 121;

/// The reader of a result closed the pipe before its end: the status of a program that SIGPIPE ends, 128 + 13.
pub const BROKEN_PIPE: u8 = 141;

/// An error that ends the program with its own exit status.
pub trait HasStatus: fmt::Display {
    /// Returns the exit status.
    fn status(&self) -> u8;

    /// The file that could not be read, as the message names it.
    fn unread_file(&self) -> Option<&str> {
        None
    }
}

impl HasStatus for Error {
    fn status(&self) -> u8 {
        match self {
            Self::Config(_) => USAGE,
            Self::Image(_) => BAD_IMAGE,
            Self::Interrupted => INTERRUPTED,
            _ => HOST_ERROR,
        }
    }

    fn unread_file(&self) -> Option<&str> {
        match self {
            Self::Image(ImageError::Read { path, .. }) => Some(path),
            _ => None,
        }
    }
}

impl HasStatus for FileError {
    fn status(&self) -> u8 {
        match self {
            Self::Path { .. } => USAGE,
            Self::Read { source, .. } if is_shortage(source) => HOST_ERROR,
            Self::Read { .. } | Self::Content { .. } => BAD_IMAGE,
            // A signal interrupted the wait for the reader of a pipe.
            Self::Write { source, .. } if source.raw_os_error() == Some(libc::ECANCELED) => INTERRUPTED,
            Self::Write { .. } => HOST_ERROR,
        }
    }

    fn unread_file(&self) -> Option<&str> {
        match self {
            Self::Read { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// A failure of the library, or of a result file.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A failure of the library.
    #[error(transparent)]
    Vmm(#[from] Error),
    /// A failure of a result file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A symbol file that cannot be used.
    #[error(transparent)]
    Symbols(#[from] debug::SymbolError),
    /// A program that cannot be observed.
    #[cfg(has_kvm)]
    #[error(transparent)]
    Observe(#[from] observe::Error),
}

impl HasStatus for Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Vmm(error) => error.status(),
            Self::File(error) => error.status(),
            Self::Symbols(debug::SymbolError::Read { source, .. }) if is_shortage(source) => HOST_ERROR,
            Self::Symbols(debug::SymbolError::Read { .. }) => USAGE,
            Self::Symbols(debug::SymbolError::Wrong { .. }) => BAD_IMAGE,
            #[cfg(has_kvm)]
            Self::Observe(observe::Error::Program { .. } | observe::Error::Option(_)) => USAGE,
            #[cfg(has_kvm)]
            Self::Observe(observe::Error::Unfit { .. }) => BAD_IMAGE,
            #[cfg(has_kvm)]
            Self::Observe(observe::Error::Host { .. } | observe::Error::Jail(_)) => HOST_ERROR,
        }
    }

    fn unread_file(&self) -> Option<&str> {
        match self {
            Self::Vmm(error) => error.unread_file(),
            Self::File(error) => error.unread_file(),
            Self::Symbols(debug::SymbolError::Read { file, .. }) => Some(file),
            #[cfg(has_kvm)]
            Self::Observe(observe::Error::Program { program, .. }) => Some(program),
            _ => None,
        }
    }
}

/// Returns the exit status of a run.
pub fn of_report(report: &Report) -> u8 {
    let right = report.verified().unwrap_or(true);
    // It ran on at a wrong place, although it then found a HLT there.
    let is_lost =
        report.doubts.iter().any(|doubt| matches!(doubt, Doubt::MissingHandler(_) | Doubt::EntryReturned));
    match report.stop {
        Stop::Halted | Stop::Exited(0) if is_lost => GUEST_FAULT,
        Stop::Halted | Stop::Exited(0) if right => OK,
        Stop::PoweredOff => OK,
        Stop::Rebooted => REBOOTED,
        Stop::Halted | Stop::Exited(0) => WRONG_RESULT,
        Stop::Exited(code) | Stop::CpuExited(code) => {
            u8::try_from(code).unwrap_or(MAX_GUEST_CODE).min(MAX_GUEST_CODE)
        }
        Stop::ProtocolError(_) => PROTOCOL_ERROR,
        Stop::Timeout(_) | Stop::WallTimeout(_) => TIMEOUT,
        Stop::OutputFailed(_) | Stop::InputFailed(_) | Stop::ControllerFailed(_) | Stop::HostFailed(_) => {
            HOST_ERROR
        }
        Stop::Interrupted | Stop::Quit => INTERRUPTED,
        Stop::OutputLimit(_) => OUTPUT_LIMIT,
        Stop::Panicked(_)
        | Stop::TripleFault
        | Stop::RealModeFault { .. }
        | Stop::EmulationFailure(_)
        | Stop::FailedEntry(_)
        | Stop::UnknownExit(_) => GUEST_FAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_file_that_the_host_cannot_open_is_not_a_bad_file() {
        let read = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            FileError::Read { path: "profile".into(), source }
        };
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert_eq!(read(errno).status(), HOST_ERROR, "{}", read(errno));
        }
        assert_eq!(read(libc::ENOENT).status(), BAD_IMAGE);
    }
}
