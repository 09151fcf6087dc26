//! Event descriptors.

use super::EventFd;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Borrows the descriptor of `owner`, for types that do not implement `AsFd`.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps its descriptor open while it lives, and the result does not outlive the owner.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Signals an event descriptor. The write fails only if the counter is full, and then the event is already signalled.
pub(crate) fn signal(event: &EventFd) {
    let _ = event.write(1);
}
