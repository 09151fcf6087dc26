//! The ways in which an instruction ends before it is complete.

use crate::exit::Missing;

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    /// The error code. It has 16 bits, so that a [`Trap`] has the size of two registers.
    pub(crate) error: Option<u16>,
    /// The linear address of a page fault; the bits of DR6 of a debug exception.
    pub(crate) address: u64,
    /// The vector that was being delivered when the exception occurred.
    pub(crate) during: Option<u8>,
}

/// The reason why an instruction ended before it was complete. Its registers are as before it, except for the elements
/// of a repeated string instruction that are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// A fault: the saved RIP is that of the instruction.
    Fault(Exception),
    /// An access needs an answer. The exit is in `Cpu::pending`.
    Exit,
    /// HLT, which is complete.
    Halted,
    /// The processor does not implement what the instruction needs.
    Unsupported(Missing),
    /// The instruction is to be started again, because its share of instructions is used up.
    Again,
}

pub(crate) const DE: u8 = 0;
pub(crate) const DB: u8 = 1;
pub(crate) const BP: u8 = 3;
pub(crate) const OF: u8 = 4;
pub(crate) const BR: u8 = 5;
pub(crate) const UD: u8 = 6;
pub(crate) const NM: u8 = 7;
pub(crate) const DF: u8 = 8;
pub(crate) const TS: u8 = 10;
pub(crate) const NP: u8 = 11;
pub(crate) const SS: u8 = 12;
pub(crate) const GP: u8 = 13;
pub(crate) const PF: u8 = 14;
pub(crate) const MF: u8 = 16;
pub(crate) const AC: u8 = 17;
pub(crate) const XM: u8 = 19;

impl Trap {
    /// An exception without an error code.
    pub(crate) const fn fault(vector: u8) -> Self {
        Self::Fault(Exception { vector, error: None, address: 0, during: None })
    }

    /// An exception with an error code.
    pub(crate) const fn coded(vector: u8, error: u32) -> Self {
        Self::Fault(Exception { vector, error: Some(error as u16), address: 0, during: None })
    }

    /// #UD.
    pub(crate) const fn ud() -> Self {
        Self::fault(UD)
    }

    /// #GP(0).
    pub(crate) const fn gp() -> Self {
        Self::coded(GP, 0)
    }

    /// #PF at a linear address.
    pub(crate) const fn page_fault(address: u64, error: u32) -> Self {
        Self::Fault(Exception { vector: PF, error: Some(error as u16), address, during: None })
    }

    /// #DB, with the bits that it sets in DR6 (SDM volume 3, section 18.2.3).
    pub(crate) const fn debug(bits: u64) -> Self {
        Self::Fault(Exception { vector: DB, error: None, address: bits, during: None })
    }
}
