//! Kicking a vCPU out of the guest, or a thread out of a call that blocks: by a signal, at once or by a timer.
//!
//! A vCPU leaves the guest at a signal, and stays out if `immediate_exit` is set when KVM_RUN is entered
//! (`Documentation/virt/kvm/api.rst`, "immediate_exit"). The signal's handler therefore sets that byte of
//! the vCPU that its thread runs: a kick that comes between two KVM_RUNs is not lost. A timer whose signal
//! goes to the thread needs no second thread; it repeats until the vCPU is out.

use crate::host::handle;
use crate::host::interrupts::{INTERRUPTIBLE, interrupted};
use crate::host::kicker::{KICK, Kicker, REPEAT, thread_id};
use crate::host::wait::timespec;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{io, mem, ptr, thread};

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

extern "C" fn on_kick(_: libc::c_int) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: a thread's pointer is set only while the byte is mapped (`with_kicks`), and the handler
        // runs on that thread.
        unsafe { (*immediate_exit).store(1, Ordering::Relaxed) }
    }
}

/// Sees that a kick of a thread that runs no vCPU only interrupts what it waits for.
pub(crate) fn handle_kicks() -> io::Result<()> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    (*HANDLER.get_or_init(|| handle(KICK, on_kick))).map_err(io::Error::from_raw_os_error)
}

/// Runs `body` with kicks of the calling thread going to `immediate_exit`.
///
/// # Safety
/// `immediate_exit` stays mapped until `body` has returned.
pub(crate) unsafe fn with_kicks<R>(
    immediate_exit: *const AtomicU8,
    body: impl FnOnce(Kicker) -> R,
) -> io::Result<R> {
    struct Reset(*const AtomicU8);
    impl Drop for Reset {
        fn drop(&mut self) {
            IMMEDIATE_EXIT.set(self.0);
        }
    }
    handle_kicks()?;
    let _unblocked = Unblocked::new()?;
    let kicker = Kicker::of_this_thread();
    let _reset = Reset(IMMEDIATE_EXIT.replace(immediate_exit));
    let _interruptible = Interruptible::new(kicker);
    Ok(body(kicker))
}

