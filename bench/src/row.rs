//! One row of the results: the cost of this program, the cost of the program it is compared with, and the ratio.
//!
//! On a busy machine, times vary by more than the differences that we look for. So the programs take turns in many
//! short rounds, and the result is the median of the ratios of the rounds: a disturbance that affects a whole round
//! cancels out.

use crate::sys::{Cost, begin_step};

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// A plain count.
    Count,
    /// The quotient of two numbers with the same unit.
    Ratio,
}

impl Unit {
    /// Returns the name of the unit in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Ratio => "ratio",
        }
    }
}

/// The order statistics of a list of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The number of values.
    pub count: usize,
    /// The smallest value.
    pub min: f64,
    /// The lower quartile.
    pub q1: f64,
    /// The median.
    pub median: f64,
    /// The upper quartile.
    pub q3: f64,
    /// The largest value.
    pub max: f64,
    /// The standard error of the median: 1.253 times the standard error of the mean, computed from the distance between
    /// the quartiles as for a normal distribution. 0 for fewer than 4 values.
    pub error: f64,
}

impl Summary {
    /// Summarizes `numbers`. Returns `None` for an empty list.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        // Linear interpolation between the two nearest values.
        let quantile = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            match (sorted.get(below), sorted.get(above)) {
                (Some(below), Some(above)) => below + (above - below) * place.fract(),
                _ => max,
            }
        };
        let (q1, median, q3) = (quantile(0.25), quantile(0.5), quantile(0.75));
        let count = sorted.len();
        let error = if count < 4 { 0.0 } else { 1.253 * (q3 - q1) / 1.349 / (count as f64).sqrt() };
        Some(Self { count, min, q1, median, q3, max, error })
    }
}

/// The numbers of this program and of the program it is compared with, one per round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pair {
    /// The numbers of this program, one per round.
    pub ours: Vec<f64>,
    /// The numbers of the other program, one per round. Empty without another program.
    pub other: Vec<f64>,
}

impl Pair {
    /// Summarizes the ratios of the rounds: ours divided by the other's.
    pub fn ratios(&self) -> Option<Summary> {
        self.summarize(|ours, other| ours / other)
    }

    /// Summarizes the differences of the rounds: ours minus the other's.
    pub fn differences(&self) -> Option<Summary> {
        self.summarize(|ours, other| ours - other)
    }

    /// Returns the ratio of the medians.
    pub fn ratio_of_medians(&self) -> Option<f64> {
        Some(Summary::of(&self.ours)?.median / Summary::of(&self.other)?.median)
    }

    fn summarize(&self, compare: impl Fn(f64, f64) -> f64) -> Option<Summary> {
        let rounds = self.ours.iter().zip(&self.other);
        let compared: Vec<_> = rounds.map(|(ours, other)| compare(*ours, *other)).collect();
        Summary::of(&compared)
    }
}

/// A goal for a row, and the measured value.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// The text of the goal. Rows with the same text share one line of the goals table.
    pub what: &'static str,
    /// The unit of the limit and of the value.
    pub unit: Unit,
    /// The largest value that reaches the goal.
    pub limit: f64,
    /// The measured value.
    pub value: f64,
    /// The standard error of the value. 0 if the value is exact or its error is unknown.
    pub error: f64,
}

impl Goal {
    /// A goal for the median of measured values.
    pub fn of_median(what: &'static str, unit: Unit, limit: f64, measured: Summary) -> Self {
        Self { what, unit, limit, value: measured.median, error: measured.error }
    }

    /// Returns true if the value is not above the limit.
    pub fn reached(&self) -> bool {
        self.value <= self.limit
    }
}

/// The kind of baseline that a row is compared with. The plot has a panel for each kind except [`Baseline::Detail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// A bare loop or a bare program, as a lower bound. Ratios are near 1.
    LowerBound,
    /// Another virtual machine monitor that does the same work.
    OtherProgram,
    /// No baseline for the plot: the row gives details of another row.
    Detail,
}

impl Baseline {
    /// Returns the name of the kind in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::LowerBound => "floor",
            Self::OtherProgram => "program",
            Self::Detail => "itself",
        }
    }
}

/// One row of the results.
#[derive(Clone, Debug)]
pub struct Row {
    /// A short identifier that does not change between versions.
    pub id: String,
    /// The name of the row in tables.
    pub title: String,
    /// The name of the baseline. Empty without one.
    pub other: &'static str,
    /// The kind of the baseline.
    pub baseline: Baseline,
    /// The unit of the numbers.
    pub unit: Unit,
    /// The way the numbers are taken.
    pub how: &'static str,
    /// The numbers: CPU times, except where `how` names something else.
    pub pair: Pair,
    /// The wall times of the same rounds. Empty if wall time has no meaning for the row.
    pub wall: Pair,
    /// The goals of the row.
    pub goals: Vec<Goal>,
}

