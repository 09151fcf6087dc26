//! Runs the numbers of a part, one after the other on each processor, until its time is over.

use crate::Setup;
use crate::judge::Verdict;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A part of the campaign.
pub trait Part: Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// The number of runs after which the part has done everything. `None` if there is always another one.
    fn len(&self) -> Option<u64> {
        None
    }

    /// Does run `number`.
    ///
    /// # Errors
    /// The campaign itself fails, for example because a file cannot be written.
    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String>;
}

/// A run that ended in a wrong way.
#[derive(Debug)]
pub struct Finding {
    /// The number of the run.
    pub number: u64,
    /// The fault.
    pub what: String,
    /// The program's command line.
    pub command: String,
}

/// The work that a part has done.
#[derive(Debug, Default)]
pub struct Tally {
    /// The name of the part.
    pub part: &'static str,
    /// The number of runs.
    pub runs: u64,
    /// The number of runs by exit status.
    pub statuses: BTreeMap<i32, u64>,
    /// The findings, by the number of their run.
    pub findings: Vec<Finding>,
    /// The time that it took.
    pub time: Duration,
}

/// The number of runs at the same time.
const WORKERS: usize = 3;
/// The interval between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(20);
/// The findings after which a part ends, because more of the same kind tell nothing new.
const MOST_FINDINGS: usize = 50;

/// Runs a part: run `only`, or all until `limit` is over.
pub fn run(setup: &Setup, part: &impl Part, only: Option<u64>, limit: Duration) -> Tally {
    let started = Instant::now();
    let next = AtomicU64::new(only.unwrap_or(0));
    let end = only.map(|number| number.saturating_add(1)).or(part.len()).unwrap_or(u64::MAX);
    let tally = Mutex::new(Tally { part: part.name(), ..Tally::default() });
    let lock = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while started.elapsed() < limit && lock().findings.len() < MOST_FINDINGS {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                break;
            }
            let verdict = part.run(setup, number);
            let mut tally = lock();
            tally.runs += 1;
            match verdict {
                Ok(Verdict { status, wrong, command }) => {
                    *tally.statuses.entry(status).or_default() += 1;
                    if let Some(what) = wrong {
                        println!("{}:{number}: {what}", part.name());
                        tally.findings.push(Finding { number, what, command });
                    }
                }
                Err(why) => {
                    let what = format!("the campaign itself failed: {why}");
                    tally.findings.push(Finding { number, what, command: String::new() });
                }
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let mut shown = Instant::now();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(50));
            if shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                let tally = lock();
                let (runs, findings, time) = (tally.runs, tally.findings.len(), started.elapsed().as_secs());
                println!(
                    "{}: {runs} runs, {findings} findings, {time} s of {} s",
                    part.name(),
                    limit.as_secs()
                );
            }
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.findings.sort_by_key(|finding| finding.number);
    tally.time = started.elapsed();
    tally
}
