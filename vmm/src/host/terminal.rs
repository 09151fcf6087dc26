//! The terminal in raw mode, so that each key goes to the guest, and back to what it was on every way out.

use crate::host::handle;
use std::mem::{self, MaybeUninit};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, ptr};

/// What the terminal was before. Signal handlers read it.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// Its raw mode.
static MODE: OnceLock<libc::termios> = OnceLock::new();
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
        // SAFETY: it takes a valid structure.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag = output;
        let raw = MODE.get_or_init(|| raw);
        // A shell that has stopped this program has its own mode, and leaves it behind.
        handle(libc::SIGCONT, on_continue).map_err(io::Error::from_raw_os_error)?;
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: it takes a valid structure; a signal handler that restores the mode finds the old one above.
        let answer = unsafe { libc::tcsetattr(fd, libc::TCSANOW, raw) };
        if answer == 0 { Ok(Self(())) } else { Err(io::Error::last_os_error()) }
    }
}

/// The program goes on after it was stopped: raw again, where the terminal is its own.
extern "C" fn on_continue(_: libc::c_int) {
    if let Some(raw) = MODE.get().filter(|_| RAW.load(Ordering::SeqCst)) {
        // SAFETY: calls that handlers may make, on a structure that `enter` has filled.
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

/// Makes the terminal what it was. Allowed in a signal handler.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.get().filter(|_| RAW.swap(false, Ordering::SeqCst)) {
        // SAFETY: the structures are filled, one of them by `enter`; the calls are ones that handlers may make. A
        // program in the background would be stopped for it (SIGTTOU), instead of ending.
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
