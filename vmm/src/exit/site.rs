//! The sites that exits come from, and the ways in which an exit arrives.

use super::Exit;
use std::fmt;
use std::str::FromStr;

/// The reason for an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Port read.
    PioIn,
    /// Port write.
    PioOut,
    /// MMIO read.
    MmioRead,
    /// MMIO write.
    MmioWrite,
    /// Hypercall.
    Hypercall,
    /// Read of a model-specific register.
    RdMsr,
    /// Write of a model-specific register.
    WrMsr,
    /// Halt.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// KVM could not emulate an instruction.
    EmulationFailure,
    /// The processor refused to enter the guest.
    FailedEntry,
    /// Any other reason, by its number in KVM.
    Other(u32),
}

impl Reason {
    /// All reasons that have a name, in the order of their codes: all but [`Reason::Other`].
    pub const NAMED: [Self; 11] = [
        Self::PioIn,
        Self::PioOut,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Hypercall,
        Self::RdMsr,
        Self::WrMsr,
        Self::Hlt,
        Self::Shutdown,
        Self::EmulationFailure,
        Self::FailedEntry,
    ];

    /// The reason's code in profiles and traces: its index in [`Self::NAMED`], or one more for [`Reason::Other`].
    pub fn code(self) -> u8 {
        match self {
            Self::PioIn => 0,
            Self::PioOut => 1,
            Self::MmioRead => 2,
            Self::MmioWrite => 3,
            Self::Hypercall => 4,
            Self::RdMsr => 5,
            Self::WrMsr => 6,
            Self::Hlt => 7,
            Self::Shutdown => 8,
            Self::EmulationFailure => 9,
            Self::FailedEntry => 10,
            Self::Other(_) => 11,
        }
    }

    /// True if exits of this reason come from a port, an address, a register, or a hypercall number.
    pub fn has_place(self) -> bool {
        matches!(
            self,
            Self::PioIn
                | Self::PioOut
                | Self::MmioRead
                | Self::MmioWrite
                | Self::Hypercall
                | Self::RdMsr
                | Self::WrMsr
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PioIn => "PIO in",
            Self::PioOut => "PIO out",
            Self::MmioRead => "MMIO read",
            Self::MmioWrite => "MMIO write",
            Self::Hypercall => "hypercall",
            Self::RdMsr => "RDMSR",
            Self::WrMsr => "WRMSR",
            Self::Hlt => "HLT",
            Self::Shutdown => "shutdown",
            Self::EmulationFailure => "emulation failure",
            Self::FailedEntry => "failed entry",
            Self::Other(reason) => return f.pad(&format!("reason {reason}")),
        })
    }
}

/// The error for a text that does not name an exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown exit reason")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    /// Parses the text that `Display` writes.
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        if let Some(reason) = Self::NAMED.iter().find(|reason| reason.to_string() == text) {
            return Ok(*reason);
        }
        let number = text.strip_prefix("reason ").and_then(|number| number.parse().ok());
        // Accept only the form that is written: no sign, no leading zeros.
        number.map(Self::Other).filter(|reason| reason.to_string() == text).ok_or(UnknownReason)
    }
}

/// The origin of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The reason, which includes the direction.
    pub reason: Reason,
    /// The port, guest physical address, MSR number or hypercall number, and the width in bytes. `None` for reasons
    /// without a place, and for sites that no longer fit into a profile's table.
    pub place: Option<(u64, u8)>,
}

impl Site {
    /// The site of an exit; `None` for an interruption or a stop for a debugger, which are not exits of the guest.
    #[inline(always)]
    pub fn of(exit: &Exit) -> Option<Self> {
        let (reason, place) = match *exit {
            Exit::PioIn { port, size } => (Reason::PioIn, Some((port.into(), size))),
            Exit::PioOut { port, size, .. } => (Reason::PioOut, Some((port.into(), size))),
            Exit::MmioRead { address, size } => (Reason::MmioRead, Some((address, size))),
            Exit::MmioWrite { address, size, .. } => (Reason::MmioWrite, Some((address, size))),
            Exit::Hypercall { number } => (Reason::Hypercall, Some((number.into(), 4))),
            Exit::RdMsr { index } => (Reason::RdMsr, Some((index.into(), 8))),
            Exit::WrMsr { index, .. } => (Reason::WrMsr, Some((index.into(), 8))),
            Exit::Hlt => (Reason::Hlt, None),
            Exit::Shutdown => (Reason::Shutdown, None),
            Exit::EmulationFailure(_) => (Reason::EmulationFailure, None),
            Exit::FailedEntry { .. } => (Reason::FailedEntry, None),
            Exit::Other(reason) => (Reason::Other(reason), None),
            Exit::Interrupted | Exit::Debug(_) => return None,
        };
        Some(Self { reason, place })
    }
}

/// The way in which an [`Exit`] arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The vCPU left the guest.
    FromGuest,
    /// The exit is a further element of the previous string I/O exit.
    NextElement,
    /// The exit is a store that the kernel queued without leaving the guest. It happened before the next exit.
    Coalesced,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_parses_from_the_text_that_it_displays() {
        for reason in Reason::NAMED.into_iter().chain([Reason::Other(0), Reason::Other(u32::MAX)]) {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        for bad in
            ["", "pio in", "reason", "reason ", "reason +1", "reason 01", "reason 4294967296", "reason -1"]
        {
            assert_eq!(bad.parse::<Reason>(), Err(UnknownReason), "{bad}");
        }
    }

    #[test]
    fn the_code_of_a_reason_is_its_index_in_the_table() {
        for (code, reason) in (0..).zip(Reason::NAMED) {
            assert_eq!(reason.code(), code);
        }
        assert_eq!(usize::from(Reason::Other(7).code()), Reason::NAMED.len());
    }
}
