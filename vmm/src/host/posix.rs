//! The counterparts of `linux.rs` for other Unix systems, such as macOS, with the calls of POSIX. The tests of this module
//! run on Linux too.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// A non-blocking event descriptor: a pair of connected sockets. Each unit of the counter is a byte on its way.
#[derive(Debug)]
pub struct EventFd {
    reader: UnixStream,
    writer: UnixStream,
}

impl EventFd {
    /// Adds `count` to the counter.
    ///
    /// # Errors
    /// The counter has reached its limit, some thousands. The event is then signalled.
    pub fn write(&self, count: u64) -> io::Result<()> {
        (0..count).try_for_each(|_| (&self.writer).write_all(&[0]))
    }

    /// Reads the counter, and sets it to 0.
    ///
    /// # Errors
    /// The counter is 0 (`WouldBlock`).
    pub fn read(&self) -> io::Result<u64> {
        let (mut count, mut bytes) = (0, [0; 64]);
        loop {
            match (&self.reader).read(&mut bytes) {
                Ok(read) if read == bytes.len() => count += read as u64,
                Ok(read) => return Ok(count + read as u64),
                Err(_) if count > 0 => return Ok(count),
                Err(error) => return Err(error),
            }
        }
    }

    /// Duplicates the descriptors. Both events share the counter.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { reader: self.reader.try_clone()?, writer: self.writer.try_clone()? })
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

/// Creates a non-blocking event descriptor.
///
/// # Errors
/// The host has no file descriptor left.
pub(crate) fn event() -> io::Result<EventFd> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    writer.set_nonblocking(true)?;
    Ok(EventFd { reader, writer })
}

/// A thread: its pthread_t, which is a number or a pointer.
pub(super) type ThreadId = usize;
/// A [`ThreadId`] that a signal handler may read. 0 is no thread.
pub(super) type AtomicThreadId = AtomicUsize;

/// The calling thread.
pub(super) fn thread_id() -> ThreadId {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::pthread_self() as ThreadId }
}

/// Sends a signal to a thread of this process. Allowed in a signal handler.
pub(super) fn send_signal(_process: libc::pid_t, thread: ThreadId, signal: libc::c_int) {
    // SAFETY: `thread_id` returned the thread. Its owner joins it only after the last kick; macOS also checks it.
    unsafe { libc::pthread_kill(thread as libc::pthread_t, signal) };
}

/// A timer of the kernel that sends a signal to one thread. POSIX has none: its timers send their signal to the process. A thread
/// watches the time instead.
#[derive(Debug)]
pub(super) enum Timer {}

impl Timer {
    /// # Errors
    /// Always.
    pub(super) fn of_this_thread(_signal: libc::c_int) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn set(&self, _after: Duration, _repeat: Duration) -> io::Result<()> {
        match *self {}
    }
}

/// Calls poll(2), and returns its result: the number of `fds` that are ready, 0 after the timeout, or -1. The timeout is
/// rounded up to milliseconds.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> libc::c_int {
    let millis = |limit: Duration| {
        libc::c_int::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    };
    // SAFETY: the entries are those of a slice.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout.map_or(-1, millis)) }
}

/// The metadata of a file that must exist. Does not open it.
///
/// # Errors
/// There is no such file, or its folder cannot be searched.
pub(crate) fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    fs::metadata(path)
}

/// The advice to use large pages. POSIX has none.
pub(crate) const LARGE_PAGES: Option<libc::c_int> = None;
/// The advice that pages may be merged with equal ones. POSIX has none.
pub(crate) const MERGE_PAGES: Option<libc::c_int> = None;

/// Fills a range of private, anonymous memory with zeroes: maps it anew, which also returns its pages to the host.
///
/// # Errors
/// The host refused.
///
/// # Safety
/// The range is a part of one such mapping and consists of whole pages, and there are no references into it.
pub(crate) unsafe fn clear_pages(start: *mut u8, len: usize) -> io::Result<()> {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED);
    // SAFETY: the caller promises that the range belongs to it. The call replaces it at once.
    match unsafe { libc::mmap(start.cast(), len, access, kind | libc::MAP_NORESERVE, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    fn is_readable(event: &EventFd, timeout: Duration) -> bool {
        let mut fds = [libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        poll(&mut fds, Some(timeout)) == 1
    }

    #[test]
    fn an_event_counts_its_signals_and_is_readable_until_they_are_read() {
        let event = event().unwrap();
        assert_eq!(event.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let start = Instant::now();
        assert!(!is_readable(&event, Duration::from_micros(1500)));
        assert!(start.elapsed() >= Duration::from_micros(1500));
        for count in [1, 64, 130] {
            event.try_clone().unwrap().write(count).unwrap();
            assert!(is_readable(&event, Duration::ZERO));
            assert_eq!(event.read().unwrap(), count);
            assert!(!is_readable(&event, Duration::ZERO));
        }
        assert_eq!(event.write(u64::MAX).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(is_readable(&event, Duration::ZERO) && event.read().is_ok() && event.read().is_err());
    }

    #[test]
    fn cleared_pages_are_zero_and_their_neighbours_are_not() {
        const PAGE: usize = 64 << 10;
        // SAFETY: the mapping is this test's own, and is written only through its pointer.
        unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
            let start = libc::mmap(std::ptr::null_mut(), 2 * PAGE, access, kind, -1, 0).cast::<u8>();
            start.write_bytes(7, 2 * PAGE);
            clear_pages(start, PAGE).unwrap();
            assert_eq!([0, PAGE - 1, PAGE].map(|at| start.add(at).read()), [0, 0, 7]);
            libc::munmap(start.cast(), 2 * PAGE);
        }
    }

    #[test]
    fn a_kick_interrupts_the_thread_it_names() {
        super::super::handle_kicks().unwrap();
        let thread = thread_id();
        let kicks = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            send_signal(0, thread, super::super::kicker::KICK);
        });
        let start = Instant::now();
        assert_eq!(poll(&mut [], Some(Duration::from_secs(30))), -1);
        assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::Interrupted);
        assert!(start.elapsed() < Duration::from_secs(20));
        kicks.join().unwrap();
    }
}
