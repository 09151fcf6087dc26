//! The interrupt controllers of KVM.

/// The state of the interrupt controllers.
pub(crate) enum Irqchip {}
