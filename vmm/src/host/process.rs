//! The process: its signals and standard streams at the start, and the time of its start.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
