//! Signals that sample a vCPU: a timer interrupts the vCPU's thread, and the handler notes what the thread does.
//!
//! If the vCPU is in its guest, the handler makes it leave, as a kick does, and the vCPU's thread takes the sample. If the
//! thread handles an exit, the handler only counts: the thread looks at the count before it enters the guest again.

use super::handle_with;
use super::kick::{KickTimer, Unblocked, set_immediate_exit};
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering, compiler_fence};
use std::time::Duration;

/// The signal of a sample: not that of a kick, because a sample does not end a blocking system call.
const SAMPLE: libc::c_int = libc::SIGPROF;

/// The thread is not to be sampled now.
const PAUSED: u8 = 0;
/// The vCPU is in its guest.
const IN_GUEST: u8 = 1;
/// The thread handles an exit.
const IN_VMM: u8 = 2;

thread_local! {
    /// The slot of the calling thread, or null.
    static SLOT: AtomicPtr<SampleSlot> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The state that a thread shares with the handler of its samples.
#[derive(Debug, Default)]
pub(crate) struct SampleSlot {
    place: AtomicU8,
    /// A sample of the guest is to be taken.
    due: AtomicBool,
    /// The handler has set `immediate_exit`, which no kick had set.
    forced: AtomicBool,
    /// The number of samples since the last exit.
    in_vmm: AtomicU32,
    /// A sample makes the vCPU leave its guest.
    kicks: bool,
}

impl SampleSlot {
    /// The slot of a vCPU. With `kicks`, a sample makes it leave its guest.
    pub(crate) fn new(kicks: bool) -> Self {
        Self { kicks, ..Self::default() }
    }

    /// Notes that the vCPU enters its guest.
    pub(crate) fn enter(&self) {
        self.place.store(IN_GUEST, Ordering::Relaxed);
    }

    /// Notes that the vCPU has left its guest. Returns true if a sample of the guest is to be taken. Set `interrupted` if
    /// nothing else made the vCPU leave: otherwise the next entry does not leave at once because of the sample.
    pub(crate) fn leave(&self, interrupted: bool) -> bool {
        self.place.store(PAUSED, Ordering::Relaxed);
        if self.forced.swap(false, Ordering::Relaxed) && !interrupted {
            // A kick that came meanwhile is repeated by its sender.
            set_immediate_exit(0);
        }
        self.due.swap(false, Ordering::Relaxed)
    }

    /// Notes that the thread handles the exit.
    pub(crate) fn handle_exit(&self) {
        self.place.store(IN_VMM, Ordering::Relaxed);
    }

    /// Stops sampling until the next entry. Returns the number of samples since the thread began to handle the exit.
    pub(crate) fn pause(&self) -> u32 {
        self.place.store(PAUSED, Ordering::Relaxed);
        self.in_vmm.swap(0, Ordering::Relaxed)
    }
}

/// The handler of a sample.
extern "C" fn on_sample(_: libc::c_int) {
    let slot = SLOT.with(|slot| slot.load(Ordering::Acquire));
    if slot.is_null() {
        return;
    }
    // SAFETY: `with_samples` sets the pointer of a thread only while the slot is borrowed, and the handler runs on this
    // thread.
    let slot = unsafe { &*slot };
    match slot.place.load(Ordering::Relaxed) {
        IN_GUEST => {
            slot.due.store(true, Ordering::Relaxed);
            if slot.kicks && set_immediate_exit(1) == Some(0) {
                slot.forced.store(true, Ordering::Relaxed);
            }
        }
        IN_VMM => drop(slot.in_vmm.fetch_add(1, Ordering::Relaxed)),
        _ => {}
    }
}

/// Runs `body`. Meanwhile a timer samples the calling thread.
///
/// # Errors
/// The signal cannot be handled or unblocked, or the host has neither a timer nor a thread left.
pub(crate) fn with_samples<R>(
    slot: &SampleSlot,
    interval: Duration,
    body: impl FnOnce() -> R,
) -> io::Result<R> {
    /// Restores the slot of an outer machine that a controller of this thread runs in.
    struct Reset(*mut SampleSlot);
    impl Drop for Reset {
        fn drop(&mut self) {
            SLOT.with(|slot| slot.store(self.0, Ordering::Release));
            compiler_fence(Ordering::SeqCst);
        }
    }
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    let handled = *HANDLER.get_or_init(|| handle_with(SAMPLE, on_sample, libc::SA_RESTART));
    handled.map_err(io::Error::from_raw_os_error)?;
    let _unblocked = Unblocked::new(SAMPLE)?;
    let _reset = Reset(SLOT.with(|own| own.swap(ptr::from_ref(slot).cast_mut(), Ordering::AcqRel)));
    let _timer = KickTimer::start_with(SAMPLE, interval, interval)?;
    Ok(body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::with_kick_byte;
    use std::hint::spin_loop;
    use std::time::Instant;

    const INTERVAL: Duration = Duration::from_millis(1);

    fn soon(mut condition: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if condition() {
                return true;
            }
            spin_loop();
        }
        false
    }

    #[test]
    fn a_sample_of_the_guest_makes_the_vcpu_leave_and_is_due_once() {
        let slot = SampleSlot::new(true);
        let seen = with_kick_byte(|_, kicked| {
            with_samples(&slot, INTERVAL, || {
                slot.enter();
                let kicks = soon(|| kicked.load(Ordering::Relaxed) == 1);
                let is_due = slot.leave(true);
                (kicks, is_due, slot.leave(true), slot.pause())
            })
        });
        assert_eq!(seen.unwrap().unwrap(), (true, true, false, 0));
    }

    #[test]
    fn a_vcpu_that_left_by_itself_is_not_made_to_leave_again() {
        let slot = SampleSlot::new(true);
        let seen = with_kick_byte(|kicker, kicked| {
            with_samples(&slot, INTERVAL, || {
                slot.enter();
                let kicks = soon(|| kicked.load(Ordering::Relaxed) == 1);
                slot.leave(false);
                let forgotten = kicked.load(Ordering::Relaxed) == 0;
                // A kick stays.
                slot.enter();
                kicker.kick();
                let again = soon(|| slot.due.load(Ordering::Relaxed));
                slot.leave(false);
                (kicks, forgotten, again, kicked.load(Ordering::Relaxed))
            })
        });
        assert_eq!(seen.unwrap().unwrap(), (true, true, true, 1));
    }

    #[test]
    fn samples_of_the_vmm_are_counted_and_do_not_kick() {
        let slot = SampleSlot::new(true);
        let seen = with_kick_byte(|_, kicked| {
            with_samples(&slot, INTERVAL, || {
                slot.handle_exit();
                let counts = soon(|| slot.in_vmm.load(Ordering::Relaxed) >= 3);
                let count = slot.pause();
                let start = Instant::now();
                soon(|| start.elapsed() > 5 * INTERVAL);
                (counts, count >= 3, slot.pause(), kicked.load(Ordering::Relaxed))
            })
        });
        assert_eq!(seen.unwrap().unwrap(), (true, true, 0, 0));
    }

    #[test]
    fn a_slot_without_kicks_only_notes_the_sample() {
        let slot = SampleSlot::new(false);
        let seen = with_kick_byte(|_, kicked| {
            with_samples(&slot, INTERVAL, || {
                slot.enter();
                let is_due = soon(|| slot.due.load(Ordering::Relaxed));
                (is_due, kicked.load(Ordering::Relaxed), slot.leave(true))
            })
        });
        assert_eq!(seen.unwrap().unwrap(), (true, 0, true));
    }
}
