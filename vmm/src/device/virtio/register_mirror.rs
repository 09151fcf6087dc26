//! A copy of a device's registers in a read-only memory slot (KVM_MEM_READONLY). Guests read the registers from it
//! without an exit. A store there exits to the device.

use crate::memory::{Gpa, GuestMemory};
use std::sync::OnceLock;

/// The page with the copy. Empty if the guest's reads are exits.
#[derive(Debug, Default)]
pub struct RegisterMirror(OnceLock<(GuestMemory, Gpa)>);

impl RegisterMirror {
    /// Copies the registers to `base` in `memory` from now on. Only the first call counts.
    pub(crate) fn attach(&self, memory: GuestMemory, base: Gpa) {
        let _ = self.0.set((memory, base));
    }

    /// Copies the value of the register at `offset`.
    pub(crate) fn store(&self, offset: u64, value: u32) {
        let Some((memory, base)) = self.0.get() else { return };
        if let Some(address) = base.0.checked_add(offset) {
            memory.store_word(Gpa(address), value);
        }
    }

    /// Copies bytes of the configuration space.
    pub(crate) fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let Some((memory, base)) = self.0.get() else { return };
        if let Some(address) = base.0.checked_add(offset) {
            // This does not fail: a configuration space is much smaller than its page.
            let _ = memory.write(Gpa(address), bytes);
        }
    }
}
