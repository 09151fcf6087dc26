//! Points, in hundredths, so that sums are exact.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;

/// A number of points with at most two decimals. In JSON it is its number of hundredths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Points(u64);

impl Points {
    /// No points.
    pub const ZERO: Self = Self(0);

    /// Whole points.
    pub const fn whole(points: u32) -> Self {
        Self((points as u64).saturating_mul(100))
    }

    /// Points from their hundredths.
    pub const fn from_hundredths(hundredths: u64) -> Self {
        Self(hundredths)
    }

    /// The points in hundredths.
    pub const fn hundredths(self) -> u64 {
        self.0
    }

    /// The difference, or none if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, as far as it can be counted.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Points {
    fn sum<I: Iterator<Item = Self>>(points: I) -> Self {
        points.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        let text = match (part, part % 10) {
            (0, _) => whole.to_string(),
            (_, 0) => format!("{whole}.{}", part / 10),
            _ => format!("{whole}.{part:02}"),
        };
        f.pad_integral(true, "", &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_have_no_more_decimals_than_they_need() {
        let text = |hundredths| Points::from_hundredths(hundredths).to_string();
        assert_eq!([0, 100, 150, 105, 33].map(text), ["0", "1", "1.5", "1.05", "0.33"]);
        assert_eq!(format!("{:>3}/{:<3}|", Points::whole(7), Points::whole(30)), "  7/30 |");
    }

    #[test]
    fn a_sum_is_exact() {
        let thirds = [33, 33, 34].map(Points::from_hundredths);
        assert_eq!(thirds.into_iter().sum::<Points>(), Points::whole(1));
    }
}
