//! All code that calls KVM.
//!
//! `vm.rs` creates the virtual machine, `slots.rs` registers its memory, and `events.rs` its interrupts and doorbells.
//! `irqchip.rs` reads and sets the interrupt controllers, and `pit.rs` creates the timer.
//! `msr_filter.rs` selects the MSR accesses that exit. `vcpu.rs` runs a guest until its next exit, with `run_page.rs`,
//! `decode.rs` and `coalesced.rs`. `run_copy.rs` decodes the exits of another program's vCPU. `counters.rs` reads KVM's own counters, and `node.rs` explains a `/dev/kvm` that cannot be used.
//! `retry.rs` repeats operations that a signal interrupted.
//!
//! Imports: the traits of the controllers, the processor's state, guest memory.

pub(crate) mod coalesced;
pub(crate) mod counters;
pub(crate) mod decode;
pub(crate) mod events;
pub(crate) mod irqchip;
pub(crate) mod msr_filter;
mod node;
pub(crate) mod pit;
mod registers;
mod retry;
pub(crate) mod run_copy;
pub(crate) mod run_page;
pub(crate) mod slots;
pub(crate) mod vcpu;
pub(crate) mod vm;
