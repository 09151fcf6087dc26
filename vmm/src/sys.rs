//! The few host calls that no crate wraps: kicking a vCPU out of the guest, by a signal or by a timer, and
//! reading KVM's own counters.
//!
//! A vCPU leaves the guest at a signal, and stays out if `immediate_exit` is set when KVM_RUN is entered
//! (`Documentation/virt/kvm/api.rst`, "immediate_exit"). The signal's handler therefore sets that byte of
//! the vCPU that its thread runs: a kick that comes between two KVM_RUNs is not lost. A timer whose signal
//! goes to the thread needs no second thread; it repeats until the vCPU is out.
#![allow(unsafe_code)]

use kvm_bindings::kvm_stats_header;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// A timer that has run out kicks again at this interval, in case the thread was somewhere else.
const REPEAT: Duration = Duration::from_millis(10);

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: a thread's pointer is set only while the byte is mapped (`with_kicks`), and the handler
        // runs on that thread.
        unsafe { (*immediate_exit).store(1, Ordering::Relaxed) }
    }
}

/// Kicks the vCPU of one thread out of the guest, from any thread.
#[derive(Clone, Copy, Debug)]
pub struct Kicker {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl Kicker {
    /// Makes the thread's KVM_RUN return, now or when it is next entered. Has no effect once the thread
    /// runs no vCPU.
    pub fn kick(&self) {
        // SAFETY: the call takes numbers only; a thread that has gone is an error that does not matter.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, kick_signal()) };
    }
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
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    (*HANDLER.get_or_init(install_handler)).map_err(io::Error::from_raw_os_error)?;
    let _reset = Reset(IMMEDIATE_EXIT.replace(immediate_exit));
    // SAFETY: the call takes nothing.
    let kicker = Kicker { process: unsafe { libc::getpid() }, thread: thread_id() };
    Ok(body(kicker))
}

/// The calling thread's number. A plain system call: in a static program the C library's wrapper may be
/// missing, since Rust's standard library refers to it weakly.
fn thread_id() -> libc::pid_t {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}

/// Handles the kick signal for the whole process; `Err` is an errno.
fn install_handler() -> Result<(), i32> {
    // SAFETY: an all-zero sigaction is a valid one, and the handler touches one thread-local and one atomic.
    let answer = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(kick_signal(), &action, ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

/// Kicks the calling thread's vCPU when a time has passed, again and again until dropped.
#[derive(Debug)]
pub struct KickTimer {
    timer: libc::timer_t,
}

impl KickTimer {
    /// Starts the timer for the calling thread. A duration of zero counts as a nanosecond.
    ///
    /// # Errors
    /// The kernel has no timer left for this user.
    pub fn start(after: Duration) -> io::Result<Self> {
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: an all-zero sigevent is a valid one; the signal goes to a thread of this process, by number.
        let answer = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = kick_signal();
            event.sigev_notify_thread_id = thread_id();
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self { timer };
        let setting = libc::itimerspec {
            it_value: timespec(after.max(Duration::from_nanos(1))),
            it_interval: timespec(REPEAT),
        };
        // SAFETY: the timer was made above, and the setting outlives the call.
        match unsafe { libc::timer_settime(timer.timer, 0, &setting, ptr::null_mut()) } {
            0 => Ok(timer),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `start` and is deleted once. A signal that it has queued finds no vCPU.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    let tv_sec = libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

/// KVM_GET_STATS_FD, `_IO(KVMIO, 0xce)`: a file with the counters of the VM or vCPU (api.rst, section 4.133).
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Size of a counter's descriptor without its name, in bytes.
const DESCRIPTOR: usize = 16;
/// No kernel has more counters, or longer names, than this: what a file says beyond it is not believed.
const SANE: u32 = 4096;

/// The value of KVM's own counter `name` of a VM or vCPU; `None` where this kernel has no such counter.
///
/// # Errors
/// The kernel has no counters, or does not show them.
pub fn kvm_counter(fd: &impl AsRawFd, name: &str) -> io::Result<Option<u64>> {
    // SAFETY: the call takes no argument and makes a new file descriptor.
    let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD) };
    if stats < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let stats = unsafe { File::from_raw_fd(stats) };
    let mut header = [0; size_of::<kvm_stats_header>()];
    stats.read_exact_at(&mut header, 0)?;
    let field = |at: usize| word(&header, at);
    let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
    if name_size > SANE || count > SANE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's counters have no sane header"));
    }
    let mut descriptor = vec![0; DESCRIPTOR + name_size as usize];
    for place in (u64::from(descriptors)..).step_by(descriptor.len()).take(count as usize) {
        stats.read_exact_at(&mut descriptor, place)?;
        let (fixed, text) = descriptor.split_at(DESCRIPTOR);
        if text.split(|&byte| byte == 0).next() == Some(name.as_bytes()) {
            let mut value = [0; 8];
            stats.read_exact_at(&mut value, u64::from(data) + u64::from(word(fixed, 8)))?;
            return Ok(Some(u64::from_ne_bytes(value)));
        }
    }
    Ok(None)
}

/// The native word at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
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
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    #[test]
    fn a_kick_from_another_thread_sets_the_byte() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call.
        let kicked = unsafe {
            with_kicks(&byte, |kicker| {
                std::thread::spawn(move || kicker.kick());
                soon(|| byte.load(Ordering::Relaxed) == 1)
            })
        };
        assert!(kicked.unwrap());
    }

    #[test]
    fn a_timer_kicks_until_it_is_dropped() {
        let byte = AtomicU8::new(0);
        // SAFETY: `byte` outlives the call.
        let kicked = unsafe {
            with_kicks(&byte, |_| {
                let timer = KickTimer::start(Duration::ZERO).unwrap();
                let again = || soon(|| byte.swap(0, Ordering::Relaxed) == 1);
                let twice = again() && again();
                drop(timer);
                twice
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
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(byte.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_very_long_time_is_still_a_timespec() {
        assert_eq!(timespec(Duration::MAX).tv_sec, libc::time_t::MAX);
    }
}
