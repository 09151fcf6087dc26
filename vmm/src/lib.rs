//! A small KVM virtual machine monitor that counts and explains every VM exit.
//!
//! A guest is an [`Image`](boot::Image): a flat binary, an ELF64 executable, or one of those that the
//! `guest` crate embeds. A [`Machine`] runs it and gives a [`Report`]: how it ended, what it left, and where
//! each exit came from.
//!
//! ```no_run
//! use vmm::boot::flat;
//! use vmm::memory::Gpa;
//! use vmm::modes::Mode;
//! use vmm::{Machine, Output};
//!
//! // mov al, '!'; out 0xe9, al; hlt
//! let code: &[u8] = &[0xb0, b'!', 0xe6, 0xe9, 0xf4];
//! let image = flat::image(code, Mode::Real, Gpa(0))?;
//! let (output, captured) = Output::captured();
//! let report = Machine::builder(image).output(output).build()?.run()?;
//! println!("{}; {:?}; {:?} exits", report.stop, captured.bytes(), report.profile);
//! # Ok::<(), vmm::Error>(())
//! ```
//!
//! # A controller of one's own
//!
//! The extension point is [`ExitController`]: one of the caller's sees every exit first. This is
//! `vmm/examples/controller.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/controller.rs")]
//! ```
//!
//! # One exit's journey
//!
//! [`vcpu`] decodes it, the controllers of [`controller`] see it, among them the [`bus`],
//! which finds its [`device`]; the [`profile`] counts it. The documents in `docs/` tell the whole.

mod acpi;
pub mod boot;
mod builder;
pub mod bus;
pub mod clock;
pub mod compare;
mod console;
pub mod controller;
pub mod cpuid;
pub mod device;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod explain;
pub mod hypercall;
pub mod input;
pub mod kev;
mod kickable;
mod kvm_node;
pub mod machine;
pub mod memory;
pub mod modes;
pub mod msr;
pub mod output;
pub mod pc;
pub mod probe;
pub mod profile;
pub mod recorder;
pub mod report;
pub mod run;
pub mod saved;
pub mod stats;
pub mod stdio;
mod sys;
mod team;
pub mod timeline;
pub mod trace;
pub mod vcpu;
mod vm;
mod watch;

pub use builder::Builder;
pub use controller::ExitController;
pub use error::Error;
pub use input::Input;
pub use machine::Machine;
pub use output::{Captured, Output};
pub use report::{Report, Verdict};
pub use sys::{RawTerminal, catch_interrupts, interrupted, prepare, stdout_was_closed};
