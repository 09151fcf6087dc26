//! Waits for file descriptors with a time limit.

use super::os;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until `fd` can be read without blocking, which includes the end of its data. Waits for at most `timeout`, or
/// without limit for `None`. Returns true if it can be read, and false after the timeout or a signal.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, libc::POLLIN, timeout)
}

/// Waits until [`ATOMIC`] bytes can be written to `fd` without blocking. The time limit and the result are as for
/// [`wait_readable`].
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, libc::POLLOUT, timeout)
}

/// Waits until one of `fds` can be read, with a time limit as for [`wait_readable`]. Returns for each of them true if
/// it can be read. The result for `None` is false.
pub(crate) fn wait_any<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd {
        // The kernel ignores entries with negative descriptors.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    poll(&mut polls, timeout)?;
    Ok(polls.map(|poll| poll.revents != 0))
}

/// The number of bytes that a writable pipe accepts without blocking: PIPE_BUF.
pub(crate) const ATOMIC: usize = 4096;

/// Calls write(2) once. A signal interrupts it.
pub(crate) fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice.
    let written = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn wait_for(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Option<Duration>) -> io::Result<bool> {
    poll(&mut [libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }], timeout)
}

/// Returns true if one of `fds` is ready, and false after the timeout or a signal.
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<bool> {
    match os::poll(fds, timeout) {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}
