//! Event descriptors (eventfd).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// Borrows the descriptor of `owner`, for types that do not implement `AsFd`.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps its descriptor open while it lives, and the result does not outlive the owner.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Creates a non-blocking event descriptor.
///
/// # Errors
/// The host has no file descriptor left.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// Signals an event descriptor. The write fails only if the counter is full, and then the event is already signalled.
pub(crate) fn signal(event: &EventFd) {
    let _ = event.write(1);
}
