//! The end of a run.

use super::Check;
use crate::facts::RunEnd;
use vmm::exit::Stop;
use vmm::host::parse_number;

/// The way in which a run must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A HLT.
    Halt,
    /// An exit code.
    Code(u64),
    /// Any of the other ways, by its place in the table of names.
    Other(usize),
}

type IsMet = fn(&Stop) -> bool;

/// The other ends: name, and condition.
const OTHERS: [(&str, IsMet); 7] = [
    ("power-off", |stop| matches!(stop, Stop::PoweredOff)),
    ("reboot", |stop| matches!(stop, Stop::Rebooted)),
    ("triple-fault", |stop| matches!(stop, Stop::TripleFault)),
    ("crash", is_crash),
    ("timeout", |stop| matches!(stop, Stop::Timeout(_) | Stop::WallTimeout(_))),
    ("output-limit", |stop| matches!(stop, Stop::OutputLimit(_))),
    ("protocol-error", |stop| matches!(stop, Stop::ProtocolError(_))),
];

fn is_crash(stop: &Stop) -> bool {
    matches!(
        stop,
        Stop::Panicked(_)
            | Stop::TripleFault
            | Stop::RealModeFault { .. }
            | Stop::EmulationFailure(_)
            | Stop::FailedEntry(_)
            | Stop::UnknownExit(_)
    )
}

impl End {
    /// Parses the name of an end, or an exit code.
    ///
    /// # Errors
    /// There is no such end.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "halt" {
            return Ok(Self::Halt);
        }
        let named = OTHERS.iter().position(|(name, _)| *name == text).map(Self::Other);
        named.or_else(|| parse_number(text).ok().map(Self::Code)).ok_or_else(|| {
            let names: Vec<_> = OTHERS.iter().map(|(name, _)| *name).collect();
            format!("there is no such end: give halt, an exit code, or one of {}", names.join(", "))
        })
    }

    /// True if a run ended as expected.
    fn is_met(self, end: &RunEnd) -> bool {
        match (self, end) {
            (Self::Halt, RunEnd::Guest(stop)) => matches!(stop, Stop::Halted),
            (Self::Code(code), RunEnd::Guest(stop)) => match stop {
                Stop::Exited(seen) => *seen == code,
                Stop::CpuExited(seen) => *seen == code && code != 0,
                _ => false,
            },
            (Self::Other(place), RunEnd::Guest(stop)) => {
                OTHERS.get(place).is_some_and(|(_, is_met)| is_met(stop))
            }
            (Self::Code(code), RunEnd::Status(status)) => u64::try_from(*status) == Ok(code),
            (Self::Other(place), RunEnd::Failed { timed_out, .. }) => {
                let expected = if *timed_out { "timeout" } else { "crash" };
                OTHERS.get(place).is_some_and(|(name, _)| *name == expected)
            }
            _ => false,
        }
    }

    /// True if an observed VMM can end like this.
    pub fn is_of_vmm(self) -> bool {
        match self {
            Self::Halt => false,
            Self::Code(code) => code <= 255,
            Self::Other(place) => {
                OTHERS.get(place).is_some_and(|(name, _)| ["timeout", "crash"].contains(name))
            }
        }
    }

    pub(super) fn check(self, end: &RunEnd) -> Check {
        let expected = match self {
            Self::Halt => "must be a halt".into(),
            Self::Code(code) => format!("must be the exit code {code}"),
            Self::Other(place) => format!("must be {}", OTHERS.get(place).map_or("", |(name, _)| name)),
        };
        Check {
            passed: self.is_met(end),
            subject: "the end of the run".into(),
            expected,
            seen: match end {
                RunEnd::Guest(stop) => format!("is: {stop}"),
                RunEnd::Status(status) => format!("is: exited with status {status}"),
                RunEnd::Failed { text, .. } => format!("is: {text}"),
            },
            possible: true,
        }
    }
}
