//! Building the machine for Linux on hosts without KVM. The interface is that of `pc.rs`.

use crate::error::Error;
use crate::machine::Machine;
use crate::machine::builder::Builder;
use crate::machine::linux::Linux;

impl Builder {
    /// There is no kernel on this host, so this is never called.
    pub(super) fn build_pc(self, linux: Linux) -> Result<Machine, Error> {
        match linux.kernel {}
    }
}
