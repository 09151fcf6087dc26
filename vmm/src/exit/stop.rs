//! The answers to exits, and the reasons why a run ends.

use super::Instruction;
use simvirtio::device::Violation;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The answer to an exit.
#[derive(Debug)]
pub enum Outcome {
    /// The controller does not handle this exit. The next controller is asked.
    Unclaimed,
    /// The exit is handled. The guest continues.
    Resume,
    /// The value that the guest reads. The guest continues.
    Value(u64),
    /// For an MSR access: the guest gets #GP.
    Fault,
    /// The run ends here.
    Stop(Stop),
}

impl Outcome {
    /// Ends the run because a controller failed.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stop(Stop::failed(error))
    }
}

/// The reason why a run ended.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The guest halted. With several vCPUs: this vCPU halted, and waits for an interrupt that never comes.
    Halted,
    /// The guest ended this vCPU with this code. The machine's other vCPUs continue.
    CpuExited(u64),
    /// The guest ended the machine with this code.
    Exited(u64),
    /// The guest powered its machine off.
    PoweredOff,
    /// The guest reset its machine.
    Rebooted,
    /// The guest's kernel panicked, for this reason, and reset the machine.
    Panicked(String),
    /// The user ended the machine at its console.
    Quit,
    /// The guest triple-faulted.
    TripleFault,
    /// A guest in real mode caused an exception, for which it has set no handler.
    RealModeFault {
        /// The vector of the exception.
        vector: u8,
        /// The code segment of the instruction that caused it.
        cs: u16,
        /// The offset of that instruction.
        ip: u16,
    },
    /// KVM could not emulate a guest instruction, or the software processor does not have it.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest, for this hardware reason.
    FailedEntry(u64),
    /// The guest broke the SIMVIRTIO protocol.
    ProtocolError(Violation),
    /// The guest did not end within this time, in which waiting for input does not count.
    Timeout(Duration),
    /// The guest did not end within this wall-clock time, in which waiting for input counts, too.
    WallTimeout(Duration),
    /// A signal or another thread requested the end of the run.
    Interrupted,
    /// The guest wrote more than this limit, in bytes.
    OutputLimit(u64),
    /// The guest's output could not be written.
    OutputFailed(Arc<io::Error>),
    /// The guest's input could not be read.
    InputFailed(Arc<io::Error>),
    /// An exit controller failed or panicked.
    ControllerFailed(Arc<dyn Error + Send + Sync>),
    /// The host failed after the guest had started: it could not run a vCPU, a disk could not be flushed, another device could
    /// not continue, or a thread panicked.
    HostFailed(Arc<dyn Error + Send + Sync>),
    /// An unclaimed exit that cannot be resumed, by the number of its reason in KVM.
    UnknownExit(u32),
}

impl Stop {
    /// A failed controller.
    pub(crate) fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::ControllerFailed(Arc::from(error.into()))
    }

    /// A host that failed in the middle of a run.
    pub(crate) fn host(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::HostFailed(Arc::from(error.into()))
    }

    /// True if the guest ended the run itself, without a fault. A kernel panic counts as orderly: the kernel reports it.
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

    /// True if only this vCPU ended, and the machine's other vCPUs continue.
    pub fn parks(&self) -> bool {
        matches!(self, Self::Halted | Self::CpuExited(_))
    }
}

/// The meaning of a hardware reason for a failed entry.
///
/// Intel: the exit reason with bit 31 (SDM volume 3, appendix C), or the VM-instruction error (31.4, in older editions 30.4).
/// AMD: the exit code VMEXIT_INVALID, -1 in 32 or 64 bits (APM volume 2, appendix C).
fn entry_failure(reason: u64) -> Option<&'static str> {
    Some(match reason {
        7 => "KVM has set invalid control fields",
        8 => "KVM has set invalid host-state fields",
        0x8000_0021 | 0xffff_ffff | u64::MAX => "invalid guest state",
        0x8000_0022 => "an MSR could not be loaded",
        0x8000_0029 => "a machine-check event",
        _ => return None,
    })
}

/// The name of an exception of real mode, with its usual cause (Intel SDM volume 3, section 7.3).
fn exception(vector: u8) -> &'static str {
    match vector {
        0x00 => "#DE (a division by zero, or a quotient that does not fit)",
        0x05 => "#BR (bound)",
        0x06 => "#UD (an instruction that this processor does not have)",
        0x07 => "#NM (no floating-point unit)",
        0x0c => "#SS (an access past the end of the stack segment)",
        0x0d => "#GP (an access past the end of a segment, or a bad instruction)",
        _ => "an exception",
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
            Self::TripleFault => f.write_str("triple fault (an exception without a working handler)"),
            Self::RealModeFault { vector, cs, ip } => {
                write!(f, "{} at {cs:04x}:{ip:04x}, for which the guest has no handler", exception(*vector))
            }
            Self::EmulationFailure(instruction) => {
                f.write_str(instruction.reason().unwrap_or("KVM could not emulate a guest instruction"))?;
                match instruction.bytes() {
                    [] => Ok(()),
                    bytes => {
                        f.write_str(":")?;
                        bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
                    }
                }
            }
            Self::FailedEntry(reason) => {
                write!(f, "the processor refused to enter the guest (hardware reason {reason:#x}")?;
                match entry_failure(*reason) {
                    Some(meaning) => write!(f, ": {meaning})"),
                    None => f.write_str(")"),
                }
            }
            Self::ProtocolError(violation) => write!(f, "SIMVIRTIO protocol error: {violation}"),
            Self::Timeout(limit) => {
                write!(f, "timeout: the guest did not end within {} s (--timeout)", limit.as_secs_f64())
            }
            Self::WallTimeout(limit) => write!(
                f,
                "wall-clock limit: the guest did not end within {} s, including waits for input (--wall-timeout)",
                limit.as_secs_f64()
            ),
            Self::Interrupted => f.write_str("interrupted"),
            Self::OutputLimit(limit) => {
                write!(
                    f,
                    "output limit: the guest wrote more than {limit} bytes (--output-limit; 0 means no limit)"
                )
            }
            Self::OutputFailed(error) => write!(f, "the guest's output could not be written: {error}"),
            Self::InputFailed(error) => write!(f, "the guest's input could not be read: {error}"),
            Self::ControllerFailed(error) => write!(f, "an exit controller failed: {error}"),
            Self::HostFailed(error) => write!(f, "the host failed: {error}"),
            Self::UnknownExit(reason) => {
                write!(f, "unhandled KVM exit reason {reason} (KVM_EXIT_* in linux/kvm.h)")
            }
        }
    }
}
