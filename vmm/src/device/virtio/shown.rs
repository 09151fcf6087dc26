//! A device's registers as the guest reads them: in a page of memory that it cannot write (KVM_MEM_READONLY), so that
//! reading a register is no exit. A store there is one, as ever, and comes to the device.
//!
//! Whoever changes a register shows it here. Two threads do, so each looks again after it has stored: what was the
//! last to change is what is shown in the end.

use crate::memory::{Gpa, GuestMemory};
use std::sync::OnceLock;

/// The page, or none: the guest's reads then are exits.
#[derive(Debug, Default)]
pub struct Shown(OnceLock<(GuestMemory, Gpa)>);

impl Shown {
    /// From now on the registers are shown at `base` in `memory`.
    pub(crate) fn set(&self, memory: GuestMemory, base: Gpa) {
        let _ = self.0.set((memory, base));
    }

    /// Shows what `current` says of the register at `offset`, until that is what it still says.
    pub(crate) fn show(&self, offset: u64, current: impl Fn() -> u32) {
        let Some((memory, base)) = self.0.get() else { return };
        let Some(address) = base.0.checked_add(offset) else { return };
        loop {
            let value = current();
            memory.store_word(Gpa(address), value);
            if current() == value {
                return;
            }
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
