//! Kicks: a signal makes a vCPU leave the guest, or makes a blocked system call return. Sent at once or by a timer.
//!
//! A signal makes the vCPU leave the guest. If `immediate_exit` is set, KVM_RUN returns at once
//! (`Documentation/virt/kvm/api.rst`, "immediate_exit"). The signal handler sets this byte of the vCPU that its thread
//! runs, so that a kick between two KVM_RUNs is not lost. A timer sends its signal to the thread itself, so it needs no
//! second thread. It repeats the signal until the timer is dropped.

use crate::host::handle;
use crate::host::interrupts::{INTERRUPTIBLE, interrupted};
use crate::host::kicker::{KICK, Kicker, REPEAT};
use crate::host::os::{AtomicThreadId, ThreadId, Timer, thread_id};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering, compiler_fence};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{io, mem, ptr, thread};

thread_local! {
    /// The address of the `immediate_exit` byte of the vCPU that this thread runs, or null. Atomic, because the signal
    /// handler of this thread reads it between any two instructions.
    static IMMEDIATE_EXIT: AtomicPtr<AtomicU8> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The handler of the kick signal: sets `immediate_exit` of the thread's vCPU.
extern "C" fn on_kick(_: libc::c_int) {
    set_immediate_exit(1);
}

/// Sets `immediate_exit` of the vCPU that the calling thread runs, if it runs one. Returns the value before. Allowed in a
/// signal handler.
pub(super) fn set_immediate_exit(value: u8) -> Option<u8> {
    let immediate_exit = IMMEDIATE_EXIT.with(|pointer| pointer.load(Ordering::Acquire));
    // SAFETY: `with_kicks` sets the pointer of a thread only while the byte is mapped, and this runs on that thread.
    (!immediate_exit.is_null()).then(|| unsafe { (*immediate_exit).swap(value, Ordering::Relaxed) })
}

/// True if the calling thread runs a vCPU that has been kicked and has not left the guest since.
pub(super) fn is_kicked() -> bool {
    let immediate_exit = IMMEDIATE_EXIT.with(|pointer| pointer.load(Ordering::Acquire));
    // SAFETY: as in `on_kick`.
    !immediate_exit.is_null() && unsafe { (*immediate_exit).load(Ordering::Relaxed) != 0 }
}

/// Installs the handler of the kick signal, once per process. A kick of a thread without a vCPU then only interrupts
/// its blocked system call.
///
/// # Errors
/// The handler cannot be installed.
pub(crate) fn handle_kicks() -> io::Result<()> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    (*HANDLER.get_or_init(|| handle(KICK, on_kick))).map_err(io::Error::from_raw_os_error)
}

/// Runs `body`. Meanwhile kicks of the calling thread, through the [`Kicker`] that `body` gets, set `immediate_exit`.
///
/// # Errors
/// The kick signal cannot be handled or unblocked.
///
/// # Safety
/// `immediate_exit` stays mapped until `body` has returned.
pub(crate) unsafe fn with_kicks<R>(
    immediate_exit: *const AtomicU8,
    body: impl FnOnce(Kicker) -> R,
) -> io::Result<R> {
    struct Reset(*mut AtomicU8);
    impl Drop for Reset {
        fn drop(&mut self) {
            IMMEDIATE_EXIT.with(|pointer| pointer.store(self.0, Ordering::Release));
            // A handler that runs from here on does not use the old pointer, so the caller may unmap the byte.
            compiler_fence(Ordering::SeqCst);
            if !self.0.is_null() {
                // A controller has run a second machine. Kicks of its own machine reached the second one meanwhile.
                // SAFETY: an outer `with_kicks` of this thread has set the pointer, and its byte is still mapped.
                unsafe { (*self.0).store(1, Ordering::Relaxed) }
            }
        }
    }
    handle_kicks()?;
    let _unblocked = Unblocked::new(KICK)?;
    let kicker = Kicker::of_this_thread();
    let _reset =
        Reset(IMMEDIATE_EXIT.with(|pointer| pointer.swap(immediate_exit.cast_mut(), Ordering::AcqRel)));
    let _interruptible = Interruptible::new(kicker);
    Ok(body(kicker))
}

