//! Guest memory for the bare loop.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use std::ptr;

/// A private mapping of zeroed memory.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    size: usize,
}

impl Memory {
    /// Maps `size` bytes.
    ///
    /// # Errors
    /// The host has too little memory.
    pub fn new(size: usize) -> Result<Self, String> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("cannot map {size} bytes: {}", io::Error::last_os_error()));
        }
        Ok(Self { start: start.cast(), size })
    }

    /// Copies `data` to `offset`.
    ///
    /// # Errors
    /// The data does not fit into the mapping.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), String> {
        // SAFETY: the mapping has this size, and no guest runs while it is mutably borrowed.
        let all = unsafe { std::slice::from_raw_parts_mut(self.start, self.size) };
        let place = offset.checked_add(data.len()).and_then(|end| all.get_mut(offset..end));
        place.ok_or("the guest is larger than its memory")?.copy_from_slice(data);
        Ok(())
    }

    /// Makes the mapping a memory slot of `vm` at `gpa`. The VM must not outlive the mapping.
    ///
    /// # Errors
    /// KVM refused the slot.
    pub fn register(&self, vm: &VmFd, slot: u32, gpa: u64) -> Result<(), String> {
        self.register_with(vm, slot, gpa, 0)
    }

    /// Makes the mapping a memory slot like [`register`](Self::register), with the flags of KVM_SET_USER_MEMORY_REGION.
    ///
    /// # Errors
    /// KVM refused the slot.
    pub fn register_with(&self, vm: &VmFd, slot: u32, gpa: u64, flags: u32) -> Result<(), String> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: self.size as u64,
            userspace_addr: self.start as u64,
        };
        // SAFETY: the memory is mapped, and the owner of both drops the VM first.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| format!("KVM_SET_USER_MEMORY_REGION: {error}"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and nothing uses it any more.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_does_not_fit_is_refused() {
        let mut memory = Memory::new(4096).unwrap();
        assert!(memory.write(4094, &[1, 2]).is_ok());
        assert!(memory.write(4095, &[1, 2]).is_err());
        assert!(memory.write(usize::MAX, &[1]).is_err());
        assert!(Memory::new(usize::MAX >> 1).is_err());
    }
}
