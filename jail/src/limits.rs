//! Limits of resources, and descriptors that this process has inherited.
#![allow(unsafe_code)]

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

/// The descriptors that are looked at. A shell gives out smaller ones.
const MOST: RawFd = 256;

impl Inherited {
    /// Finds them, and closes those from 256. Call it before this process opens a file.
    pub fn find() -> Self {
        // One call of poll(2) says which descriptors are not open; the listing of `/proc/self/fd` takes ten times as long.
        let entry = |fd| libc::pollfd { fd, events: 0, revents: 0 };
        let mut entries: Vec<_> = (libc::STDERR_FILENO.saturating_add(1)..MOST).map(entry).collect();
        // SAFETY: the entries outlive the first call, and this process has opened none of the descriptors of the second.
        unsafe {
            libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, 0);
            libc::syscall(libc::SYS_close_range, MOST, libc::c_uint::MAX, 0);
        }
        let open = entries.into_iter().filter(|entry| entry.revents & libc::POLLNVAL == 0);
        Self(open.map(|entry| entry.fd).collect())
    }

    /// Closes them. A file that was opened through `/dev/fd` has a descriptor of its own.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: this program has not opened this descriptor, so nothing in it owns it.
            unsafe { libc::close(fd) };
        }
    }
}
