//! An x86 processor in software.
//!
//! A [`Cpu`] interprets the instructions of a guest in real, protected and long mode, with segmentation, paging and
//! exceptions, until something outside of the processor must answer: [`Cpu::run`] then returns an [`Exit`]. The package
//! knows no KVM and no device, and has no unsafe code. It reaches the guest's memory through the trait [`Memory`].
//!
//! It is deterministic: two runs of the same guest with the same answers execute the same instructions, and the
//! time-stamp counter counts them.
//!
//! References are to the Intel 64 and IA-32 Architectures Software Developer's Manual (SDM).
//!
//! ```
//! use softcpu::{Cpu, Exit, VecMemory};
//!
//! let memory = VecMemory::new(0x1000);
//! memory.write(0x100, &[0xb0, 0x2a, 0xe6, 0xe9, 0xf4]); // mov al, 42; out 0xe9, al; hlt
//! let mut cpu = Cpu::new(memory);
//! cpu.set_code_segment_base(0);
//! cpu.state.rip = 0x100;
//! assert_eq!(cpu.run(100), Exit::PortOut { port: 0xe9, size: 1, data: 42 });
//! assert_eq!(cpu.run(100), Exit::Halted);
//! ```

mod blocks;
mod control;
mod cpu;
mod cpuid;
mod debug;
mod descriptors;
mod execute;
mod exit;
mod fetch;
mod flags;
mod float;
mod interrupts;
mod linear;
mod memory;
mod msr;
mod op;
mod operands;
mod ops;
mod paging;
mod shape;
mod stack;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tlb;
mod trap;

pub use cpu::Cpu;
pub use cpuid::{CpuidLeaf, supported_cpuid};
pub use debug::Watch;
pub use exit::{Death, Delivery, Exit, Fault, Missing};
pub use memory::{Memory, VecMemory};
pub use state::{Fpu, Segment, State, Table, cr0, cr4, efer, flag, seg};
