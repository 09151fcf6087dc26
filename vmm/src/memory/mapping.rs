//! The host's memory behind a slot.

use std::io;
use std::ptr;

/// Size and alignment of a large page, in bytes. Where a guest's large page is one of the host's as well, the host
/// needs one fault for it instead of 512.
pub(super) const LARGE_PAGE: usize = 2 << 20;

/// Anonymous memory of the host's, zeroed. A large one begins at a large page.
#[derive(Debug)]
pub(super) struct Mapping {
    /// All that was mapped.
    whole: *mut libc::c_void,
    length: usize,
    /// Where its use begins.
    pub(super) start: *mut u8,
}

// SAFETY: the addresses are only those of memory, which any thread may use.
unsafe impl Send for Mapping {}
// SAFETY: see above; nothing is changed through a shared one.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let slack = if size >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let length = size.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let whole = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = whole.cast::<u8>();
        let gap = if slack == 0 { 0 } else { start.align_offset(LARGE_PAGE).min(slack) };
        // SAFETY: the gap is at most the slack, so this is within the mapping.
        Ok(Self { whole, length, start: unsafe { start.add(gap) } })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and whoever drops this uses it no more.
        unsafe { libc::munmap(self.whole, self.length) };
    }
}
