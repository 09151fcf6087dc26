//! Observes the VM exits of other programs that use KVM.
//!
//! [`observe`] runs a program unchanged and without root. Afterwards its exits are in an [`Observation`], which has the
//! same profile and trace as a run of this program's own machines: [`Observation::measured`].
//!
//! An [`Engine`] gets into the way of the program's calls to KVM, and returns them as [`Event`]s. [`Preload`] is a small
//! library in front of `ioctl` (LD_PRELOAD), for dynamically linked programs. [`Ptrace`] stops all programs at these calls.
//! [`Choice`] takes the one that fits a program.
//!
//! The program is not trusted. It may write anything into what it shares with the observer. Then the counts are wrong, but
//! nothing here fails, waits for ever, or uses memory without a limit.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod answers;
mod choice;
mod death;
mod descendants;
mod doubts;
mod engine;
mod error;
mod hang;
mod isolation;
mod layout;
mod memory;
mod observation;
mod preload;
mod process;
mod program;
mod ptrace;
mod run;
mod setup;
mod tally;

pub use answers::Unanswered;
pub use choice::Choice;
pub use death::{Death, Deaths, MOST_DEATHS};
pub use doubts::{Doubts, HaltedGuest};
pub use engine::{Call, Engine, Event, MOST_DATA, Record, Stop, StopCause, Stops, Target, VcpuId};
pub use error::Error;
pub use isolation::{Protection, hide_this_process};
pub use memory::{MemorySlot, ObservedMemory, memory_refusal};
pub use observation::{Ending, Observation, ObservedVcpu};
pub use preload::Preload;
pub use program::Program;
pub use ptrace::Ptrace;
pub use run::{Confinement, Options, Streams, Watcher, observe, observe_captive};
pub use setup::Setup;
