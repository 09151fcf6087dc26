//! The terminal of standard input: its raw mode, in which each key goes to the guest, its size, and job control. Every way to
//! end or to stop the program restores the earlier mode.
//!
//! Only a job in the foreground may set a terminal or read it: the kernel stops a job in the background that tries
//! (SIGTTOU, SIGTTIN; POSIX, "Terminal Access Control").

use super::EventFd;
use crate::host::{event, handle};
use std::mem::{self, MaybeUninit};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::{io, ptr};

/// The earlier mode of the terminal. Signal handlers read it.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// Set from [`RawTerminal::enter`] to [`restore`]: the terminal is in raw mode while this program is in the foreground.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Set while the terminal is in raw mode.
static RAW: AtomicBool = AtomicBool::new(false);
/// Set from SIGTSTP to SIGCONT: the terminal belongs to the shell.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// The number of threads that change the terminal at this moment.
static BUSY: AtomicU32 = AtomicU32::new(0);
/// The longest time that a signal handler waits for them, in milliseconds.
const MAX_BUSY: u32 = 100;
/// Set while a panel covers a part of the terminal of standard output.
static PANEL: AtomicBool = AtomicBool::new(false);
/// Gives the whole terminal back to text, with the cursor in a new line at its end.
const CLOSE_PANEL: &[u8] = b"\x1b[r\x1b[9999;1H\x1b[0m\x1b[?25h\r\n";
/// Signalled when the size of the terminal may have changed, and after a stop.
static CHANGED: OnceLock<EventFd> = OnceLock::new();

/// Keeps the terminal of standard input in raw mode until it is dropped or a signal ends the program. In the background, the
/// terminal stays as it is until the program comes to the foreground.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches the terminal to raw mode. The settings of its output stay unchanged, because other programs also print
    /// there.
    ///
    /// # Errors
    /// Standard input is not a terminal.
    pub fn enter() -> io::Result<Self> {
        mode()?;
        let changed = event()?;
        CHANGED.get_or_init(|| changed);
        // After a stop the shell leaves its own mode behind.
        for (signal, handler) in [
            (libc::SIGCONT, on_continue as extern "C" fn(libc::c_int)),
            (libc::SIGTSTP, on_stop),
            (libc::SIGWINCH, on_change),
        ] {
            handle(signal, handler).map_err(io::Error::from_raw_os_error)?;
        }
        WANTED.store(true, Ordering::SeqCst);
        refresh()?;
        Ok(Self(()))
    }
}

