//! Statistics of repeated measurements: the median with the extremes, and percentiles.

use crate::host::{sort_by, sort_by_key};

/// The median, the minimum and the maximum of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The median. For an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Spread {
    /// Computes the spread of `values`. All fields are 0 if there are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        sort_by(&mut values, f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let last = values.len().saturating_sub(1);
        let median = (at(last / 2) + at(last.div_ceil(2))) / 2.0;
        Self { median, min: at(0), max: at(last) }
    }

    /// True if all values are equal.
    pub fn is_exact(&self) -> bool {
        self.min == self.max
    }
}

/// Returns the smallest of `values` that the fraction `part` (0 to 1) of them do not exceed. 0 if there are no values.
pub fn percentile(values: &[u64], part: f64) -> f64 {
    let mut values = values.to_vec();
    sort_by_key(&mut values, |value| *value);
    let rank = (part.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).map_or(0.0, |value| *value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(spread(&[4.0, 1.0]).median, 2.5);
        assert_eq!(spread(&[]), Spread::default());
        assert!(spread(&[7.0, 7.0]).is_exact() && !spread(&[7.0, 8.0]).is_exact());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u64> = (1..=100).rev().collect();
        let of = |part| percentile(&values, part);
        assert_eq!((of(0.5), of(0.99), of(1.0), of(0.0)), (50.0, 99.0, 100.0, 1.0));
        assert_eq!(percentile(&[7], 0.5), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