/// While it lives, an interruption of the program kicks the thread that made it. Of more threads than there
/// are places some are not kicked; the others see to the end.
#[derive(Debug)]
struct Interruptible(Option<&'static AtomicI32>);

impl Interruptible {
    /// Of the calling thread, whose kicks are handled and go to `kicker`.
    fn new(kicker: Kicker) -> Self {
        let take = |slot: &&AtomicI32| {
            slot.compare_exchange(0, kicker.thread, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        let slot = INTERRUPTIBLE.iter().find(take);
        if interrupted() {
            kicker.kick();
        }
        Self(slot)
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

/// The calling thread with the kick signal unblocked, whatever mask it was started with.
struct Unblocked(libc::sigset_t);

impl Unblocked {
    fn new() -> io::Result<Self> {
        // SAFETY: all-zero sets are valid, and both outlive the calls.
        unsafe {
            let (mut kick, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
            libc::sigemptyset(&mut kick);
            libc::sigaddset(&mut kick, KICK);
            match libc::pthread_sigmask(libc::SIG_UNBLOCK, &kick, &mut before) {
                0 => Ok(Self(before)),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for Unblocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled by `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

/// Kicks the calling thread when a time has passed, and then again every [`REPEAT`] until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct KickTimer {
    thread: libc::pid_t,
    source: TimerSource,
}

#[derive(Debug)]
enum TimerSource {
    /// A timer of the kernel.
    Timer(libc::timer_t),
    /// A thread, if the user's quota leaves no timer. It ends when the sender is dropped.
    Thread(#[allow(dead_code, reason = "the thread waits for the end of the sender")] Option<Sender<()>>),
}

// SAFETY: the kernel's timers belong to the process, and any of its threads may set or delete one.
unsafe impl Send for KickTimer {}

impl KickTimer {
    /// Starts the timer for the calling thread, whose kicks are handled ([`with_kicks`]). A duration of zero counts as a
    /// nanosecond.
    ///
    /// # Errors
    /// The host has neither a timer nor a thread left.
    pub(crate) fn start(after: Duration) -> io::Result<Self> {
        Self::timer(after).or_else(|error| {
            log::info!("no timer left ({error}); a thread watches the time instead");
            Self::thread(after)
        })
    }

    /// Starts the timer of an earlier run again, which saves two system calls, or a new one if there is none for the
    /// calling thread.
    ///
    /// # Errors
    /// The host has neither a timer nor a thread left.
    pub(crate) fn restart(earlier: &mut Option<Self>, after: Duration) -> io::Result<()> {
        match earlier {
            Some(Self { thread, source: TimerSource::Timer(timer) }) if *thread == thread_id() => {
                set_timer(*timer, after.max(Duration::from_nanos(1)), REPEAT)
            }
            _ => {
                // The old one is dropped first, so that its place in the user's quota is free.
                *earlier = None;
                *earlier = Some(Self::start(after)?);
                Ok(())
            }
        }
    }

    /// Stops the timer until it is restarted. A signal that it has queued finds no vCPU.
    pub(crate) fn stop(&mut self) {
        match &mut self.source {
            TimerSource::Timer(timer) => drop(set_timer(*timer, Duration::ZERO, Duration::ZERO)),
            TimerSource::Thread(sender) => *sender = None,
        }
    }

    fn timer(after: Duration) -> io::Result<Self> {
        let thread = thread_id();
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: an all-zero sigevent is a valid one; the signal goes to a thread of this process, by number.
        let answer = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = KICK;
            event.sigev_notify_thread_id = thread;
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        let started = Self { thread, source: TimerSource::Timer(timer) };
        set_timer(timer, after.max(Duration::from_nanos(1)), REPEAT)?;
        Ok(started)
    }

    fn thread(after: Duration) -> io::Result<Self> {
        let kicker = Kicker::of_this_thread();
        let (sender, ended) = mpsc::channel();
        let body = move || {
            let mut pause = after;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
                pause = REPEAT;
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(body)?;
        Ok(Self { thread: kicker.thread, source: TimerSource::Thread(Some(sender)) })
    }
}

/// Sets a timer of the kernel, or stops it if `after` is zero.
fn set_timer(timer: libc::timer_t, after: Duration, repeat: Duration) -> io::Result<()> {
    let setting = libc::itimerspec { it_value: timespec(after), it_interval: timespec(repeat) };
    // SAFETY: the timer exists as long as its `KickTimer`, and the setting outlives the call.
    match unsafe { libc::timer_settime(timer, 0, &setting, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        if let TimerSource::Timer(timer) = self.source {
            // SAFETY: the timer was created by `timer`, and is deleted once. A signal that it has queued finds no vCPU.
            unsafe { libc::timer_delete(timer) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Waits until `condition` holds, for five seconds at most.
    fn soon(condition: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if condition() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }

    #[test]
    fn a_kick_from_another_thread_sets_the_byte() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call.
        let kicked = unsafe {
            with_kicks(&byte, |kicker| {
                thread::spawn(move || kicker.kick());
                soon(|| byte.load(Ordering::Relaxed) == 1)
            })
        };
        assert!(kicked.unwrap());
    }

    #[test]
    fn a_timer_kicks_again_and_again() {
        for start in [KickTimer::timer, KickTimer::thread] {
            let byte = AtomicU8::new(0);
            // SAFETY: `byte` outlives the call.
            let kicked = unsafe {
                with_kicks(&byte, |_| {
                    let _timer = start(Duration::ZERO).unwrap();
                    let again = || soon(|| byte.swap(0, Ordering::Relaxed) == 1);
                    again() && again()
                })
            };
            assert!(kicked.unwrap());
        }
    }

    #[test]
    fn a_timer_kicks_in_time() {
        const TIME: Duration = Duration::from_millis(30);
        for start in [KickTimer::timer, KickTimer::thread] {
            let late = || {
                let byte = AtomicU8::new(0);
                // SAFETY: `byte` outlives the call.
                let took = unsafe {
                    with_kicks(&byte, |_| {
                        let begun = Instant::now();
                        let _timer = start(TIME).unwrap();
                        assert!(soon(|| byte.load(Ordering::Relaxed) == 1));
                        begun.elapsed()
                    })
                };
                took.unwrap().checked_sub(TIME).expect("not before its time")
            };
            let latest = (0..3).map(|_| late()).min().unwrap();
            assert!(latest < Duration::from_millis(200), "{latest:?}");
        }
    }

    #[test]
    fn a_blocked_kick_signal_is_unblocked() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call; the mask is that of this test's own thread.
        let kicked = unsafe {
            let mut all: libc::sigset_t = mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, ptr::null_mut());
            with_kicks(&byte, |kicker| {
                kicker.kick();
                soon(|| byte.load(Ordering::Relaxed) == 1)
            })
        };
        assert!(kicked.unwrap());
    }

    #[test]
    fn without_a_vcpu_a_kick_does_nothing() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call, and the whole test.
        let kicker = unsafe { with_kicks(&byte, |kicker| kicker) }.unwrap();
        kicker.kick();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(byte.load(Ordering::Relaxed), 0);
    }
}
