//! Names for the addresses of a guest: functions, source lines and backtraces.
//!
//! ```no_run
//! use debug::Symbols;
//! use std::path::Path;
//!
//! let symbols = Symbols::open(Path::new("guest.elf"))?;
//! if let Some(place) = symbols.place(0x10c3) {
//!     println!("{place}");
//! }
//! # Ok::<(), debug::SymbolError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `symbols` | the symbols of an ELF file or of a `System.map`, and the lines of its DWARF information |
//! | `attribution` | the instructions that cause exits, by the RIP that KVM leaves |
//! | `backtrace` | the callers of a function, found by call frame information or frame pointers |
//! | `vmcoreinfo` | the note in which a Linux kernel describes itself |
//!
//! A symbol file may hold anything. Its size is limited, and a lookup never panics.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod attribution;
mod backtrace;
mod symbols;
mod vmcoreinfo;

pub use attribution::{Attribution, attribute};
pub use backtrace::{MAX_FRAMES, Registers, Stack, backtrace};
pub use symbols::{Call, Fit, Guest, Place, Source, SymbolError, Symbols};
pub use vmcoreinfo::vmcoreinfo;
