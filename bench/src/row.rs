//! One line of the results: what it cost here, what it cost the other, and what that comes to.
//!
//! Times scatter on a busy machine by more than what is looked for. So contestants are measured in turn, in many short
//! rounds, and what counts is the median of the rounds' own ratios: what both of a round suffered cancels out.

use crate::sys::{Cost, alive};

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
    /// One number over another.
    Ratio,
}

impl Unit {
    /// Its name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Ratio => "ratio",
        }
    }
}

/// What many numbers come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many there were.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter is below.
    pub q1: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub q3: f64,
    /// The largest.
    pub max: f64,
    /// Standard error of the median: 1.253 times that of the mean of as many normally distributed numbers whose quartiles
    /// are these. 0 for fewer than 4.
    pub error: f64,
}

impl Summary {
    /// Of `numbers`; `None` where there are none.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        // Between the two nearest, in proportion.
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

/// Numbers of this program and, round by round, of another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pair {
    /// This program's, one per round.
    pub ours: Vec<f64>,
    /// The other's, one per round; none where there is no other.
    pub other: Vec<f64>,
}

impl Pair {
    /// The rounds' ratios: ours over the other's.
    pub fn ratios(&self) -> Option<Summary> {
        self.by_round(|ours, other| ours / other)
    }

    /// What the rounds have more than the other's.
    pub fn added(&self) -> Option<Summary> {
        self.by_round(|ours, other| ours - other)
    }

    /// The ratio of the medians.
    pub fn ratio_of_medians(&self) -> Option<f64> {
        Some(Summary::of(&self.ours)?.median / Summary::of(&self.other)?.median)
    }

    fn by_round(&self, compare: impl Fn(f64, f64) -> f64) -> Option<Summary> {
        let rounds = self.ours.iter().zip(&self.other);
        let compared: Vec<_> = rounds.map(|(ours, other)| compare(*ours, *other)).collect();
        Summary::of(&compared)
    }
}

/// What was to be reached: a line of the goals' table.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// What is measured; rows of the same goal share it.
    pub what: &'static str,
    /// What a number is.
    pub unit: Unit,
    /// The most that it may be.
    pub limit: f64,
    /// What it is.
    pub value: f64,
    /// The value's standard error; 0 where it is exact.
    pub error: f64,
}

impl Goal {
    /// Whether it is reached.
    pub fn reached(&self) -> bool {
        self.value <= self.limit
    }
}

/// Against what a row is measured, which says how to draw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The least that it can cost: bare loops and programs. Ratios are near 1.
    Floor,
    /// Another program that does the same work.
    Program,
    /// Itself: what a part of it adds.
    Itself,
}

impl Against {
    /// Its name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Program => "program",
            Self::Itself => "itself",
        }
    }
}

/// One line of the results.
#[derive(Clone, Debug)]
pub struct Row {
    /// A short name that does not change.
    pub id: String,
    /// What was measured.
    pub title: String,
    /// Who the other is; empty where there is none.
    pub other: &'static str,
    /// What kind of other.
    pub against: Against,
    /// What the numbers are.
    pub unit: Unit,
    /// How they were taken.
    pub how: &'static str,
    /// The numbers: CPU time where that can be had.
    pub pair: Pair,
    /// The same by the clock on the wall; empty where that says nothing.
    pub wall: Pair,
    /// What was to be reached.
    pub goals: Vec<Goal>,
}

/// Measures all of `contestants` once in each round. Each round begins with the next one, so that none is always the
/// first. Ends early, with the rounds until then, when somebody asks for the end.
///
/// Returns the costs of each, one per round.
///
/// # Errors
/// A measurement failed.
pub fn interleave<C>(
    rounds: usize,
    contestants: &[C],
    mut measure: impl FnMut(&C) -> Result<Cost, String>,
) -> Result<Vec<Vec<Cost>>, String> {
    let mut costs = vec![Vec::with_capacity(rounds); contestants.len()];
    for round in 0..rounds {
        let mut of_round = vec![Cost::default(); contestants.len()];
        for turn in 0..contestants.len() {
            let place = (round + turn) % contestants.len();
            if let (Some(contestant), Some(cost)) = (contestants.get(place), of_round.get_mut(place)) {
                alive();
                *cost = match measure(contestant) {
                    Err(_) if vmm::host::interrupted() => return Ok(costs),
                    measured => measured?,
                };
            }
        }
        costs.iter_mut().zip(of_round).for_each(|(costs, cost)| costs.push(cost));
        if vmm::host::interrupted() {
            break;
        }
    }
    Ok(costs)
}

/// The CPU times of two contestants.
pub fn cpu(ours: &[Cost], other: &[Cost]) -> Pair {
    let times = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu).collect();
    Pair { ours: times(ours), other: times(other) }
}

/// Their times on the wall.
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
    fn a_round_that_both_suffered_does_not_count() {
        // The second round took ten times as long; the ratio of each is 1.1.
        let pair = Pair { ours: vec![110.0, 1100.0, 220.0], other: vec![100.0, 1000.0, 200.0] };
        let ratios = pair.ratios().unwrap();
        assert!((ratios.q3 - ratios.q1).abs() < 1e-12 && (ratios.median - 1.1).abs() < 1e-12);
        assert_eq!(pair.ratio_of_medians(), Some(1.1));
        assert_eq!(pair.added().unwrap().median, 20.0);
    }

    #[test]
    fn without_another_there_is_no_ratio() {
        let pair = Pair { ours: vec![1.0], other: vec![] };
        assert_eq!((pair.ratios(), pair.added(), pair.ratio_of_medians()), (None, None, None));
    }

    #[test]
    fn each_round_begins_with_the_next() {
        let order = std::cell::RefCell::new(Vec::new());
        let costs = interleave(3, &[0, 1, 2], |contestant| {
            order.borrow_mut().push(*contestant);
            Ok(Cost { cpu: f64::from(*contestant), wall: 0.0 })
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
