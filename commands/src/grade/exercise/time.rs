//! The time of a guest as a multiple of that of a guest of the teacher's.
//!
//! Both guests run in turn, and the smallest time of each counts: other work of the host makes a run longer, and never shorter. The
//! time is that of the processor, so waiting for a processor does not count.

use super::guest::{self, Code};
use super::run::{Failed, Recorded, mistake};
use crate::status;
use ::exercise::Check;
use ::exercise::file::{Task, TimeLimit};
use ::exercise::template::Values;
use grades::Points;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm::Error;
use vmm::machine::Processor;

/// The time of all runs together, as a multiple of the time limit of one. It ends the rounds after the least number.
const MOST_TIMES: u32 = 4;
/// The difference of the times that never counts.
const INEXACT: Duration = Duration::from_micros(100);

/// Measures a file of a submission, and checks its time.
///
/// # Errors
/// The host failed, or the reference does not run.
pub fn check(
    task: &Task,
    limit: &TimeLimit,
    file: &Path,
    values: &Values,
    processor: Option<Processor>,
) -> Result<Check, Failed> {
    let began = Instant::now();
    let most = task.settings.timeout.saturating_mul(MOST_TIMES);
    let (mut own, mut reference) = (Duration::MAX, Duration::MAX);
    for round in 1..=TimeLimit::ROUNDS.1 {
        let code = Code::Reference(&limit.name, &limit.reference);
        let time = measured(task, &code, values, processor).map_err(|failed| match failed {
            Failed::Submission(why) => mistake(task, &format!("the reference {}: {why}", limit.name)),
            other => other,
        })?;
        let fails = || mistake(task, &format!("the reference {} does not end by itself", limit.name));
        reference = reference.min(time.ok_or_else(fails)?);
        // A run that does not end exceeds every limit.
        own = own.min(measured(task, &Code::File(file), values, processor)?.unwrap_or(Duration::MAX));
        let is_enough = own <= allowed(reference, limit.at_most) || began.elapsed() > most;
        if round >= TimeLimit::ROUNDS.0 && is_enough {
            break;
        }
    }
    Ok(result(limit, own, reference))
}

/// The check of a run that did not end by itself.
pub fn not_measured(limit: &TimeLimit) -> Check {
    Check {
        passed: false,
        seen: "was not measured, because the run did not end by itself".into(),
        ..rule(limit)
    }
}

/// The longest time of a submission.
fn allowed(reference: Duration, at_most: u64) -> Duration {
    let nanoseconds = reference.as_nanos().saturating_mul(at_most.into()) / 100;
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).saturating_add(INEXACT)
}

fn rule(limit: &TimeLimit) -> Check {
    let times = Points::from_hundredths(limit.at_most);
    Check {
        passed: false,
        subject: "the time".into(),
        expected: format!("must be at most {times} times that of the reference"),
        seen: String::new(),
        possible: true,
    }
}

fn result(limit: &TimeLimit, own: Duration, reference: Duration) -> Check {
    let ratio = own.as_secs_f64() / reference.as_secs_f64().max(1e-9);
    let [own_ms, reference_ms] = [own, reference].map(|time| time.as_secs_f64() * 1e3);
    Check {
        passed: own <= allowed(reference, limit.at_most),
        seen: format!("is {ratio:.1} times that of the reference ({own_ms:.2} ms and {reference_ms:.2} ms)"),
        ..rule(limit)
    }
}

/// The time of the processor for one run. `None` if the run did not end by itself.
///
/// # Errors
/// The host failed, or the code cannot be run.
fn measured(
    task: &Task,
    code: &Code,
    values: &Values,
    processor: Option<Processor>,
) -> Result<Option<Duration>, Failed> {
    if vmm::host::interrupted() {
        return Err(Error::Interrupted.into());
    }
    let recorded = Recorded { modes: false, trace: false, setup: false };
    let run = guest::run(task, code, values, processor, recorded)?;
    Ok((status::of_report(&run.report) == status::OK).then_some(run.cpu_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_within_the_limit_passes() {
        let limit = TimeLimit { name: "a.bin".into(), reference: Vec::new(), at_most: 250, at: 0 };
        let check =
            |own, reference| result(&limit, Duration::from_millis(own), Duration::from_millis(reference));
        assert!(check(25, 10).passed && check(10, 10).passed);
        let failed = check(26, 10);
        assert!(!failed.passed);
        assert_eq!(
            failed.to_string(),
            "the time must be at most 2.5 times that of the reference, and is 2.6 times that of the reference (26.00 ms and \
             10.00 ms)"
        );
        // Small times are not exact.
        let micros = Duration::from_micros;
        assert!(result(&limit, micros(95), micros(1)).passed);
        assert!(!result(&limit, micros(105), micros(1)).passed);
        assert!(!result(&limit, Duration::MAX, Duration::from_nanos(1)).passed);
        assert!(!not_measured(&limit).passed);
    }
}
