//! The raw mode of the terminal, in which each key goes to the guest. Every way to end the program restores the earlier
//! mode.

use crate::host::handle;
use std::mem::{self, MaybeUninit};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, ptr};

/// The earlier mode of the terminal. Signal handlers read it.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// The raw mode of the terminal. Signal handlers read it.
static MODE: OnceLock<libc::termios> = OnceLock::new();
/// Set while the terminal is in raw mode.
static RAW: AtomicBool = AtomicBool::new(false);

/// Set while a panel covers a part of the terminal of standard output.
static PANEL: AtomicBool = AtomicBool::new(false);
/// Gives the whole terminal back to text, with the cursor in a new line at its end.
const CLOSE_PANEL: &[u8] = b"\x1b[r\x1b[9999;1H\x1b[0m\x1b[?25h\r\n";

/// Keeps the terminal of standard input in raw mode until it is dropped or a signal ends the program.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches the terminal to raw mode. The settings of its output stay unchanged, because other programs also print
    /// there.
    ///
    /// # Errors
    /// Standard input is not a terminal.
    pub fn enter() -> io::Result<Self> {
        let fd = libc::STDIN_FILENO;
        let mut now = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the structure is used only if the call filled it.
        let mut raw = unsafe {
            if libc::tcgetattr(fd, now.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            now.assume_init()
        };
        BEFORE.get_or_init(|| raw);
        let output = raw.c_oflag;
        // SAFETY: the structure is valid.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag = output;
        let raw = MODE.get_or_init(|| raw);
        // After a stop the shell leaves its own mode behind.
        handle(libc::SIGCONT, on_continue).map_err(io::Error::from_raw_os_error)?;
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: the structure is valid. The earlier mode is stored above, so a signal handler can restore it.
        let answer = unsafe { libc::tcsetattr(fd, libc::TCSANOW, raw) };
        if answer == 0 { Ok(Self(())) } else { Err(io::Error::last_os_error()) }
    }
}

/// The number of columns of the terminal of standard error; `None` if it is no terminal, or does not know its size.
pub fn terminal_width() -> Option<usize> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the kernel fills the structure, and zeroes are valid, too.
    let size = unsafe {
        if libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The handler of SIGCONT, which comes after a stop: sets the raw mode again if this program is in the foreground.
extern "C" fn on_continue(_: libc::c_int) {
    if let Some(raw) = MODE.get().filter(|_| RAW.load(Ordering::SeqCst)) {
        // SAFETY: the calls are allowed in handlers, and `enter` has filled the structure.
        unsafe {
            if libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() {
                libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, raw);
            }
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// The rows and columns of the terminal of standard output. `None` if it is none, or does not know its size.
pub(crate) fn size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the structure is valid also if the call does not fill it.
    let size = unsafe {
        if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    (size.ws_row != 0 && size.ws_col != 0).then_some((size.ws_row, size.ws_col))
}

/// Notes if a panel covers a part of the terminal of standard output.
pub(crate) fn panel_is_open(is_open: bool) {
    PANEL.store(is_open, Ordering::SeqCst);
}

/// Gives the whole terminal back to text if a panel is open. Allowed in a signal handler.
pub(crate) fn close_panel() {
    if PANEL.swap(false, Ordering::SeqCst) {
        // SAFETY: the pointer and the length are those of a constant. The call is allowed in handlers.
        unsafe { libc::write(libc::STDOUT_FILENO, CLOSE_PANEL.as_ptr().cast(), CLOSE_PANEL.len()) };
    }
}

/// Restores the earlier mode of the terminal. Allowed in a signal handler.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.get().filter(|_| RAW.swap(false, Ordering::SeqCst)) {
        // SIGTTOU is blocked, because it would stop a program in the background instead of letting it end.
        // SAFETY: all structures are valid, `enter` has filled `before`, and the calls are allowed in handlers.
        unsafe {
            let (mut stop, mut mask): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
            libc::sigemptyset(&mut stop);
            libc::sigaddset(&mut stop, libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, &stop, &mut mask);
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before);
            libc::pthread_sigmask(libc::SIG_SETMASK, &mask, ptr::null_mut());
        }
    }
}
