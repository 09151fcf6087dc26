//! Memory slots: the guest memory of a VM.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::kvm::vm::Vm;
use crate::memory::{Gpa, GuestMemory, PAGE};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

impl Vm {
    /// Registers each part of `memory` as a slot of `vm` (KVM_SET_USER_MEMORY_REGION). The guest's stores to a ROM are MMIO exits.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn add_memory(&self, memory: &GuestMemory) -> Result<(), Error> {
        self.register_from(memory, 0, 0)
    }

    /// Registers each part of `memory` as a read-only slot, from slot number `first`. The guest's stores there are MMIO exits.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn add_read_only_memory(&self, memory: &GuestMemory, first: u32) -> Result<(), Error> {
        self.register_from(memory, first, KVM_MEM_READONLY)
    }

    fn register_from(&self, memory: &GuestMemory, first: u32, flags: u32) -> Result<(), Error> {
        for (slot, region) in (first..).zip(memory.slots().iter()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: if memory.is_rom(region.start_addr()) { flags | KVM_MEM_READONLY } else { flags },
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, and the machine drops the VM before this memory.
            unsafe { self.fd().set_user_memory_region(description) }
                .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Begins to log the pages that the guest changes. `memory` must be registered already.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn log_changes(&self, memory: &GuestMemory) -> Result<(), Error> {
        self.register_from(memory, 0, KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// The pages that the guest has changed since the last call (KVM_GET_DIRTY_LOG), by their first address.
    ///
    /// # Errors
    /// The kernel refused, or changes are not logged.
    pub(crate) fn changed_pages(&self, memory: &GuestMemory) -> Result<Vec<Gpa>, Error> {
        let mut found = Vec::new();
        for (slot, region) in (0..).zip(memory.slots().iter()) {
            let log =
                self.fd().get_dirty_log(slot, region.size()).map_err(Error::kvm("KVM_GET_DIRTY_LOG"))?;
            for (word, pages) in (0u64..).zip(log).filter(|(_, pages)| *pages != 0) {
                let set = (0..64).filter(|bit| pages & 1 << bit != 0).map(|bit| (word * 64 + bit) * PAGE);
                found.extend(set.map(|offset| Gpa(region.start_addr().0.saturating_add(offset))));
            }
        }
        Ok(found)
    }
}
