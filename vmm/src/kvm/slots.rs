//! Memory slots: the guest memory of a VM.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::memory::GuestMemory;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Registers each part of `memory` as a slot of `vm` (KVM_SET_USER_MEMORY_REGION).
///
/// # Errors
/// The kernel refused.
pub(crate) fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    register_from(vm, memory, 0, 0)
}

/// Registers each part of `memory` as a read-only slot, from slot number `first`. The guest's stores there are MMIO exits.
///
/// # Errors
/// The kernel refused.
pub(crate) fn register_read_only(vm: &VmFd, memory: &GuestMemory, first: u32) -> Result<(), Error> {
    register_from(vm, memory, first, KVM_MEM_READONLY)
}

fn register_from(vm: &VmFd, memory: &GuestMemory, first: u32, flags: u32) -> Result<(), Error> {
    for (slot, region) in (first..).zip(memory.slots().iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped, and the machine drops the VM before this memory.
        unsafe { vm.set_user_memory_region(description) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
