//! Event descriptors (eventfd).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// The descriptor of `owner`, whose type does not lend it itself.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: an owner keeps its descriptor open as long as it lives, which the result does not outlive.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// An event descriptor that nobody blocks on.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// Writes to an event descriptor. The one way in which that fails is a full counter, which says as much.
pub(crate) fn signal(event: &EventFd) {
    let _ = event.write(1);
}
