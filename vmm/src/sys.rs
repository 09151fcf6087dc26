//! The few host calls that no crate wraps: kicking a vCPU out of the guest, the signals that end the program,
//! waiting for a stream without hanging on it, the terminal in raw mode.
#![allow(unsafe_code)]

mod clock;
mod identity;
mod interrupts;
mod kick;
pub(crate) mod terminal;
mod wait;

pub(crate) use clock::thread_cpu_time;
pub(crate) use identity::User;
pub use interrupts::{catch_interrupts, interrupted};
pub(crate) use kick::{KickTimer, Kicker, REPEAT, handle_kicks, with_kicks};
pub use terminal::RawTerminal;
pub(crate) use wait::{ATOMIC, wait_any, wait_readable, wait_writable, write};

use crate::error::Error;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

/// Handles a signal for the whole process, without restarting what it interrupts; `Err` is an errno.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> Result<(), i32> {
    // SAFETY: an all-zero sigaction is a valid one; the handlers of this file touch atomics, a thread-local
    // without a destructor, and system calls that are allowed in handlers.
    let answer = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

/// Has writes fail, instead of a signal end the program without a word: beyond a limit of file size (RLIMIT_FSIZE), and to
/// a reader who has gone.
pub fn prepare() {
    // SAFETY: plain settings of the process.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Whether standard output was closed when the program started. `/dev/null` is opened in its place before `main`, lest a
/// file of ours be taken for it, and what is printed would be lost without a word.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// When the program started, as soon as it could tell.
static STARTED: OnceLock<Instant> = OnceLock::new();

/// When the program started: after the kernel and the dynamic linker have had their part.
pub(crate) fn started() -> Instant {
    *STARTED.get_or_init(Instant::now)
}

extern "C" fn look_at_streams() {
    started();
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: plain system calls. What is opened takes the lowest number that is free, which is that of the stream.
        unsafe {
            if libc::fcntl(stream, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                STDOUT_WAS_CLOSED.fetch_or(stream == libc::STDOUT_FILENO, Ordering::Relaxed);
            }
        }
    }
}

// SAFETY: the loader calls what is in this section before `main`, in order; the function needs nothing that
// is not there by then.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK_AT_STREAMS: extern "C" fn() = look_at_streams;

/// Whether the program was started without a standard output.
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

/// The time-stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The descriptor of `owner`, whose type does not lend it itself.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: an owner keeps its descriptor open as long as it lives, which the result does not outlive.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// An event descriptor that nobody blocks on.
pub(crate) fn event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("eventfd"))
}

/// KVM_GET_STATS_FD, `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// A file with the counters of a VM or vCPU.
pub(crate) fn kvm_stats(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the call takes no argument and makes a new file descriptor.
    let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD) };
    if stats < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(stats) })
}
