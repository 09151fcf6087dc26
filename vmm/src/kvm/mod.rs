//! KVM: everything that calls it.
//!
//! `vcpu.rs` runs a guest until its next exit, with `decode.rs` and `coalesced.rs`; `vm.rs` makes the virtual machine;
//! `counters.rs` reads KVM's own counters.
//!
//! Imports: the traits of the controllers, the processor's state, guest memory.

pub(crate) mod coalesced;
pub(crate) mod counters;
pub(crate) mod decode;
pub(crate) mod events;
pub(crate) mod msr_filter;
mod node;
mod restore;
pub(crate) mod slots;
pub(crate) mod vcpu;
pub(crate) mod vm;
