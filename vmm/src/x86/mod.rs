//! The x86 processor: the state in which guests start, the CPUID leaves that they see, their page tables, and the check of a
//! state for mistakes, and the instructions that cause exits.
//!
//! All of them are pure functions.

// Imports: `memory`, `exit`, `host`.

pub(crate) mod causes;
pub(crate) mod cpuid;
pub(crate) mod general;
pub(crate) mod modes;
pub(crate) mod probe;
pub(crate) mod registers;
pub mod state_check;
pub(crate) mod summary;

pub(crate) use causes::instruction_length;
pub use causes::{causing_instruction, instruction_before};
pub use cpuid::{CpuidOverride, Register, SIGNATURE};
pub use general::{GeneralRegister, InitialValue};
pub use modes::{Mode, Start, VcpuIndex};
pub use probe::{Probe, ProbeError, Translation, linear_rip, translate_rip};
pub use registers::{CpuidEntry, DescriptorTable, FLAGS, FxImage, Regs, Segment, Sregs};
pub use summary::summary;
