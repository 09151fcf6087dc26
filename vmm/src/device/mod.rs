//! The devices, and the buses that map ports, addresses and MSRs to them.
//!
//! A device gets an offset in its own range. It knows neither its address nor the bus nor the machine. `pc/` contains
//! the older PC hardware that Linux needs, `simvirtio/` the device of the SO2 assignment, and `virtio/` the virtio
//! devices over MMIO.

// May import `memory`, `console`, `shutdown`, `profile`, `exit`, `host` and the errors.
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
#[cfg_attr(not(has_kvm), path = "virtio/absent.rs")]
pub(crate) mod virtio;

pub use ::simvirtio::abi::Layout;
pub use bus::{Bus, Device, DeviceName, SharedDevice};
pub use debugcon::{Debugcon, PORT as DEBUGCON_PORT};
pub use exit_port::{ExitPort, PORT as EXIT_PORT};
pub use fifo::Fifo;
pub use serial::{PORT as SERIAL_PORT, Serial};
pub use simvirtio::{Simvirtio, SimvirtioReport, Transport, TrappedMemory, Window};
pub use virtio::Disk;
