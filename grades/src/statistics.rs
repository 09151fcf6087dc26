//! The statistics of a class.

use crate::{Grade, Points};
use std::collections::BinaryHeap;

/// The statistics of grades. The points are those of the submissions that were graded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The number of submissions.
    pub submissions: usize,
    /// The number of submissions that could not be graded.
    pub not_graded: usize,
    /// The number of submissions with all points.
    pub full: usize,
    /// The mean, rounded to hundredths.
    pub mean: Points,
    /// The median, rounded to hundredths.
    pub median: Points,
    /// The fewest points of a submission.
    pub lowest: Points,
    /// The most points of a submission.
    pub highest: Points,
}

impl Statistics {
    /// The statistics of these grades.
    pub fn of(grades: &[Grade]) -> Self {
        let graded = || grades.iter().filter(|grade| grade.error.is_none());
        // A heap needs less code than a sort.
        let points = graded().map(Grade::earned).collect::<BinaryHeap<_>>().into_sorted_vec();
        let (low, high) = (points.len().saturating_sub(1) / 2, points.len() / 2);
        let middle: Vec<Points> = [low, high].iter().filter_map(|at| points.get(*at)).copied().collect();
        Self {
            submissions: grades.len(),
            not_graded: grades.len().saturating_sub(points.len()),
            full: graded().filter(|grade| grade.is_full()).count(),
            mean: mean(&points),
            median: mean(&middle),
            lowest: points.first().copied().unwrap_or_default(),
            highest: points.last().copied().unwrap_or_default(),
        }
    }
}

/// The mean of points, rounded to hundredths.
fn mean(points: &[Points]) -> Points {
    let sum: Points = points.iter().copied().sum();
    let count = points.len() as u64;
    let mean = sum.hundredths().saturating_add(count / 2).checked_div(count);
    Points::from_hundredths(mean.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{failed, grade};

    #[test]
    fn a_class_has_a_mean_and_a_median() {
        assert_eq!(Statistics::of(&[]), Statistics::default());
        let class = [grade("a", 60), grade("b", 0), failed("c"), grade("d", 45)];
        let statistics = Statistics::of(&class);
        assert_eq!(
            statistics,
            Statistics {
                submissions: 4,
                not_graded: 1,
                full: 1,
                mean: Points::whole(35),
                median: Points::whole(45),
                lowest: Points::ZERO,
                highest: Points::whole(60),
            }
        );
        let two = Statistics::of(&[grade("a", 60), grade("b", 45)]);
        assert_eq!(two.median.to_string(), "52.5");
        let thirds = Statistics::of(&[grade("a", 10), grade("b", 10), grade("c", 0)]);
        assert_eq!(thirds.mean.to_string(), "6.67");
    }
}
