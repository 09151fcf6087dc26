//! The start of the process: its signals, its standard streams and its time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Ignores SIGXFSZ and SIGPIPE, so that a write beyond a limit of file size (RLIMIT_FSIZE) or to a closed pipe fails
/// with an error. Otherwise the signal would end the program without a message.
pub fn prepare() {
    for (signal, was_ignored) in &IGNORED {
        // SAFETY: the call only sets the disposition of a signal.
        let before = unsafe { libc::signal(*signal, libc::SIG_IGN) };
        was_ignored.store(before == libc::SIG_IGN, Ordering::Relaxed);
    }
}

/// The signals that [`prepare`] ignores. Each is true if it was ignored before.
static IGNORED: [(libc::c_int, AtomicBool); 2] =
    [(libc::SIGXFSZ, AtomicBool::new(false)), (libc::SIGPIPE, AtomicBool::new(false))];

/// Undoes [`prepare`], for a child process before it executes another program. The function may be called between `fork`
/// and `exec`.
pub fn unprepare() {
    for (signal, was_ignored) in &IGNORED {
        let before = if was_ignored.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: the call only sets the disposition of a signal.
        unsafe { libc::signal(*signal, before) };
    }
}

/// Set if standard output was closed when the program started. `/dev/null` is opened instead before `main`, because the
/// next file that the program opens would otherwise become standard output. The caller must check this, because the
/// output would be lost without an error.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The time of the first call of [`started`].
static STARTED: OnceLock<Instant> = OnceLock::new();

/// The time at which the program started, after the kernel and the dynamic linker have loaded it.
pub(crate) fn started() -> Instant {
    *STARTED.get_or_init(Instant::now)
}

/// Records the time, and opens `/dev/null` for each closed standard stream. Runs before `main`, because Rust's runtime
/// also opens `/dev/null` for closed streams.
extern "C" fn check_streams() {
    started();
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: the calls take no memory of this program, except a valid path. `open` takes the lowest free number,
        // which is the one of the stream.
        unsafe {
            if libc::fcntl(stream, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                STDOUT_WAS_CLOSED.fetch_or(stream == libc::STDOUT_FILENO, Ordering::Relaxed);
            }
        }
    }
}

// SAFETY: the loader calls the functions of this section before `main`. This function needs nothing that is initialised
// later.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static CHECK_STREAMS: extern "C" fn() = check_streams;

/// True if standard output was closed when the program started.
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}
