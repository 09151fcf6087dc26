//! The ways in which a driver breaks the protocol, and their messages.

use super::State;
use crate::abi;
use crate::ring::WildIndex;
use core::fmt;

/// A way in which the driver broke the protocol (`docs/abi.md`, section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A byte on the TX queue that is not a command in this state.
    Command {
        /// The device's state when it took the byte.
        state: State,
        /// The byte.
        byte: u8,
    },
    /// A `C` while the driver status is not DRIVER_ACK.
    NotAcknowledged {
        /// The value of the driver status field.
        driver_status: u8,
    },
    /// A value in the driver status field that the protocol does not define.
    DriverStatus {
        /// The device's state when it read the field.
        state: State,
        /// The value.
        value: u8,
    },
    /// A queue selector above 1.
    Selector {
        /// The value.
        value: u8,
    },
    /// A driver's index that is not below the queue's length: the head of TX, or the tail of RX.
    WildIndex {
        /// The queue's number: 0 is TX, 1 is RX.
        queue: u8,
        /// The index.
        wild: WildIndex,
    },
    /// A device table whose count leaves no room for an entry, or is above the capacity.
    Table {
        /// The count.
        count: u16,
    },
    /// An access to the window that is not allowed. Only the exit transports detect it.
    Access {
        /// Offset in the window, in bytes.
        offset: u64,
        /// Width of the access, in bytes.
        size: u8,
        /// True for a store, false for a load.
        store: bool,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Command { state, byte } => {
                let expected = match state {
                    State::Initial => "'R' (0x52)",
                    State::Reset => "'R' (0x52) or 'C' (0x43)",
                    _ => "DRIVER_OK (0x04) in driver_status before any data",
                };
                write!(
                    f,
                    "in state {state} the device expected {expected}, and the TX queue held {byte:#04x}"
                )?;
                match byte {
                    0 => write!(f, ": store a byte at {:#x} + head before the new head", abi::TX_BUFFER),
                    byte if byte.is_ascii_graphic() => write!(f, " ('{}')", char::from(byte)),
                    _ => Ok(()),
                }
            }
            Self::NotAcknowledged { driver_status } => write!(
                f,
                "in state Reset the device expected DRIVER_ACK (0x00) in driver_status before 'C', and found \
                 {driver_status:#04x}"
            ),
            Self::DriverStatus { state, value } => write!(
                f,
                "in state {state} the device expected DRIVER_ACK (0x00), DRIVER (0x02) or DRIVER_OK (0x04) in \
                 driver_status, and found {value:#04x}"
            ),
            Self::Selector { value } => {
                write!(f, "queue_selector is {value}, but must be 0 (TX) or 1 (RX)")
            }
            Self::WildIndex { queue, wild } => {
                write!(f, "the {} queue's {wild}", if queue == 0 { "TX" } else { "RX" })
            }
            Self::Table { count } => write!(
                f,
                "the device table at {:#x} has the count {count}, but room for {} entries: the guest probably \
                 overwrote it",
                abi::DEVICE_TABLE,
                abi::TABLE_LEN
            ),
            Self::Access { offset, size, store } => write!(
                f,
                "a {} of width {size} at offset {offset:#x} of the device window: queue controls (0x10 to 0x1f) \
                 take aligned accesses of width 4 only",
                if store { "store" } else { "load" }
            ),
        }
    }
}

impl core::error::Error for Violation {}

/// A queue length that is not from [`abi::MIN_QUEUE_LEN`] to [`abi::MAX_QUEUE_LEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadQueueLen {
    /// The length in bytes.
    pub len: u16,
    /// The greatest length in bytes.
    pub longest: u16,
}

impl fmt::Display for BadQueueLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a queue length of {} is not possible: {} to {} bytes are allowed",
            self.len,
            abi::MIN_QUEUE_LEN,
            self.longest
        )
    }
}

impl core::error::Error for BadQueueLen {}
