//! The parameters of a comparison: the way in which the driver notifies the device, the ring, and the workload.

use crate::device::simvirtio::Transport;
use crate::x86::modes::Mode;
use simvirtio::abi;
use std::fmt;

/// A way in which the driver passes bytes to the device: a transport, and the number of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A store to TX head for each byte, which is an exit. The assignment specifies this variant.
    Byte,
    /// A store to TX head for as many bytes as fit into the queue, which is an exit.
    Batch,
    /// A store to TX head for each byte, which KVM queues (coalesced MMIO).
    Coalesced,
    /// As many bytes as fit into the queue, then a store to the doorbell.
    Doorbell,
    /// As many bytes as fit into the queue. The device's thread polls shared memory.
    Polling,
}

impl Variant {
    /// All variants, from the most exits to none.
    pub const ALL: [Self; 5] = [Self::Byte, Self::Batch, Self::Coalesced, Self::Doorbell, Self::Polling];

    /// The transport of this variant.
    pub fn transport(self) -> Transport {
        match self {
            Self::Byte | Self::Batch => Transport::Exit,
            Self::Coalesced => Transport::Coalesced,
            Self::Doorbell => Transport::Doorbell,
            Self::Polling => Transport::Polling,
        }
    }

    /// The name on the command line and in files.
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

/// The ring in which the driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Ring 0, like a kernel.
    Zero,
    /// Ring 3, like a user program.
    Three,
}

impl Ring {
    /// The number of the ring.
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

/// The data that the driver sends in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The length of the message, in bytes. 0 sends no message.
    pub bytes: u32,
    /// The number of echoes. 0 sends none.
    pub messages: u32,
    /// The length of each echo, in bytes. It must be below the queue length.
    pub echo: u32,
    /// The length of the SIMVIRTIO queues, in bytes.
    pub queue_len: u16,
}

impl Default for Workload {
    /// A message of 16 KiB, and 1000 echoes of 1 byte each.
    fn default() -> Self {
        Self { bytes: 16 << 10, messages: 1000, echo: 1, queue_len: abi::DEFAULT_QUEUE_LEN }
    }
}
