//! Latencies: count, sum, extremes, and a histogram in bounded memory.

use crate::host::sort_by_key;
use hdrhistogram::Histogram;

/// Significant decimal digits of a histogram's values. With 2 digits a value is exact within one per cent.
pub const DIGITS: u8 = 2;
/// The longest time that a histogram records, in nanoseconds: 18 minutes. Longer times count as this one.
const LONGEST: u64 = 1 << 40;
/// Bins per power of two in [`Latency::bins`].
const BINS: u64 = 8;

/// The number of times that are kept exactly before a histogram is made. Most sites of a small guest have no more.
const FEW: usize = 8;

/// A set of times in nanoseconds. Count, sum and extremes are exact. Percentiles are as exact as the histogram, if one is
/// kept.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
    spread: Distribution,
}

/// The distribution of the times.
#[derive(Clone, Debug, Default)]
enum Distribution {
    /// The distribution is not recorded.
    #[default]
    Unknown,
    /// The times themselves, and their number.
    Few([u64; FEW], usize),
    /// A histogram. It grows with the longest time, up to 36 KiB.
    Many(Box<Histogram<u64>>),
}

impl Distribution {
    #[inline]
    fn record(&mut self, nanos: u64, times: u64) {
        match self {
            Self::Unknown => {}
            Self::Many(histogram) => {
                // Cannot fail: the histogram resizes itself up to LONGEST.
                let _ = histogram.record_n(nanos.min(LONGEST), times);
            }
            Self::Few(kept, len) => match kept.get_mut(*len) {
                Some(next) if times == 1 => {
                    *next = nanos;
                    *len = len.saturating_add(1);
                }
                _ => self.make_histogram(nanos, times),
            },
        }
    }

    #[cold]
    fn make_histogram(&mut self, nanos: u64, times: u64) {
        let Self::Few(kept, len) = *self else { return };
        // Cannot fail: DIGITS is a valid precision.
        *self = Histogram::new(DIGITS).map_or(Self::Unknown, |histogram| Self::Many(Box::new(histogram)));
        kept.iter().take(len).for_each(|nanos| self.record(*nanos, 1));
        self.record(nanos, times);
    }

    /// Adds the times of another distribution. The result is unknown if that one is.
    fn absorb(&mut self, other: &Self) {
        match other {
            Self::Unknown => *self = Self::Unknown,
            Self::Few(kept, len) => kept.iter().take(*len).for_each(|nanos| self.record(*nanos, 1)),
            Self::Many(histogram) => {
                if let Self::Few(..) = self {
                    self.make_histogram(0, 0);
                }
                if let Self::Many(own) = self {
                    // Cannot fail: the histogram resizes itself, and both have the same precision.
                    let _ = own.add(&**histogram);
                }
            }
        }
    }

    /// Each time in ascending order, with its count. Times of a histogram have the precision of the histogram.
    fn times(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Few(kept, len) => {
                let mut times: Vec<_> = kept.iter().take(*len).map(|nanos| (*nanos, 1)).collect();
                sort_by_key(&mut times, |time| *time);
                times
            }
            Self::Many(histogram) => {
                let steps = histogram.iter_recorded();
                steps.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
            }
        }
    }
}

impl Latency {
    /// Creates an empty set that records percentiles.
    pub fn with_percentiles() -> Self {
        Self { spread: Distribution::Few([0; FEW], 0), ..Self::default() }
    }

    /// True if percentiles are recorded.
    pub(crate) fn knows_percentiles(&self) -> bool {
        !matches!(self.spread, Distribution::Unknown)
    }

    /// Adds a time, in nanoseconds.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.min = if self.count == 0 { nanos } else { self.min.min(nanos) };
        self.max = self.max.max(nanos);
        self.sum = self.sum.saturating_add(nanos);
        self.count = self.count.saturating_add(1);
        self.spread.record(nanos, 1);
    }

    /// Adds the times of another set. Percentiles stay known only if both sets have them, or one set is empty.
    pub fn absorb(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        self.spread.absorb(&other.spread);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
        self.count = self.count.saturating_add(other.count);
    }

    /// The number of times.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum, in nanoseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The shortest time, in nanoseconds; 0 if the set is empty.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The longest time, in nanoseconds; 0 if the set is empty.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, in nanoseconds; 0 if the set is empty.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The time that `percent` per cent of all times do not exceed, in nanoseconds. `None` if percentiles are not recorded,
    /// or the set is empty.
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let value = match &self.spread {
            Distribution::Unknown => return None,
            Distribution::Few(..) => {
                let times = self.spread.times();
                let rank = (percent / 100.0 * times.len() as f64).ceil() as usize;
                times.get(rank.clamp(1, times.len()).saturating_sub(1))?.0
            }
            Distribution::Many(histogram) => histogram.value_at_percentile(percent),
        };
        Some(value.clamp(self.min, self.max))
    }

    /// A coarser histogram for plots: the lower bound of each bin in nanoseconds, and its count. There are eight bins per
    /// power of two. Empty bins are left out.
    pub fn bins(&self) -> Vec<(u64, u64)> {
        let mut bins: Vec<(u64, u64)> = Vec::new();
        for (value, times) in self.spread.times() {
            let bin = lower_bound(value);
            match bins.last_mut().filter(|(last, _)| *last == bin) {
                Some((_, count)) => *count = count.saturating_add(times),
                None => bins.push((bin, times)),
            }
        }
        bins
    }
}

