//! Points, in hundredths, so that sums are exact.

use std::fmt;
use std::iter::Sum;

/// A number of points with at most two decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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

    /// Points from a decimal number such as `12.5`. `None` if it has more than two decimals, or more than nine digits before
    /// them.
    pub fn from_decimal(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(whole, 9) || !is_number(part, 2) {
            return None;
        }
        let tenths = if part.len() == 1 { 10u64 } else { 1 };
        let (whole, part): (u64, u64) = (whole.parse().ok()?, part.parse().ok()?);
        Some(Self(whole.saturating_mul(100).saturating_add(part.saturating_mul(tenths))))
    }

    /// The whole points: the rest is left out.
    pub const fn rounded_down(self) -> u64 {
        self.0 / 100
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
    fn a_decimal_number_is_read_exactly() {
        for hundredths in [0, 1, 10, 33, 100, 105, 150, 99_999_999_999] {
            let points = Points::from_hundredths(hundredths);
            assert_eq!(Points::from_decimal(&points.to_string()), Some(points));
        }
        for wrong in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1.234", " 1", "1000000000", "nan"] {
            assert_eq!(Points::from_decimal(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_sum_is_exact() {
        let thirds = [33, 33, 34].map(Points::from_hundredths);
        assert_eq!(thirds.into_iter().sum::<Points>(), Points::whole(1));
    }
}
