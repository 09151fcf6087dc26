//! A server for gdb: guests are debugged over gdb's remote protocol (gdb manual, appendix E).
//!
//! ```no_run
//! use gdb::{Address, Server};
//! use vmm::boot::Image;
//! use vmm::memory::Gpa;
//! use vmm::x86::Mode;
//! use vmm::{Machine, Output};
//!
//! let image = Image::flat(&[0xf4][..], Mode::Real, Gpa(0))?;
//! let mut machine = Machine::builder(image).output(Output::captured().0).build()?;
//! let address: Address = "127.0.0.1:1234".parse()?;
//! let mut server = Server::bind(&address, false)?;
//! let report = machine.run_debugged(&mut server)?;
//! server.finish(0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `address` | the place where the server waits: a TCP port or a socket in the file system |
//! | `server` | the connection: one debugger at a time, and its events |
//! | `mailbox` | the queue of these events |
//! | `packets` | the packets in the bytes of a connection; damaged ones are asked for again |
//! | `session` | one connection: packets in, answers out, stops reported |
//! | `target` | what gdb asks for: registers, memory, breakpoints, run control |
//! | `registers` | the registers that gdb sees, and their values |
//! | `description` | the description of these registers (`target.xml`) |
//! | `monitor` | the commands of `monitor` |
//!
//! The bytes from a debugger may be anything. Its packets and its breakpoints have limits, and nothing that it sends panics.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod address;
mod description;
mod mailbox;
mod monitor;
mod packets;
mod registers;
mod server;
mod session;
mod target;

pub use address::{Address, AddressError};
pub use registers::Width;
pub use server::Server;
