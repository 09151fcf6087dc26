//! What a comparison varies: the way of talking to the device, the ring, and the workload.

use crate::device::simvirtio::Transport;
use crate::x86::modes::Mode;
use simvirtio::abi;
use std::fmt;

/// A way of talking to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A store to TX head for each byte, which is an exit: the assignment's way.
    Byte,
    /// A store to TX head for as many bytes as the queue takes, which is an exit.
    Batch,
    /// A store to TX head for each byte, which the kernel queues.
    Coalesced,
    /// As many bytes as the queue takes, then a ring of the doorbell.
    Doorbell,
    /// As many bytes as the queue takes, and a thread that watches.
    Polling,
}

impl Variant {
    /// All of them, from the most exits to none.
    pub const ALL: [Self; 5] = [Self::Byte, Self::Batch, Self::Coalesced, Self::Doorbell, Self::Polling];

    /// The transport that it runs over.
    pub fn transport(self) -> Transport {
        match self {
            Self::Byte | Self::Batch => Transport::Exit,
            Self::Coalesced => Transport::Coalesced,
            Self::Doorbell => Transport::Doorbell,
            Self::Polling => Transport::Polling,
        }
    }

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Byte => "byte",
            Self::Batch => "batch",
            Self::Coalesced => "coalesced",
            Self::Doorbell => "doorbell",
            Self::Polling => "polling",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Byte => "store per byte",
            Self::Batch => "store per batch",
            Self::Coalesced => "coalesced",
            Self::Doorbell => "doorbell",
            Self::Polling => "polling",
        })
    }
}

/// The ring that the driver runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// As a kernel does.
    Zero,
    /// As a user's program does.
    Three,
}

impl Ring {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Three => 3,
        }
    }

    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Zero => Mode::Long,
            Self::Three => Mode::User,
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Length of the message, in bytes.
    pub bytes: u32,
    /// How many echoes.
    pub messages: u32,
    /// Length of each of them, in bytes: below the queue's.
    pub echo: u32,
    /// Length of the queues, in bytes.
    pub queue_len: u16,
}

impl Default for Workload {
    fn default() -> Self {
        Self { bytes: 16 << 10, messages: 1000, echo: 1, queue_len: abi::DEFAULT_QUEUE_LEN }
    }
}
