//! A device's registers as the guest reads them: in a page of memory that it cannot write (KVM_MEM_READONLY), so that
//! reading a register is no exit. A store there is one, as ever, and comes to the device.

use crate::memory::{Gpa, GuestMemory};
use std::sync::OnceLock;

/// The page, or none: the guest's reads then are exits.
#[derive(Debug, Default)]
pub struct RegisterMirror(OnceLock<(GuestMemory, Gpa)>);

impl RegisterMirror {
    /// From now on the registers are shown at `base` in `memory`.
    pub(crate) fn set(&self, memory: GuestMemory, base: Gpa) {
        let _ = self.0.set((memory, base));
    }

    /// Shows the value of the register at `offset`.
    pub(crate) fn show(&self, offset: u64, value: u32) {
        let Some((memory, base)) = self.0.get() else { return };
        if let Some(address) = base.0.checked_add(offset) {
            memory.store_word(Gpa(address), value);
        }
    }

    /// Shows bytes that do not change.
    pub(crate) fn show_bytes(&self, offset: u64, bytes: &[u8]) {
        let Some((memory, base)) = self.0.get() else { return };
        if let Some(address) = base.0.checked_add(offset) {
            // A configuration space is much smaller than its page.
            let _ = memory.write(Gpa(address), bytes);
        }
    }
}
