//! The host memory behind a slot.

use std::io;
use std::ptr;

/// The size and alignment of a large page, in bytes. If the large pages of guest and host coincide, the host needs one
/// page fault for each instead of 512.
pub(super) const LARGE_PAGE: usize = 2 << 20;

/// A mapping of anonymous, zeroed host memory. A mapping of at least [`LARGE_PAGE`] begins at a large page.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The start of the mapping.
    whole: *mut libc::c_void,
    /// The length of the mapping in bytes.
    length: usize,
    /// The start of the usable part.
    pub(super) start: *mut u8,
}

// SAFETY: the pointers only hold addresses of memory that every thread may use.
unsafe impl Send for Mapping {}
// SAFETY: see above; a shared reference changes nothing.
unsafe impl Sync for Mapping {}

/// Swap is not reserved for memory that the guest does not touch. Miri does not know the flag.
const NO_RESERVE: libc::c_int = if cfg!(miri) { 0 } else { libc::MAP_NORESERVE };

impl Mapping {
    /// Maps memory with `size` usable bytes.
    ///
    /// # Errors
    /// The host does not have enough address space.
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let slack = if size >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let length = size.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let whole = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | NO_RESERVE,
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
        // SAFETY: `new` made the mapping, and the owner that drops it does not use it any more.
        unsafe { libc::munmap(self.whole, self.length) };
    }
}