/// The lower bound of the bin that contains `value`, with eight bins per power of two.
pub fn lower_bound(value: u64) -> u64 {
    let width = value.checked_ilog2().map_or(1, |power| (1 << power) / BINS).max(1);
    value - value % width
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn latency(times: &[u64]) -> Latency {
        let mut latency = Latency::with_percentiles();
        times.iter().for_each(|time| latency.record(*time));
        latency
    }

    #[test]
    fn a_few_times_are_exact() {
        let latency = latency(&[100, 200, 300, 400, 10_000]);
        assert_eq!((latency.count(), latency.sum(), latency.mean()), (5, 11_000, 2200));
        assert_eq!((latency.min(), latency.max()), (100, 10_000));
        assert_eq!(latency.percentile(50.0), Some(300));
        assert_eq!(latency.percentile(99.0), Some(10_000), "at most the longest time");
        assert_eq!(latency.bins(), [(96, 1), (192, 1), (288, 1), (384, 1), (9216, 1)]);
    }

    #[test]
    fn many_times_are_exact_within_one_per_cent() {
        let latency = latency(&(1..=1000).map(|time| time * 100).collect::<Vec<_>>());
        assert_eq!((latency.percentile(50.0), latency.percentile(99.0)), (Some(50_175), Some(99_327)));
        assert_eq!(latency.percentile(100.0), Some(100_000));
    }

    #[test]
    fn an_empty_set_has_no_percentiles() {
        let latency = latency(&[]);
        assert_eq!((latency.count(), latency.min(), latency.mean(), latency.max()), (0, 0, 0, 0));
        assert_eq!(latency.percentile(50.0), None);
        assert_eq!(latency.bins(), []);
    }

    #[test]
    fn without_a_histogram_only_percentiles_are_missing() {
        let mut latency = Latency::default();
        [7, 3].iter().for_each(|time| latency.record(*time));
        assert_eq!((latency.min(), latency.max(), latency.sum()), (3, 7, 10));
        assert_eq!((latency.percentile(50.0), latency.bins()), (None, vec![]));
    }

    #[test]
    fn extremes_stay_exact_beyond_the_histogram_s_range() {
        let latency = latency(&[0, u64::MAX, u64::MAX]);
        assert_eq!((latency.min(), latency.max(), latency.sum()), (0, u64::MAX, u64::MAX));
        assert_eq!(latency.percentile(99.0), Some(u64::MAX));
        assert_eq!(latency.bins().iter().map(|(_, count)| count).sum::<u64>(), 3);
    }

    #[test]
    fn counts_go_past_32_bits() {
        let mut all = latency(&[1000]);
        for _ in 0..33 {
            let same = all.clone();
            all.absorb(&same);
        }
        assert_eq!((all.count(), all.sum()), (1 << 33, 1000 << 33));
        assert_eq!(all.bins(), [(960, 1 << 33)]);
        assert_eq!(all.percentile(50.0), Some(1000));
        (0..FEW).for_each(|_| all.record(u64::MAX));
        assert_eq!(
            all.percentile(100.0),
            Some(1_099_511_627_775 + (1 << 33)),
            "the longest time that the histogram records"
        );
    }

    #[test]
    fn a_sum_with_unknown_percentiles_has_none() {
        let mut all = latency(&[1]);
        let mut without_percentiles = Latency::default();
        without_percentiles.record(5);
        all.absorb(&without_percentiles);
        assert_eq!((all.count(), all.percentile(50.0)), (2, None));
        let mut empty = Latency::default();
        empty.absorb(&latency(&[9]));
        assert_eq!(empty.percentile(50.0), Some(9));
        empty.absorb(&Latency::default());
        assert_eq!(empty.percentile(50.0), Some(9));
    }

    proptest! {
        /// The sum of two halves equals the whole set, and the bins hold all times.
        #[test]
        fn halves_add_up(times in prop::collection::vec(0..1u64 << 41, 0..200), at in any::<prop::sample::Index>()) {
            let at = if times.is_empty() { 0 } else { at.index(times.len()) };
            let (mut sum, other, whole) = (latency(&times[..at]), latency(&times[at..]), latency(&times));
            sum.absorb(&other);
            prop_assert_eq!((sum.count(), sum.sum(), sum.min(), sum.max()), (whole.count(), whole.sum(), whole.min(), whole.max()));
            prop_assert_eq!(sum.percentile(99.0), whole.percentile(99.0));
            let bins = sum.bins();
            prop_assert_eq!(bins.iter().map(|(_, count)| count).sum::<u64>(), times.len() as u64);
            prop_assert!(bins.is_sorted_by(|one, next| one.0 < next.0));
        }
    }
}
