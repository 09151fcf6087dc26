//! The clocks that no crate wraps.

use std::time::Duration;

/// The processor time that the calling thread has used so far, including its guest (CLOCK_THREAD_CPUTIME_ID).
pub fn thread_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// The processor time that all threads of this process have used so far, including their guests (CLOCK_PROCESS_CPUTIME_ID).
pub fn process_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure. It fails only for an unknown clock.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Reads the time-stamp counter.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The nanoseconds since the start of the program, for processors without a time-stamp counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tsc() -> u64 {
    u64::try_from(super::started().elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn only_work_takes_processor_time() {
        let before = thread_cpu_time();
        let started = Instant::now();
        while thread_cpu_time() - before < Duration::from_millis(2) {
            assert!(started.elapsed() < Duration::from_secs(60), "work takes no processor time");
        }
        let worked = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_cpu_time() - worked < Duration::from_millis(40));
    }
}
