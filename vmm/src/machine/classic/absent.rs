//! Building a classic PC on hosts without KVM, which do not have it. The interface is that of `classic.rs`.

use crate::boot::Image;
use crate::error::Error;
use crate::machine::builder::Builder;
use crate::machine::{Machine, MachineKind};

impl Builder {
    /// Refuses the machine.
    pub(super) fn build_classic(self, _: Image, _: MachineKind) -> Result<Machine, Error> {
        Err(Error::NoKvm)
    }

    /// False: there is no KVM.
    pub(super) fn has_classic_parts(&self) -> bool {
        false
    }
}
