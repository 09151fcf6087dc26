//! The answers to exits, and the ways in which a run ends.

use super::Instruction;
use simvirtio::device::Violation;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What is to be done about an exit.
#[derive(Debug)]
pub enum Outcome {
    /// Not mine: ask the next controller.
    Unclaimed,
    /// Done; go back into the guest.
    Resume,
    /// The value that the guest reads; go back into the guest.
    Value(u64),
    /// Of an MSR access: the guest gets #GP.
    Fault,
    /// The run ends here.
    Stop(Stop),
}

impl Outcome {
    /// Ends the run since a controller cannot go on.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stop(Stop::failed(error))
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The guest halted. Of several vCPUs: this one did, and waits for an interrupt that never comes.
    Halted,
    /// This vCPU asked for its own end with this code. The machine's others go on.
    CpuExited(u64),
    /// The guest asked for an end with this code.
    Exited(u64),
    /// The guest switched its machine off.
    PoweredOff,
    /// The guest reset its machine.
    Rebooted,
    /// The guest's kernel panicked, for this reason, and reset the machine.
    Panicked(String),
    /// Somebody ended the machine at its console.
    Quit,
    /// The guest triple-faulted.
    TripleFault,
    /// KVM could not emulate an instruction of the guest's.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest, with the hardware's own reason.
    FailedEntry(u64),
    /// The guest broke the SIMVIRTIO protocol.
    ProtocolError(Violation),
    /// The guest did not end in the time that it was given.
    Timeout,
    /// Somebody asked for the run to end.
    Interrupted,
    /// The guest wrote more than it may: so many bytes.
    OutputLimit(u64),
    /// What the guest wrote could not be handed on.
    OutputFailed(Arc<io::Error>),
    /// What the guest wants to read could not be had.
    InputFailed(Arc<io::Error>),
    /// A controller of exits could not go on, or panicked.
    ControllerFailed(Arc<dyn Error + Send + Sync>),
    /// An exit that nobody claimed and that cannot be passed over: KVM's number of the reason.
    UnknownExit(u32),
}

impl Stop {
    /// A controller cannot go on.
    pub(crate) fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::ControllerFailed(Arc::from(error.into()))
    }

    /// Whether the guest came to its end by itself, and had its say.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::Halted
                | Self::Exited(_)
                | Self::CpuExited(_)
                | Self::PoweredOff
                | Self::Rebooted
                | Self::Panicked(_)
        )
    }

    /// Whether it is an end of one vCPU only, and the others go on.
    pub fn parks(&self) -> bool {
        matches!(self, Self::Halted | Self::CpuExited(_))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted => f.write_str("halted"),
            Self::Exited(code) | Self::CpuExited(code) => match code {
                0..100 => write!(f, "exited with code {code}"),
                _ => write!(f, "exited with code {code} ({code:#x})"),
            },
            Self::PoweredOff => f.write_str("powered off"),
            Self::Rebooted => f.write_str("rebooted, which ends the machine"),
            Self::Panicked(reason) => write!(f, "the kernel panicked: {reason}"),
            Self::Quit => f.write_str("ended at the console (Ctrl-A x)"),
            Self::TripleFault => f.write_str("triple fault (an exception, and no handler for it)"),
            Self::EmulationFailure(instruction) => {
                f.write_str("KVM had to emulate an instruction of the guest and could not")?;
                match instruction.bytes() {
                    [] => Ok(()),
                    bytes => {
                        f.write_str(":")?;
                        bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
                    }
                }
            }
            Self::FailedEntry(reason) => {
                write!(f, "the processor refused to enter the guest (hardware reason {reason:#x})")
            }
            Self::ProtocolError(violation) => write!(f, "SIMVIRTIO protocol error: {violation}"),
            Self::Timeout => f.write_str("timeout: the guest did not end in the time it was given"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::OutputLimit(limit) => write!(f, "output limit: the guest wrote more than {limit} bytes"),
            Self::OutputFailed(error) => write!(f, "the guest's output could not be written: {error}"),
            Self::InputFailed(error) => write!(f, "the guest's input could not be read: {error}"),
            Self::ControllerFailed(error) => write!(f, "a controller of exits failed: {error}"),
            Self::UnknownExit(reason) => {
                write!(f, "exit reason {reason} of KVM, which this VMM does not handle")
            }
        }
    }
}
