//! The devices, and the buses that lead to them.
//!
//! A device sees offsets in its own range: never an address, the bus or the machine. `pc/` holds the older hardware that
//! Linux needs, `simvirtio/` the device of the SO2 assignment, `virtio/` virtio devices over MMIO.
//!
//! Imports: [`crate::memory`], the consoles, and the end of a run.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub(crate) mod bus;
pub(crate) mod debugcon;
pub(crate) mod exit_port;
pub(crate) mod fifo;
pub(crate) mod pc;
pub(crate) mod serial;
pub(crate) mod simvirtio;
pub(crate) mod virtio;

pub use bus::{Bus, Device, DeviceName, SharedDevice};
pub use debugcon::{Debugcon, PORT as DEBUGCON_PORT};
pub use exit_port::{ExitPort, PORT as EXIT_PORT};
pub use fifo::Fifo;
pub use serial::{PORT as SERIAL_PORT, Serial};
pub use simvirtio::{Simvirtio, SimvirtioReport, Transport, TrappedMemory, Window};
pub use virtio::Disk;
