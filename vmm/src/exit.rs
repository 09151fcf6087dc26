//! VM exits, the answers to them, and how a run ends.
//!
//! An [`Exit`] is an owned value, and so is its answer, an [`Outcome`]. Who answers is in
//! [`controller`](crate::controller).

use simvirtio::device::Violation;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why the vCPU left the guest.
///
/// Linux `Documentation/virt/kvm/api.rst`, section 5, "The kvm_run structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads a port. Answered by a value.
    PioIn {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
    },
    /// The guest writes a port.
    PioOut {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
        /// The value, zero-extended.
        data: u32,
    },
    /// The guest reads an address with no memory behind it. Answered by a value.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
    },
    /// The guest writes an address with no memory behind it.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
        /// The value, zero-extended.
        data: u64,
    },
    /// The guest calls its hypervisor: a 4-byte write to [`hypercall::PORT`](crate::hypercall::PORT).
    Hypercall {
        /// Which call: what was written, EAX.
        number: u32,
    },
    /// The guest reads a model-specific register that KVM leaves to this VMM. Answered by a value or a fault.
    RdMsr {
        /// The register's number: ECX.
        index: u32,
    },
    /// The guest writes such a register.
    WrMsr {
        /// The register's number: ECX.
        index: u32,
        /// EDX:EAX.
        data: u64,
    },
    /// The guest halted.
    Hlt,
    /// The CPU shut down: a triple fault.
    Shutdown,
    /// KVM had to emulate an instruction and could not.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest.
    FailedEntry {
        /// The hardware's own reason: on Intel the VM-instruction error or exit reason (SDM volume 3,
        /// appendix C), on AMD the VMCB's exit code.
        reason: u64,
    },
    /// A signal, or a request to leave: not an exit of the guest's, and not counted as one.
    Interrupted,
    /// A reason that this VMM has no use for: KVM's number of it.
    Other(u32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PioIn { port, size } => write!(f, "in{} {port:#x}", width(size)),
            Self::PioOut { port, size, data } => write!(f, "out{} {port:#x} {data:#x}", width(size)),
            Self::MmioRead { address, size } => write!(f, "read{} {address:#x}", width(size)),
            Self::MmioWrite { address, size, data } => {
                write!(f, "write{} {address:#x} {data:#x}", width(size))
            }
            Self::Hypercall { number } => write!(f, "hypercall {number}"),
            Self::RdMsr { index } => write!(f, "rdmsr {index:#x}"),
            Self::WrMsr { index, data } => write!(f, "wrmsr {index:#x} {data:#x}"),
            Self::Hlt => f.write_str("hlt"),
            Self::Shutdown => f.write_str("shutdown"),
            Self::EmulationFailure(_) => f.write_str("emulation failure"),
            Self::FailedEntry { .. } => f.write_str("failed entry"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Other(reason) => write!(f, "reason {reason}"),
        }
    }
}

/// The width of an access in bits, as a suffix.
fn width(size: u8) -> &'static str {
    match size {
        1 => "8",
        2 => "16",
        4 => "32",
        8 => "64",
        _ => "",
    }
}

/// The bytes of an instruction that KVM could not emulate, where it says which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    bytes: [u8; 15],
    len: u8,
}

impl Instruction {
    /// The first 15 of `bytes`, the longest that an x86 instruction can be.
    pub fn new(bytes: &[u8]) -> Self {
        let mut instruction = Self::default();
        for (to, from) in instruction.bytes.iter_mut().zip(bytes) {
            *to = *from;
            instruction.len = instruction.len.saturating_add(1);
        }
        instruction
    }

    /// The bytes; none where KVM did not say.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_holds_fifteen_bytes() {
        assert_eq!(Instruction::new(&[0x90; 20]).bytes(), [0x90; 15]);
        assert!(Instruction::default().bytes().is_empty());
    }

    #[test]
    fn a_large_code_is_shown_whole() {
        assert_eq!(Stop::Exited(7).to_string(), "exited with code 7");
        assert_eq!(Stop::CpuExited(0xcafe).to_string(), "exited with code 51966 (0xcafe)");
    }

    #[test]
    fn only_a_vcpu_s_own_end_lets_the_others_go_on() {
        assert!(Stop::Halted.parks() && Stop::CpuExited(1).parks());
        assert!(!Stop::Exited(0).parks() && !Stop::Timeout.parks() && !Stop::TripleFault.parks());
    }
}
