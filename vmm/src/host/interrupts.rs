//! Signals that ask the program to end: the machine ends in an orderly way, and a second one ends the program.

use crate::host::kicker::Kicker;
use crate::host::{REPEAT, handle, terminal};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::{mem, ptr};

/// Whether one of [`catch_interrupts`]'s signals has come.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The threads that such a signal kicks, or 0: those that run vCPUs.
pub(super) static INTERRUPTIBLE: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];
/// Status of a program that is interrupted twice, and so ends at once.
const TWICE: libc::c_int = 117;

/// Whether somebody has asked the program to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn on_interrupt(_: libc::c_int) {
    if INTERRUPTED.swap(true, Ordering::Relaxed) {
        terminal::restore();
        // SAFETY: allowed in a handler; nothing of this program is left to run.
        unsafe { libc::_exit(TWICE) }
    }
    // One kick is not enough: the thread may be about to enter a write that blocks.
    let again = libc::timeval { tv_sec: 0, tv_usec: REPEAT.as_micros() as libc::suseconds_t };
    let setting = libc::itimerval { it_interval: again, it_value: again };
    // SAFETY: a plain system call; the setting outlives it.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &setting, ptr::null_mut()) };
    kick_interruptible(0);
}

extern "C" fn kick_interruptible(_: libc::c_int) {
    // SAFETY: allowed in a handler.
    let process = unsafe { libc::getpid() };
    for thread in INTERRUPTIBLE.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|thread| *thread != 0)
    {
        Kicker { process, thread }.kick();
    }
}

/// For a program that runs one machine at a time: SIGINT, SIGTERM, SIGHUP and SIGQUIT end the run in an orderly way,
/// with its report, and a second one ends the program at once. The same goes for SIGXCPU, of a limit of CPU
/// time.
pub fn catch_interrupts() {
    if handle(libc::SIGALRM, kick_interruptible).is_err() {
        log::warn!("SIGALRM cannot be handled, so a first interruption may go unheard");
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU] {
        // SAFETY: `nohup` and a shell's background jobs ignore signals on purpose; the query changes nothing.
        let ignored = unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut before) == 0 && before.sa_sigaction == libc::SIG_IGN
        };
        if !ignored && handle(signal, on_interrupt).is_err() {
            log::warn!("signal {signal} cannot be handled, and will end the program without a report");
        }
    }
}
