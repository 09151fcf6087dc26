//! Expectations: conditions that a run must meet.

mod end;
mod exits;
mod feature;
mod memory;
mod mode;
mod number;
mod output;
mod register;
mod setup;
mod state;

pub use end::End;
pub use exits::ExitLimit;
pub use feature::{Forbidden, kvm_feature};
pub use memory::MemoryCheck;
pub use mode::Modes;
pub(crate) use mode::named as mode_named;
pub use output::{MAX_OUTPUT, Output};
pub use register::RegisterValue;
pub use setup::SetupLine;
pub use state::DeviceState;

use crate::facts::Facts;
use std::fmt;
use std::str::FromStr;

/// A condition that a run must meet.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// The output.
    Output(Output),
    /// The value of a register.
    Register(RegisterValue),
    /// The content of memory.
    Memory(MemoryCheck),
    /// The end of the run.
    End(End),
    /// A number of exits.
    Exits(ExitLimit),
    /// The state of the SIMVIRTIO device.
    Simvirtio(DeviceState),
    /// The modes of the vCPUs at their exits.
    Modes(Modes),
    /// A feature that may not be used.
    Forbidden(Forbidden),
    /// A call that an observed VMM must make.
    Setup(SetupLine),
}

/// The result of one check.
///
/// Its text is a sentence about a failed check, such as "rax must be 42 (0x2a), and is 41 (0x29)".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// True if the condition is met.
    pub passed: bool,
    /// The subject, such as "rax".
    pub subject: String,
    /// The condition, such as "must be 42 (0x2a)".
    pub expected: String,
    /// The fact, such as "is 41 (0x29)".
    pub seen: String,
    /// False if no guest of this machine can meet the condition: it names memory or a device that the machine does not have.
    pub possible: bool,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.passed {
            true => write!(f, "{} {}", self.subject, self.seen),
            false => write!(f, "{} {}, and {}", self.subject, self.expected, self.seen),
        }
    }
}

impl Expectation {
    /// Checks the condition.
    pub fn check(&self, facts: &Facts) -> Check {
        match self {
            Self::Output(output) => output.check(facts),
            Self::Register(register) => register.check(facts),
            Self::Memory(memory) => memory.check(facts),
            Self::End(end) => end.check(&facts.end),
            Self::Exits(limit) => limit.check(facts),
            Self::Simvirtio(state) => state.check(facts),
            Self::Modes(modes) => modes.check(facts),
            Self::Forbidden(feature) => feature.check(facts),
            Self::Setup(line) => line.check(facts),
        }
    }

    /// The address and the size of the memory that the check needs.
    pub fn memory(&self) -> Option<(u64, usize)> {
        match self {
            Self::Memory(memory) => Some(memory.range_of()),
            _ => None,
        }
    }

    /// True if the modes of the exits must be recorded for the check.
    pub fn needs_modes(&self) -> bool {
        match self {
            Self::Modes(_) => true,
            Self::Forbidden(feature) => feature.needs_modes(),
            _ => false,
        }
    }

    /// The number of bytes at the start of the output that the check needs.
    pub fn needed_output(&self) -> usize {
        match self {
            Self::Output(output) => output.needed(),
            _ => 0,
        }
    }
}

/// Parses `SUBJECT=VALUE`: a register, `end`, `mode`, `simvirtio`, or a word of memory.
impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (subject, value) = text.split_once('=').ok_or(
            "give SUBJECT=VALUE, such as rax=42, u16@0x400=42, end=halt, mode=real or simvirtio=ready",
        )?;
        let (subject, value) = (subject.trim().to_ascii_lowercase(), value.trim());
        match subject.as_str() {
            "end" => End::parse(value).map(Self::End),
            "mode" => Modes::parse(value.split(',')).map(Self::Modes),
            "simvirtio" => DeviceState::parse(value).map(Self::Simvirtio),
            subject if subject.contains('@') => MemoryCheck::word(subject, value).map(Self::Memory),
            subject => RegisterValue::parse(subject, value).map(Self::Register),
        }
    }
}

#[cfg(test)]
mod tests;
