//! The host calls of the benches: a clock of CPU time, the limit of file descriptors, and a bare slot of memory.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::time::Duration;
use std::{io, mem, ptr};

/// CPU time of all threads of this process so far, in user and kernel mode.
pub fn cpu_time() -> Duration {
    // SAFETY: an all-zero timespec is a valid one, and outlives the call, which fills it.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Raises the soft limit of open files to the hard one, and says how many may be open.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    // SAFETY: an all-zero limit is a valid one, and outlives both calls.
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

/// Has all threads share one heap. The C library grows a heap of a thread's own a page at a time, by a call that changes the
/// process's memory; and the kernel tells each VM in the process of each such change.
pub fn one_heap() {
    // SAFETY: a plain setting of the process; where it is refused, all is as before.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// A VM's memory as the assignment wants it: anonymous, without swap set aside, and such that equal pages may be merged.
#[derive(Debug)]
pub struct Ram {
    start: *mut u8,
    size: usize,
}

// SAFETY: the address is only that of memory, which any thread may use.
unsafe impl Send for Ram {}

impl Ram {
    /// So many bytes of zeros.
    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
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
        // SAFETY: the range is that of the mapping; only advice, which does not change what it holds.
        unsafe { libc::madvise(start, size, libc::MADV_MERGEABLE) };
        Ok(Self { start: start.cast(), size })
    }

    /// Copies `data` to an offset, where it fits.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if offset.checked_add(data.len()).is_some_and(|end| end <= self.size) {
            // SAFETY: the range was checked, and no guest runs while this is borrowed.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(offset), data.len()) };
        }
    }

    /// The 16-bit word at an offset; zero where nothing is.
    pub fn word(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        if offset.checked_add(bytes.len()).is_some_and(|end| end <= self.size) {
            // SAFETY: the range was checked.
            unsafe { ptr::copy_nonoverlapping(self.start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        }
        u16::from_le_bytes(bytes)
    }

    /// Gives the memory to a VM, from address 0 on. The VM has to go before this.
    pub fn register(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let slot = kvm_userspace_memory_region {
            memory_size: self.size as u64,
            userspace_addr: self.start as u64,
            ..Default::default()
        };
        // SAFETY: the range is mapped, and stays so until the VM is dropped.
        unsafe { vm.set_user_memory_region(slot) }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and its VM has gone.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_checked_at_its_end() {
        let mut ram = Ram::new(4096).unwrap();
        ram.write(4094, &[1, 2]);
        ram.write(4095, &[9, 9]);
        assert_eq!((ram.word(4094), ram.word(4095), ram.word(usize::MAX)), (0x0201, 0, 0));
    }

    #[test]
    fn cpu_time_goes_on_and_files_may_be_open() {
        let before = cpu_time();
        while cpu_time() == before {}
        assert!(raise_descriptor_limit().unwrap() > 2);
    }
}
