//! Signals that ask the program to end: the first one ends the machine with its report, and a second one ends the
//! program at once.

use crate::host::kicker::Kicker;
use crate::host::os::AtomicThreadId;
use crate::host::{REPEAT, handle, terminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{mem, ptr};

/// Set by the first signal of [`catch_interrupts`].
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The threads to kick on such a signal: those that run vCPUs. 0 is a free entry.
pub(super) static INTERRUPTIBLE: [AtomicThreadId; 64] = [const { AtomicThreadId::new(0) }; 64];
/// The exit status after a second signal.
const STATUS_INTERRUPTED: libc::c_int = 117;

/// True after a signal that asks the program to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The handler of the signals of [`catch_interrupts`].
extern "C" fn on_interrupt(_: libc::c_int) {
    if INTERRUPTED.swap(true, Ordering::Relaxed) {
        terminal::close_panel();
        terminal::restore();
        // SAFETY: allowed in a handler. It runs no further code of this program.
        unsafe { libc::_exit(STATUS_INTERRUPTED) }
    }
    // Repeat the kick with a timer (SIGALRM): the thread may be about to enter a blocking write.
    let again = libc::timeval { tv_sec: 0, tv_usec: REPEAT.as_micros() as libc::suseconds_t };
    let setting = libc::itimerval { it_interval: again, it_value: again };
    // SAFETY: a system call that is allowed in handlers. The setting outlives it.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &setting, ptr::null_mut()) };
    kick_interruptible(0);
}

/// Kicks all threads in [`INTERRUPTIBLE`]. The handler of SIGALRM.
extern "C" fn kick_interruptible(_: libc::c_int) {
    // SAFETY: allowed in a handler.
    let process = unsafe { libc::getpid() };
    for thread in INTERRUPTIBLE.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|thread| *thread != 0)
    {
        Kicker { process, thread }.kick();
    }
}

/// Handles SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGXCPU (a limit of CPU time): the first signal ends the run with its
/// report ([`interrupted`]), and a second one ends the program at once with status 117. Signals that the program was
/// started with as ignored stay ignored. Also uses SIGALRM. For programs that run one machine at a time.
pub fn catch_interrupts() {
    if handle(libc::SIGALRM, kick_interruptible).is_err() {
        log::warn!("cannot handle SIGALRM: a first signal to end the program may be ignored");
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU] {
        // `nohup` and background jobs of shells ignore signals on purpose.
        // SAFETY: with a null action the call only fills `before`.
        let ignored = unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut before) == 0 && before.sa_sigaction == libc::SIG_IGN
        };
        if !ignored && handle(signal, on_interrupt).is_err() {
            log::warn!("cannot handle signal {signal}: it will end the program without a report");
        }
    }
}
