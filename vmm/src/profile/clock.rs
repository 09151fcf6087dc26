//! The clock that exits are timed by: the processor's time-stamp counter, or CLOCK_MONOTONIC where nobody
//! knows how fast that one counts.

use crate::host;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Instant;

/// A clock whose readings are cheap and in a unit of its own.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The time-stamp counter (Intel SDM volume 3, section 18.17).
    Tsc {
        /// Ticks in a millisecond: what KVM_GET_TSC_KHZ says.
        khz: NonZeroU32,
        /// Nanoseconds in a tick, as a fraction of 2^32.
        scale: u64,
    },
    /// CLOCK_MONOTONIC, in nanoseconds from here on.
    Monotonic(Instant),
}

impl Clock {
    /// The time-stamp counter where its speed is known, and the system's clock else.
    pub fn new(tsc_khz: Option<u32>) -> Self {
        match tsc_khz.and_then(NonZeroU32::new) {
            Some(khz) => Self::Tsc { khz, scale: (1_000_000 << 32) / u64::from(khz.get()) },
            None => Self::Monotonic(Instant::now()),
        }
    }

    /// A reading. Of the time-stamp counter, which processors of some machines do not share, a later one may be smaller.
    #[inline]
    pub fn now(&self) -> u64 {
        match self {
            Self::Tsc { .. } => host::tsc(),
            Self::Monotonic(since) => u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// The nanoseconds in a difference of two readings.
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

    /// Ticks in a millisecond, of the time-stamp counter.
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
            Self::Monotonic(_) => {
                f.write_str("CLOCK_MONOTONIC, since KVM does not tell the TSC's speed (KVM_GET_TSC_KHZ)")
            }
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
        assert_eq!(Clock::new(Some(1)).nanos(u64::MAX), u64::MAX, "what does not fit is as much as fits");
        assert_eq!(Clock::new(None).nanos(7), 7);
    }

    #[test]
    fn a_clock_of_unknown_speed_is_not_taken() {
        for none in [None, Some(0)] {
            let clock = Clock::new(none);
            assert_eq!(clock.tsc_khz(), None);
            assert!(clock.to_string().contains("KVM_GET_TSC_KHZ"), "{clock}");
            let before = clock.now();
            std::thread::sleep(Duration::from_millis(2));
            assert!(clock.nanos(clock.now() - before) >= 2_000_000);
        }
    }
}
