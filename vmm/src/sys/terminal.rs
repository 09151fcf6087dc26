//! The terminal in raw mode, so that each key goes to the guest, and back to what it was on every way out.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the terminal was before. Signal handlers read it.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// Whether it is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// The terminal behind standard input in raw mode, until this is dropped or a signal ends the program.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes it raw. Its output still ends lines as before, since others print there, too.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let fd = libc::STDIN_FILENO;
        let mut now = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the call fills the structure, or fails.
        let mut raw = unsafe {
            if libc::tcgetattr(fd, now.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            now.assume_init()
        };
        BEFORE.get_or_init(|| raw);
        let output = raw.c_oflag;
        // SAFETY: both take a valid structure; a signal handler that restores the mode finds the old one above.
        let answer = unsafe {
            libc::cfmakeraw(&mut raw);
            raw.c_oflag = output;
            RAW.store(true, Ordering::SeqCst);
            libc::tcsetattr(fd, libc::TCSANOW, &raw)
        };
        if answer == 0 { Ok(Self(())) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was. Allowed in a signal handler.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.get().filter(|_| RAW.swap(false, Ordering::SeqCst)) {
        // SAFETY: the structure was filled by `enter`; the call is one that handlers may make.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}
