//! The clock that times exits: the processor's time-stamp counter, or CLOCK_MONOTONIC if the counter's frequency is
//! unknown.

use crate::host;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Instant;

/// A clock with cheap readings, in its own unit (ticks).
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The time-stamp counter (Intel SDM volume 3, section 18.17).
    Tsc {
        /// The frequency in kHz, from KVM_GET_TSC_KHZ.
        khz: NonZeroU32,
        /// Nanoseconds per tick, times 2^32.
        scale: u64,
    },
    /// CLOCK_MONOTONIC, in nanoseconds since this instant.
    Monotonic(Instant),
}

impl Clock {
    /// Creates a clock: the time-stamp counter if its frequency is known and not 0, otherwise CLOCK_MONOTONIC.
    pub fn new(tsc_khz: Option<u32>) -> Self {
        match tsc_khz.and_then(NonZeroU32::new) {
            Some(khz) => Self::Tsc { khz, scale: (1_000_000 << 32) / u64::from(khz.get()) },
            None => Self::Monotonic(Instant::now()),
        }
    }

    /// Reads the clock, in ticks. A later reading of the time-stamp counter can be smaller, because the counters of some
    /// hosts' processors differ.
    #[inline]
    pub fn now(&self) -> u64 {
        match self {
            Self::Tsc { .. } => host::tsc(),
            Self::Monotonic(since) => u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Converts a difference of two readings to nanoseconds.
    #[inline]
    pub fn nanos(&self, ticks: u64) -> u64 {
        match self {
            Self::Tsc { scale, .. } => {
                let nanos = (u128::from(ticks) * u128::from(*scale)) >> 32;
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
            Self::Monotonic(_) => ticks,
        }
    }

    /// The frequency of the time-stamp counter in kHz; `None` for CLOCK_MONOTONIC.
    pub fn tsc_khz(&self) -> Option<u32> {
        match self {
            Self::Tsc { khz, .. } => Some(khz.get()),
            Self::Monotonic(_) => None,
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tsc { khz, .. } => write!(f, "TSC at {:.0} MHz", f64::from(khz.get()) / 1e3),
            Self::Monotonic(_) => f.write_str(
                "CLOCK_MONOTONIC, because KVM does not report the TSC frequency (KVM_GET_TSC_KHZ)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ticks_become_nanoseconds() {
        for khz in [1, 999, 2_250_000, 4_000_000, u32::MAX] {
            let clock = Clock::new(Some(khz));
            let second = u64::from(khz) * 1000;
            assert!(clock.nanos(second).abs_diff(1_000_000_000) <= 2, "{khz}");
            assert_eq!(clock.nanos(0), 0);
        }
        assert_eq!(Clock::new(Some(1)).nanos(u64::MAX), u64::MAX, "the result saturates");
        assert_eq!(Clock::new(None).nanos(7), 7);
    }

    #[test]
    fn without_a_frequency_the_clock_is_monotonic() {
        for unknown in [None, Some(0)] {
            let clock = Clock::new(unknown);
            assert_eq!(clock.tsc_khz(), None);
            assert!(clock.to_string().contains("KVM_GET_TSC_KHZ"), "{clock}");
            let before = clock.now();
            std::thread::sleep(Duration::from_millis(2));
            assert!(clock.nanos(clock.now() - before) >= 2_000_000);
        }
    }
}
