//! System calls of the benches: the clock of CPU time, the limit of file descriptors, and guest memory for the bare program.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::time::Duration;
use std::{io, mem, ptr};

/// Returns the CPU time of all threads of this process so far, in user and kernel mode.
pub fn cpu_time() -> Duration {
    // SAFETY: an all-zero timespec is valid. It outlives the call, which fills it.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Raises the soft limit of open files to the hard limit. Returns the limit that now holds.
///
/// # Errors
/// The limit cannot be read.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    // SAFETY: an all-zero rlimit is valid. It outlives both calls.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        Ok(if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 { limit.rlim_max } else { before })
    }
}

/// Makes all threads share one heap. Otherwise the C library gives each thread its own heap and grows it page by page, with
/// a system call that changes the memory mappings. The kernel notifies each VM of the process of each of these changes.
pub fn share_one_heap() {
    // SAFETY: the call only changes a setting of the process. If it fails, nothing changes.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// The memory of a VM, as the assignment requires it: anonymous, without reserved swap, and mergeable (KSM).
#[derive(Debug)]
pub struct Ram {
    start: *mut u8,
    size: usize,
}

// SAFETY: the pointer leads to a mapping of this process, which any thread may use.
unsafe impl Send for Ram {}

impl Ram {
    /// Maps `size` bytes of zeros.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: this is a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping. The call is only advice, and does not change the contents.
        unsafe { libc::madvise(start, size, libc::MADV_MERGEABLE) };
        Ok(Self { start: start.cast(), size })
    }

    /// Copies `data` to an offset. Does nothing if it does not fit.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if offset.checked_add(data.len()).is_some_and(|end| end <= self.size) {
            // SAFETY: the range is checked above, and no guest runs while `self` is borrowed mutably.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(offset), data.len()) };
        }
    }

    /// Reads the 16-bit word at an offset; 0 if the offset is out of range.
    pub fn word(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        if offset.checked_add(bytes.len()).is_some_and(|end| end <= self.size) {
            // SAFETY: the range is checked above.
            unsafe { ptr::copy_nonoverlapping(self.start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        }
        u16::from_le_bytes(bytes)
    }

    /// Registers the memory with a VM, from guest physical address 0. The VM must be dropped before the memory.
    ///
    /// # Errors
    /// KVM refuses the memory slot.
    pub fn register(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let slot = kvm_userspace_memory_region {
            memory_size: self.size as u64,
            userspace_addr: self.start as u64,
            ..Default::default()
        };
        // SAFETY: the range is mapped until the VM is dropped.
        unsafe { vm.set_user_memory_region(slot) }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping, and its VM is already dropped.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_past_the_end_of_memory_do_nothing() {
        let mut ram = Ram::new(4096).unwrap();
        ram.write(4094, &[1, 2]);
        ram.write(4095, &[9, 9]);
        assert_eq!((ram.word(4094), ram.word(4095), ram.word(usize::MAX)), (0x0201, 0, 0));
    }

    #[test]
    fn cpu_time_increases_and_the_limit_of_files_is_read() {
        let before = cpu_time();
        while cpu_time() == before {}
        assert!(raise_descriptor_limit().unwrap() > 2);
    }
}
