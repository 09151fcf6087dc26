//! The devices, a file each. A device sees offsets in its own range and nothing else of the machine.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod debugcon;
pub mod doorbell;
pub mod exit_port;
pub mod fifo;
pub mod i8042;
pub(crate) mod poller;
pub mod post_code;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod simvirtio;
pub mod system_control;
pub mod virtio;
