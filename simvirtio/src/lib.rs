//! SIMVIRTIO, the device protocol of the SO2 course's VMM assignment, for the host and for guests.
//!
//! The device takes bytes from its driver (the guest's output) and gives bytes to it (the guest's input). The two
//! sides share three areas of guest memory: the device window, the buffers of two queues, and the device table.
//! `docs/abi.md`, section 4, is the specification.
//!
//! * [`abi`]: the addresses, offsets and values.
//! * [`ring`]: the byte queues, with a [`ring::Producer`] and a [`ring::Consumer`].
//! * [`device`]: the state machine of the device.
//! * [`driver`]: the driver's side of the handshake.
//! * [`serve`](mod@serve): the loop of a device that sleeps until its driver rings.
//!
//! The crate is `no_std` and has no dependencies and no `unsafe` code, so that the host (the `vmm` crate) and the
//! guests compile the same source.
//!
//! Both sides access shared memory through the trait [`Memory`]. A guest implements it with volatile accesses. The
//! host implements it with its mapping of guest memory (polling and doorbell transports) or with registers behind a
//! trapped page (exit transports). A test implements it with an array.
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod device;
pub mod driver;
pub mod ring;
pub mod serve;
mod table;
#[cfg(test)]
mod testing;

/// The folder of this crate's sources, for a build script that compiles them for guests.
#[cfg(feature = "source")]
pub const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// The memory that driver and device share, addressed by guest physical address (GPA).
///
/// Loads have acquire order and stores have release order: a side that sees a store also sees all earlier stores.
/// `load_u32` and `store_u32` are single accesses, and the caller passes a multiple of four. An address without memory
/// or a device behaves as an open bus: a load returns all ones, and a store has no effect.
pub trait Memory {
    /// Reads the byte at `gpa`.
    fn load_u8(&self, gpa: u64) -> u8;
    /// Writes the byte at `gpa`.
    fn store_u8(&self, gpa: u64, value: u8);
    /// Reads the little-endian 32-bit word at `gpa`, which is a multiple of four.
    fn load_u32(&self, gpa: u64) -> u32;
    /// Writes the little-endian 32-bit word at `gpa`, which is a multiple of four.
    fn store_u32(&self, gpa: u64, value: u32);
}

impl<M: Memory + ?Sized> Memory for &M {
    fn load_u8(&self, gpa: u64) -> u8 {
        (**self).load_u8(gpa)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        (**self).store_u8(gpa, value);
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        (**self).load_u32(gpa)
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        (**self).store_u32(gpa, value);
    }
}
