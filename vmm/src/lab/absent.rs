//! The checks of `vmm doctor` on hosts without KVM. The interface is that of `doctor.rs`.

use crate::error::Error;
use crate::lab::check::Check;

/// Checks this host.
pub fn examine() -> Vec<Check> {
    vec![Check::of("/dev/kvm", Err(Error::NoKvm))]
}
