//! Limits of resources, and descriptors that this process has inherited.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::RawFd;

/// Lowers a limit. A lower one that is in force stays.
pub(crate) fn lower(resource: libc::__rlimit_resource_t, to: u64) -> bool {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives both calls.
    unsafe {
        if libc::getrlimit64(resource, &mut now) != 0 {
            return false;
        }
        now.rlim_max = now.rlim_max.min(to);
        now.rlim_cur = now.rlim_cur.min(now.rlim_max);
        libc::setrlimit64(resource, &now) == 0
    }
}

/// The descriptors besides the three streams that this process had when it started.
#[derive(Debug, Default)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Finds them. Call it before this process opens a file.
    pub fn find() -> Self {
        let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        let found: Vec<_> = numbers.filter(|fd| *fd > libc::STDERR_FILENO).collect();
        // One of them was that of the listing.
        // SAFETY: the call only asks for the flags of a descriptor.
        Self(found.into_iter().filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect())
    }

    /// Closes them. A file that was opened through `/dev/fd` has a descriptor of its own.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: this program has not opened this descriptor, so nothing in it owns it.
            unsafe { libc::close(fd) };
        }
    }
}
