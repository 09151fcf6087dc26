//! KVM on hosts that have none: a virtual machine cannot be created, so its types have no values. The interface is that of
//! `kvm/mod.rs`, as far as other layers use it.

#[path = "../counters.rs"]
pub(crate) mod counters;
pub(crate) mod irqchip;
pub(crate) mod vcpu;
pub(crate) mod vm;