/// The mode of the terminal.
fn mode() -> io::Result<libc::termios> {
    let mut now = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the structure is used only if the call filled it.
    unsafe {
        match libc::tcgetattr(libc::STDIN_FILENO, now.as_mut_ptr()) {
            0 => Ok(now.assume_init()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Switches the terminal to raw mode, if this program has come to the foreground and has not done so yet.
///
/// # Errors
/// The terminal is gone.
pub(crate) fn refresh() -> io::Result<()> {
    let is_wanted = || WANTED.load(Ordering::SeqCst) && !STOPPING.load(Ordering::SeqCst);
    if !is_wanted() || RAW.load(Ordering::SeqCst) || !is_in_foreground() {
        return Ok(());
    }
    let mut raw = mode()?;
    BEFORE.get_or_init(|| raw);
    let output = raw.c_oflag;
    // SAFETY: the structure is valid.
    unsafe { libc::cfmakeraw(&mut raw) };
    raw.c_oflag = output;
    // A thread that restores the terminal from here on waits for the new mode.
    let _busy = Busy::new();
    if !is_wanted() {
        return Ok(());
    }
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: the structure is valid. The earlier mode is stored above, so a signal handler can restore it.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// While it lives, the thread that created it changes the terminal. No signal handler that gives the terminal back runs on it
/// meanwhile, and those on other threads wait for its end.
struct Busy(libc::sigset_t);

impl Busy {
    fn new() -> Self {
        // SAFETY: all-zero sets are valid, and both outlive the calls.
        let before = unsafe {
            let (mut held, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
            libc::sigemptyset(&mut held);
            for signal in [libc::SIGTSTP, libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                libc::sigaddset(&mut held, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &held, &mut before);
            before
        };
        BUSY.fetch_add(1, Ordering::SeqCst);
        Self(before)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
        // SAFETY: the set is that of the thread before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

/// Waits until no other thread changes the terminal, but not for long: it may hang. Allowed in a signal handler.
fn wait_for_others() {
    for _ in 0..MAX_BUSY {
        if BUSY.load(Ordering::SeqCst) == 0 {
            return;
        }
        // SAFETY: there are no descriptors. The call is allowed in handlers.
        unsafe { libc::poll(ptr::null_mut(), 0, 1) };
    }
}

/// True unless the terminal belongs to another job. Also true if it is not the terminal of this session, which has no jobs
/// then. Allowed in a signal handler.
fn is_in_foreground() -> bool {
    // SAFETY: both calls take no pointer.
    let (terminal, own) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    terminal < 0 || terminal == own
}

/// True if reading standard input does not stop this program.
pub(crate) fn may_read() -> bool {
    !WANTED.load(Ordering::SeqCst) || is_in_foreground()
}

/// The event that is signalled when the size of the terminal may have changed, and after a stop. `None` before
/// [`RawTerminal::enter`].
pub(crate) fn changed() -> Option<&'static EventFd> {
    CHANGED.get()
}

/// The columns and the rows of the terminal of standard input. `None` if there is none, or if it does not know them.
pub(crate) fn size() -> Option<(u16, u16)> {
    size_of(libc::STDIN_FILENO)
}

/// The columns and the rows of the terminal of standard output, as those of [`size`].
pub(crate) fn output_size() -> Option<(u16, u16)> {
    size_of(libc::STDOUT_FILENO)
}

/// The number of columns of the terminal of standard error; `None` if it is no terminal, or does not know its size.
pub fn terminal_width() -> Option<usize> {
    size_of(libc::STDERR_FILENO).map(|(columns, _)| usize::from(columns))
}

fn size_of(descriptor: libc::c_int) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: the structure is used only if the call filled it.
    let size = unsafe {
        match libc::ioctl(descriptor, libc::TIOCGWINSZ, size.as_mut_ptr()) {
            0 => size.assume_init(),
            _ => return None,
        }
    };
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Notes if a panel covers a part of the terminal of standard output.
pub(crate) fn panel_is_open(is_open: bool) {
    PANEL.store(is_open, Ordering::SeqCst);
}

/// Draws a panel, unless this program is about to stop. `draw` gets true if the panel was closed since the last drawing.
pub(crate) fn draw_panel<R>(draw: impl FnOnce(bool) -> R) -> Option<R> {
    let _busy = Busy::new();
    let is_stopping = STOPPING.load(Ordering::SeqCst);
    (!is_stopping).then(|| draw(!PANEL.load(Ordering::SeqCst)))
}

/// Gives the whole terminal back to text if a panel is open. Allowed in a signal handler.
pub(crate) fn close_panel() {
    wait_for_others();
    if PANEL.swap(false, Ordering::SeqCst) {
        // SAFETY: the pointer and the length are those of a constant. The call is allowed in handlers.
        unsafe { libc::write(libc::STDOUT_FILENO, CLOSE_PANEL.as_ptr().cast(), CLOSE_PANEL.len()) };
    }
}

/// The handler of SIGWINCH.
extern "C" fn on_change(_: libc::c_int) {
    let _ = CHANGED.get().map(|changed| changed.write(1));
}

/// The handler of SIGCONT, which comes after a stop. The shell has set its own mode; the thread that reads the keys wakes up, and
/// sets the raw mode again if this program is in the foreground.
extern "C" fn on_continue(signal: libc::c_int) {
    RAW.store(false, Ordering::SeqCst);
    STOPPING.store(false, Ordering::SeqCst);
    on_change(signal);
}

/// The handler of SIGTSTP: gives the terminal to the shell, and stops. From here to SIGCONT no thread changes the terminal.
extern "C" fn on_stop(_: libc::c_int) {
    STOPPING.store(true, Ordering::SeqCst);
    close_panel();
    leave();
    // SAFETY: the calls take no pointer, and are allowed in handlers.
    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the earlier mode of the terminal for good. Allowed in a signal handler.
pub fn restore() {
    WANTED.store(false, Ordering::SeqCst);
    leave();
}

/// Restores the earlier mode of the terminal, unless it belongs to another job by now. Allowed in a signal handler.
fn leave() {
    wait_for_others();
    if let Some(before) = BEFORE.get().filter(|_| RAW.swap(false, Ordering::SeqCst) && is_in_foreground()) {
        // SIGTTOU is blocked, because it would stop a program that has just lost the foreground.
        // SAFETY: all structures are valid, `refresh` has filled `before`, and the calls are allowed in handlers.
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