/// Runs `body` with a byte that kicks of the calling thread set, for a thread that runs no vCPU of KVM.
///
/// # Errors
/// The kick signal cannot be handled or unblocked.
pub(crate) fn with_kick_byte<R>(body: impl FnOnce(Kicker, &AtomicU8) -> R) -> io::Result<R> {
    let kicked = AtomicU8::new(0);
    // SAFETY: the byte lives until the call has returned.
    unsafe { with_kicks(&kicked, |kicker| body(kicker, &kicked)) }
}

/// While it lives, a signal that asks the program to end kicks the thread that created it. If there are more threads
/// than entries in [`INTERRUPTIBLE`], the other threads end the run.
#[derive(Debug)]
struct Interruptible(Option<&'static AtomicThreadId>);

impl Interruptible {
    /// Registers the calling thread, whose kicks are handled. `kicker` is its own.
    fn new(kicker: Kicker) -> Self {
        let take = |slot: &&AtomicThreadId| {
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

/// While it lives, a signal is not blocked in the thread that created it. Dropping it restores the earlier mask.
pub(super) struct Unblocked(libc::sigset_t);

impl Unblocked {
    pub(super) fn new(signal: libc::c_int) -> io::Result<Self> {
        // SAFETY: all-zero sets are valid, and both outlive the calls.
        unsafe {
            let (mut kick, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
            libc::sigemptyset(&mut kick);
            libc::sigaddset(&mut kick, signal);
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

/// A timer that kicks the calling thread after a time, and then again and again until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct KickTimer {
    thread: ThreadId,
    /// The same thread. A host gives the ID of a thread that has ended to a new one, and this one is never used again.
    unique: thread::ThreadId,
    source: TimerSource,
}

#[derive(Debug)]
enum TimerSource {
    /// A timer of the kernel.
    Timer(Timer),
    /// A thread, if the host has no such timer, or the user's quota leaves none. It ends when the sender is dropped.
    Thread(#[allow(dead_code, reason = "the thread waits for its drop")] Option<Sender<()>>),
}

impl KickTimer {
    /// Starts the timer for the calling thread, whose kicks must be handled ([`with_kicks`]). A duration of zero counts
    /// as one nanosecond.
    ///
    /// # Errors
    /// The host has neither a timer nor a thread left.
    pub(crate) fn start(after: Duration) -> io::Result<Self> {
        Self::start_with(KICK, after, REPEAT)
    }

    /// Starts a timer that sends any signal, and repeats it after a time of its own.
    ///
    /// # Errors
    /// The host has neither a timer nor a thread left.
    pub(super) fn start_with(signal: libc::c_int, after: Duration, repeat: Duration) -> io::Result<Self> {
        Self::timer(signal, after, repeat).or_else(|error| {
            log::info!("cannot create a timer ({error}): a thread watches the time instead");
            Self::thread(signal, after, repeat)
        })
    }

    /// Restarts the timer of an earlier run, which saves two system calls. If it is not a timer of the calling thread,
    /// starts a new one.
    ///
    /// # Errors
    /// The host has neither a timer nor a thread left.
    pub(crate) fn restart(earlier: &mut Option<Self>, after: Duration) -> io::Result<()> {
        match earlier {
            Some(Self { thread, unique, source: TimerSource::Timer(timer) })
                if *thread == thread_id() && *unique == thread::current().id() =>
            {
                timer.set(after.max(Duration::from_nanos(1)), REPEAT)
            }
            _ => {
                // Drop the old timer first, so that it does not count against the user's quota.
                *earlier = None;
                *earlier = Some(Self::start(after)?);
                Ok(())
            }
        }
    }

    /// Stops the timer until it is restarted. A signal that is still queued finds no vCPU.
    pub(crate) fn stop(&mut self) {
        match &mut self.source {
            TimerSource::Timer(timer) => drop(timer.set(Duration::ZERO, Duration::ZERO)),
            TimerSource::Thread(sender) => *sender = None,
        }
    }

    fn timer(signal: libc::c_int, after: Duration, repeat: Duration) -> io::Result<Self> {
        let timer = Timer::of_this_thread(signal)?;
        timer.set(after.max(Duration::from_nanos(1)), repeat)?;
        Ok(Self { thread: thread_id(), unique: thread::current().id(), source: TimerSource::Timer(timer) })
    }

    fn thread(signal: libc::c_int, after: Duration, repeat: Duration) -> io::Result<Self> {
        let kicker = Kicker::of_this_thread();
        let (sender, ended) = mpsc::channel();
        let body = move || {
            let mut pause = after;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                kicker.send(signal);
                pause = repeat;
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(body)?;
        let unique = thread::current().id();
        Ok(Self { thread: kicker.thread, unique, source: TimerSource::Thread(Some(sender)) })
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
    fn a_kick_during_an_inner_run_reaches_the_outer_run_too() {
        let (outer, inner) = (AtomicU8::new(0), AtomicU8::new(0));
        // SAFETY: both bytes outlive the calls.
        let kicked = unsafe {
            with_kicks(&outer, |_| {
                let kicked = with_kicks(&inner, |kicker| {
                    kicker.kick();
                    soon(|| inner.load(Ordering::Relaxed) == 1)
                });
                kicked.unwrap() && outer.load(Ordering::Relaxed) == 1
            })
        };
        assert!(kicked.unwrap());
    }

    #[test]
    fn a_timer_repeats_its_kicks() {
        for start in [KickTimer::timer, KickTimer::thread] {
            let byte = AtomicU8::new(0);
            // SAFETY: `byte` outlives the call.
            let kicked = unsafe {
                with_kicks(&byte, |_| {
                    let _timer = start(KICK, Duration::ZERO, REPEAT).unwrap();
                    let again = || soon(|| byte.swap(0, Ordering::Relaxed) == 1);
                    again() && again()
                })
            };
            assert!(kicked.unwrap());
        }
    }

    #[test]
    fn the_timer_of_an_ended_thread_is_not_restarted_for_a_thread_with_the_same_id() {
        let body = || KickTimer::start(Duration::from_secs(60)).unwrap();
        let mut earlier = thread::spawn(body).join().unwrap();
        // The new thread has the ID of the old one.
        earlier.thread = thread_id();
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call.
        let kicked = unsafe {
            with_kicks(&byte, |_| {
                let mut timer = Some(earlier);
                KickTimer::restart(&mut timer, Duration::ZERO).unwrap();
                soon(|| byte.load(Ordering::Relaxed) == 1)
            })
        };
        assert!(kicked.unwrap());
    }

    #[test]
    fn a_timer_kicks_on_time() {
        const TIME: Duration = Duration::from_millis(30);
        for start in [KickTimer::timer, KickTimer::thread] {
            let late = || {
                let byte = AtomicU8::new(0);
                // SAFETY: `byte` outlives the call.
                let took = unsafe {
                    with_kicks(&byte, |_| {
                        let begun = Instant::now();
                        let _timer = start(KICK, TIME, REPEAT).unwrap();
                        assert!(soon(|| byte.load(Ordering::Relaxed) == 1));
                        begun.elapsed()
                    })
                };
                took.unwrap().checked_sub(TIME).expect("not too early")
            };
            let latest = (0..3).map(|_| late()).min().unwrap();
            assert!(latest < Duration::from_millis(200), "{latest:?}");
        }
    }

    #[test]
    fn a_blocked_kick_signal_is_unblocked() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call. The mask is the one of this test's own thread.
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