/// Measures each candidate once per round. Each round starts with the next candidate, so that none always runs first.
/// An interrupt ends the loop early and keeps the complete rounds.
///
/// Returns a list of costs for each candidate, with one cost per round.
///
/// # Errors
/// A measurement failed, and the program was not interrupted.
pub fn interleave<C>(
    rounds: usize,
    candidates: &[C],
    mut measure: impl FnMut(&C) -> Result<Cost, String>,
) -> Result<Vec<Vec<Cost>>, String> {
    let mut costs = vec![Vec::with_capacity(rounds); candidates.len()];
    for round in 0..rounds {
        let mut round_costs = vec![Cost::default(); candidates.len()];
        for turn in 0..candidates.len() {
            let place = (round + turn) % candidates.len();
            if let (Some(candidate), Some(cost)) = (candidates.get(place), round_costs.get_mut(place)) {
                begin_step();
                *cost = match measure(candidate) {
                    Err(_) if vmm::host::interrupted() => return Ok(costs),
                    measured => measured?,
                };
            }
        }
        costs.iter_mut().zip(round_costs).for_each(|(costs, cost)| costs.push(cost));
        if vmm::host::interrupted() {
            break;
        }
    }
    Ok(costs)
}

/// Pairs the CPU times of two candidates.
pub fn cpu(ours: &[Cost], other: &[Cost]) -> Pair {
    let times = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu).collect();
    Pair { ours: times(ours), other: times(other) }
}

/// Pairs the wall times of two candidates.
pub fn wall(ours: &[Cost], other: &[Cost]) -> Pair {
    let times = |costs: &[Cost]| costs.iter().map(|cost| cost.wall).collect();
    Pair { ours: times(ours), other: times(other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_the_quartiles() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.min, one.q1, one.median, one.q3, one.max, one.error), (7.0, 7.0, 7.0, 7.0, 7.0, 0.0));
        let five = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((five.count, five.min, five.q1, five.median), (5, 1.0, 2.0, 3.0));
        assert_eq!((five.q3, five.max), (4.0, 5.0));
        assert!((five.error - 1.253 * 2.0 / 1.349 / 5f64.sqrt()).abs() < 1e-12);
        let even = Summary::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((even.q1, even.median, even.q3), (1.75, 2.5, 3.25));
    }

    #[test]
    fn a_disturbance_of_a_whole_round_cancels_out() {
        // The second round took ten times as long; the ratio of each is 1.1.
        let pair = Pair { ours: vec![110.0, 1100.0, 220.0], other: vec![100.0, 1000.0, 200.0] };
        let ratios = pair.ratios().unwrap();
        assert!((ratios.q3 - ratios.q1).abs() < 1e-12 && (ratios.median - 1.1).abs() < 1e-12);
        assert_eq!(pair.ratio_of_medians(), Some(1.1));
        assert_eq!(pair.differences().unwrap().median, 20.0);
    }

    #[test]
    fn a_pair_without_a_baseline_has_no_ratio() {
        let pair = Pair { ours: vec![1.0], other: vec![] };
        assert_eq!((pair.ratios(), pair.differences(), pair.ratio_of_medians()), (None, None, None));
    }

    #[test]
    fn each_round_starts_with_the_next_candidate() {
        let order = std::cell::RefCell::new(Vec::new());
        let costs = interleave(3, &[0, 1, 2], |candidate| {
            order.borrow_mut().push(*candidate);
            Ok(Cost { cpu: f64::from(*candidate), wall: 0.0 })
        });
        assert_eq!(*order.borrow(), [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        let pair = cpu(&costs.as_ref().unwrap()[2], &costs.as_ref().unwrap()[1]);
        assert_eq!(pair, Pair { ours: vec![2.0; 3], other: vec![1.0; 3] });
        assert_eq!(interleave(2, &[()], |()| Err("no".into())), Err("no".into()));
    }

    #[test]
    fn a_goal_is_reached_at_its_limit() {
        let goal = |value| Goal { what: "", unit: Unit::Ratio, limit: 1.03, value, error: 0.0 };
        assert!(goal(1.03).reached() && !goal(1.031).reached() && !goal(f64::NAN).reached());
    }
}
