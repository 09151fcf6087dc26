//! SIMVIRTIO, the device protocol of the SO2 course's VMM assignment, for both sides of it.
//!
//! The crate is `no_std`, has no dependency and no `unsafe`, so that the host (the `vmm` crate) and a
//! guest's driver are built from the same text:
//!
//! * [`abi`]: every address, offset and status value;
//! * [`ring`]: the byte queues, with a [`ring::Producer`] and a [`ring::Consumer`];
//! * [`device`]: the device's state machine, the centre of the project;
//! * [`driver`]: the driver's side of the handshake.
//!
//! Both sides reach what they share through one small trait, [`Memory`]. A guest implements it with
//! volatile accesses, the host with its mapping of guest memory (polling transport) or with a set of
//! registers behind a trapped page (exit transport), a test with an array. The specification in words is
//! `docs/abi.md`.
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
mod table;
#[cfg(test)]
mod testing;

/// Memory that driver and device share, addressed by guest physical address (GPA).
///
/// Loads have acquire order and stores have release order: whoever sees a store also sees everything
/// stored before it. `load_u32` and `store_u32` are single accesses to naturally aligned addresses; no
/// other alignment is asked for. An address with nothing behind it reads as all ones and swallows stores,
/// as an open bus does.
pub trait Memory {
    /// Reads the byte at `gpa`.
    fn load_u8(&self, gpa: u64) -> u8;
    /// Writes the byte at `gpa`.
    fn store_u8(&self, gpa: u64, value: u8);
    /// Reads the little-endian word at `gpa`, which is a multiple of four.
    fn load_u32(&self, gpa: u64) -> u32;
    /// Writes the little-endian word at `gpa`, which is a multiple of four.
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
