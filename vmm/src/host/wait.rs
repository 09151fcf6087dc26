//! Waiting for file descriptors without hanging on them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

pub(super) fn timespec(duration: Duration) -> libc::timespec {
    let tv_sec = libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

/// Waits until something can be read from `fd`, or its end was reached: for `patience` at most, or without
/// end. Returns whether that came; a signal ends the wait, too.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, libc::POLLIN, patience)
}

/// Waits until [`ATOMIC`] bytes can be written to `fd` without blocking, as above.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, libc::POLLOUT, patience)
}

/// Waits until something can be read from one of `fds`, as above, and says from which. Places without one stay
/// silent.
pub(crate) fn wait_any<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    patience: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd {
        // The kernel passes over negative ones.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    poll(&mut polls, patience)?;
    Ok(polls.map(|poll| poll.revents != 0))
}

/// What a pipe that is writable takes without blocking, in bytes: PIPE_BUF.
pub(crate) const ATOMIC: usize = 4096;

/// One `write`, which a signal interrupts.
pub(crate) fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are there, as many as is said.
    let written = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn wait_for(fd: BorrowedFd<'_>, events: libc::c_short, patience: Option<Duration>) -> io::Result<bool> {
    poll(&mut [libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }], patience)
}

/// Whether one of `fds` is ready; a signal ends the wait.
fn poll(fds: &mut [libc::pollfd], patience: Option<Duration>) -> io::Result<bool> {
    let patience = patience.map(timespec);
    let limit = patience.as_ref().map_or(ptr::null(), |limit| &raw const *limit);
    // SAFETY: valid entries, as many as is said, and a time that is null or outlives the call.
    match unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, ptr::null()) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_time_is_still_a_timespec() {
        assert_eq!(timespec(Duration::MAX).tv_sec, libc::time_t::MAX);
    }
}
