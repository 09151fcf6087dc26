//! The results of all programs, and what a run prints at its end.

use crate::program::{Config, Id};
use crate::runner::{Verdict, Why};
use std::collections::BTreeMap;
use std::time::Duration;

/// The most reasons of a configuration that are printed.
const MOST_REASONS: usize = 60;

/// The results of the programs of one configuration.
#[derive(Default)]
struct Tally {
    programs: u64,
    faults: u64,
    differences: u64,
    /// The programs that are not comparable.
    not_comparable: BTreeMap<Why, BTreeMap<String, u64>>,
    /// Those that only differ in undefined flags, by the instructions that left them so.
    undefined: BTreeMap<String, u64>,
}

/// The results of all programs.
#[derive(Default)]
pub struct Report {
    pub seed: u64,
    tallies: BTreeMap<Config, Tally>,
    /// The differences by the names of their instructions, and the first program of each.
    pub kinds: BTreeMap<String, (Id, u64)>,
}

impl Tally {
    fn number(&self, why: Why) -> u64 {
        self.not_comparable.get(&why).map_or(0, |reasons| reasons.values().sum())
    }

    fn compared(&self) -> u64 {
        self.programs - Why::ALL.into_iter().map(|why| self.number(why)).sum::<u64>()
    }
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Counts a program.
    pub fn count(&mut self, config: Config, verdict: &Verdict, faults: u64) {
        let tally = self.tallies.entry(config).or_default();
        tally.programs += 1;
        tally.faults += faults;
        match verdict {
            Verdict::Same => {}
            Verdict::NotComparable(why, reason) => {
                *tally.not_comparable.entry(*why).or_default().entry(reason.clone()).or_default() += 1;
            }
            Verdict::UndefinedFlags(cause, _) => {
                *tally.undefined.entry(cause.clone()).or_default() += 1;
            }
            Verdict::Different(_) => tally.differences += 1,
        }
    }

    /// The number of times that a reason has occurred.
    pub fn total(&self, reason: &str) -> u64 {
        let reasons = self.tallies.values().flat_map(|tally| tally.not_comparable.values());
        reasons.filter_map(|reasons| reasons.get(reason)).sum()
    }

    /// True for the first differences in undefined flags after an instruction.
    pub fn is_rare(&self, config: Config, cause: &str) -> bool {
        let tally = self.tallies.get(&config);
        tally.and_then(|tally| tally.undefined.get(cause)).is_none_or(|count| *count <= 2)
    }

    /// The progress of a run.
    pub fn line(&self, time: Duration) -> String {
        let programs: u64 = self.tallies.values().map(|tally| tally.programs).sum();
        let mut line = format!("{:.0} programs/s", programs as f64 / time.as_secs_f64());
        for (config, tally) in &self.tallies {
            line += &format!(
                "; {} {} ({}% fault, {} compared, {} different)",
                config.name(),
                tally.programs,
                tally.faults * 100 / tally.programs.max(1),
                tally.compared(),
                tally.differences
            );
        }
        line
    }

    /// Prints the results.
    pub fn conclude(&self, time: Duration) {
        for (config, tally) in &self.tallies {
            let name = config.name();
            for (why, reasons) in &tally.not_comparable {
                println!("{name}: {} not compared, {why}: {}", tally.number(*why), list(reasons));
            }
            if !tally.undefined.is_empty() {
                println!("{name}: undefined flags that differ: {}", list(&tally.undefined));
            }
        }
        // Last, so that a log that keeps only its end has them.
        for (kind, (id, count)) in &self.kinds {
            println!("difference: {count} of {kind}: repeat with make differ SEED={} ONLY={id}", self.seed);
        }
        for (config, tally) in &self.tallies {
            let percent = tally.compared() as f64 * 100.0 / tally.programs.max(1) as f64;
            let mut line = format!(
                "differ: {}: {} programs, {} compared ({percent:.1} %)",
                config.name(),
                tally.programs,
                tally.compared()
            );
            for why in Why::ALL.into_iter().filter(|why| tally.number(*why) > 0) {
                line += &format!(", {} {why}", tally.number(why));
            }
            println!("{line}; {} different", tally.differences);
        }
        let sum = |number: fn(&Tally) -> u64| self.tallies.values().map(number).sum::<u64>();
        println!(
            "differ: {} programs, {} compared, {} differences of {} kinds, {} s",
            sum(|tally| tally.programs),
            sum(Tally::compared),
            sum(|tally| tally.differences),
            self.kinds.len(),
            time.as_secs()
        );
    }
}

/// Names and how often they occurred, the most frequent ones first.
fn list(counts: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut names: Vec<_> =
        sorted.iter().take(MOST_REASONS).map(|(name, count)| format!("{name} {count}")).collect();
    if sorted.len() > MOST_REASONS {
        names.push(format!("and {} more", sorted.len() - MOST_REASONS));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_comparable_are_not_compared() {
        let mut report = Report::new(1);
        let verdicts = [
            Verdict::Same,
            Verdict::Different(Vec::new()),
            Verdict::UndefinedFlags("rol".into(), Vec::new()),
            Verdict::NotComparable(Why::Unstable, "reason".into()),
            Verdict::NotComparable(Why::Listed, "reason".into()),
        ];
        for verdict in &verdicts {
            report.count(Config::Long, verdict, 0);
        }
        assert_eq!(report.tallies[&Config::Long].compared(), 3);
        assert_eq!(report.total("reason"), 2);
        assert!(
            report
                .line(Duration::from_secs(5))
                .starts_with("1 programs/s; long 5 (0% fault, 3 compared, 1 different)")
        );
    }
}
