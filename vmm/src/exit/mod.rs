//! VM exits, the answers to them, and how a run ends.
//!
//! An [`Exit`] is an owned value, and so is its answer, an [`Outcome`]. The controllers in
//! [`controller`](crate::controller) give the answers.

// Imports: host functions.

mod debug;
mod site;
mod stop;

pub use debug::{DebugStop, PointKind};
pub use site::{Arrival, Reason, Site, UnknownReason};
pub use stop::{Outcome, Stop};

use std::fmt;

/// A 4-byte write to this port is a hypercall.
pub const HYPERCALL_PORT: u16 = 0x500;

/// The reason why the vCPU left the guest, with its details.
///
/// Linux `Documentation/virt/kvm/api.rst`, section 5, "The kvm_run structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads a port. The answer is a value.
    PioIn {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
    },
    /// The guest writes to a port.
    PioOut {
        /// The port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: u8,
        /// The value, zero-extended.
        data: u32,
    },
    /// The guest reads an address without memory. The answer is a value.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
    },
    /// The guest writes to an address without memory.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Width in bytes, 1 to 8.
        size: u8,
        /// The value, zero-extended.
        data: u64,
    },
    /// The guest makes a hypercall: a 4-byte write to [`HYPERCALL_PORT`].
    Hypercall {
        /// The number of the call, from EAX.
        number: u32,
    },
    /// The guest reads a model-specific register that KVM leaves to this VMM. The answer is a value or a fault.
    RdMsr {
        /// The register's number: ECX.
        index: u32,
    },
    /// The guest writes a model-specific register that KVM leaves to this VMM.
    WrMsr {
        /// The register's number: ECX.
        index: u32,
        /// The value: EDX:EAX.
        data: u64,
    },
    /// The guest halted.
    Hlt,
    /// The CPU shut down: a triple fault.
    Shutdown,
    /// KVM had to emulate an instruction, and could not. Or: the software processor does not have it.
    EmulationFailure(Instruction),
    /// The processor refused to enter the guest.
    FailedEntry {
        /// The reason from the hardware. On Intel: the VM-instruction error or the exit reason (SDM volume 3, appendix C).
        /// On AMD: the exit code of the VMCB.
        reason: u64,
    },
    /// A signal, or a request to leave the guest. The guest did not cause it, so it is not counted as an exit.
    Interrupted,
    /// The vCPU stopped for a debugger ([`controller::DebugControl`](crate::controller::DebugControl)). The guest did not
    /// cause it, so it is not counted either.
    Debug(DebugStop),
    /// Any other reason, by its number in KVM.
    Other(u32),
}

impl Exit {
    /// True for an access to a port, to memory-mapped I/O, or to a model-specific register.
    pub fn is_access(&self) -> bool {
        match self {
            Self::PioIn { .. }
            | Self::PioOut { .. }
            | Self::MmioRead { .. }
            | Self::MmioWrite { .. }
            | Self::Hypercall { .. }
            | Self::RdMsr { .. }
            | Self::WrMsr { .. } => true,
            Self::Hlt
            | Self::Shutdown
            | Self::EmulationFailure(_)
            | Self::FailedEntry { .. }
            | Self::Interrupted
            | Self::Debug(_)
            | Self::Other(_) => false,
        }
    }

    /// True for an exit that the guest caused, which is counted.
    #[inline]
    pub fn is_of_guest(&self) -> bool {
        !matches!(self, Self::Interrupted | Self::Debug(_))
    }
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
            Self::Debug(_) => f.write_str("debug"),
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

/// The bytes of an instruction that KVM could not emulate, if KVM reports them, or that the software processor could not
/// execute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    bytes: [u8; 15],
    len: u8,
    /// The reason of the software processor, as a sentence.
    reason: Option<&'static str>,
}

impl Instruction {
    /// Keeps the first 15 of `bytes`: the maximum length of an x86 instruction.
    pub fn new(bytes: &[u8]) -> Self {
        let mut instruction = Self::default();
        for (to, from) in instruction.bytes.iter_mut().zip(bytes) {
            *to = *from;
            instruction.len = instruction.len.saturating_add(1);
        }
        instruction
    }

    /// An instruction that the software processor could not execute, for this reason.
    pub(crate) fn unsupported(bytes: &[u8], reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::new(bytes) }
    }

    /// The reason why the software processor could not execute the instruction, as a sentence. `None` if KVM could not
    /// emulate it: KVM gives no reason.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// True if the software processor could not execute the instruction.
    pub fn is_soft(&self) -> bool {
        self.reason.is_some()
    }

    /// The first `len` bytes.
    pub(crate) fn first(self, len: usize) -> Self {
        Self { reason: self.reason, ..Self::new(self.bytes().get(..len).unwrap_or(self.bytes())) }
    }

    /// The bytes. Empty if KVM did not report them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_holds_fifteen_bytes() {
        assert_eq!(Instruction::new(&[0x90; 20]).bytes(), [0x90; 15]);
        assert!(Instruction::default().bytes().is_empty());
        assert_eq!(Instruction::new(&[1, 2, 3]).first(2).bytes(), [1, 2]);
        assert_eq!(Instruction::new(&[1, 2, 3]).first(9).bytes(), [1, 2, 3]);
    }

    #[test]
    fn large_exit_codes_are_shown_in_decimal_and_hexadecimal() {
        assert_eq!(Stop::Exited(7).to_string(), "exited with code 7");
        assert_eq!(Stop::CpuExited(0xcafe).to_string(), "exited with code 51966 (0xcafe)");
    }

    #[test]
    fn only_a_halt_and_cpu_exited_park_the_vcpu() {
        assert!(Stop::Halted.parks() && Stop::CpuExited(1).parks());
        assert!(
            !Stop::Exited(0).parks()
                && !Stop::Timeout(std::time::Duration::ZERO).parks()
                && !Stop::TripleFault.parks()
        );
    }
}
