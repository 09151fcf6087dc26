//! The software processor (package `softcpu`) as a vCPU: a machine without KVM.
//!
//! [`SoftVcpu`] is to `softcpu` what [`KvmVcpu`](crate::kvm::vcpu::KvmVcpu) is to KVM: it runs a guest until its next exit,
//! and returns the same exits. `registers.rs` converts the registers, and `cpuid.rs` the CPUID leaves.
//!
//! Imports: the traits of the controllers, the processor's state, guest memory.

pub(crate) mod cpuid;
mod debug;
mod registers;
pub(crate) mod vcpu;
