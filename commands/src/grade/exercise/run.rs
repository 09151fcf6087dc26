//! One run of a submission's file for a task, and the checks of the run.

use super::guest::{self, GuestRun};
use super::{observed, time};
use crate::jail::JailArgs;
use crate::status;
use ::exercise::expect::Expectation;
use ::exercise::file::{Kind, Task};
use ::exercise::{Check, Facts};
use std::path::Path;
use vmm::Error;
use vmm::machine::Processor;

/// The results of a run.
pub struct Results {
    /// The end of the run. `None` if a check of the task is about it.
    pub end: Option<Check>,
    /// For each check of the task, its conditions.
    pub checks: Vec<Vec<Check>>,
}

/// The reason why a task has no results.
pub enum Failed {
    /// The submission's file cannot be run. The message is for the student.
    Submission(String),
    /// There is no grade.
    Grade(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Grade(error)
    }
}

/// The parts of a run that are recorded because checks need them.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The modes at exits.
    pub modes: bool,
    /// The first exits.
    pub trace: bool,
    /// The calls that build the machine of a VMM.
    #[cfg_attr(not(has_kvm), allow(dead_code, reason = "no program is observed there"))]
    pub setup: bool,
}

/// A mistake of the exercise.
pub fn mistake(task: &Task, what: &str) -> Failed {
    let name = vmm::host::printable_text(&task.name);
    Failed::Grade(Error::Config(format!("the task {name:?} of the exercise: {what}")))
}

/// Runs a file, and checks the run.
///
/// # Errors
/// The file cannot be run, the host failed, or the exercise does not suit its machine.
pub fn results(
    task: &Task,
    file: &Path,
    seed: u64,
    processor: Option<Processor>,
    jail: JailArgs,
) -> Result<Results, Failed> {
    let values = task.values(seed);
    let specs = task.checks.iter().map(|check| check.expectations(&values)).collect::<Result<Vec<_>, _>>();
    let specs = specs.map_err(|error| mistake(task, &error))?;
    let all = || specs.iter().flatten();
    let recorded = Recorded {
        modes: all().any(Expectation::needs_modes),
        trace: all().any(|one| matches!(one, Expectation::Exits(_))),
        setup: all().any(|one| matches!(one, Expectation::Setup(_))),
    };
    let has_end = all().any(|one| matches!(one, Expectation::End(_)));
    let (end, mut checks) = if task.settings.kind == Kind::Vmm {
        let memory: Vec<_> = all().filter_map(Expectation::memory).collect();
        let run = observed::run(task, file, &values, (processor, jail), recorded, &memory)?;
        (run.end(), check_all(&specs, &run.facts())?)
    } else {
        let mut run = guest::run(task, &guest::Code::File(file), &values, processor, recorded)?;
        let end = end(&run);
        (end, check_all(&specs, &run.facts()?)?)
    };
    for (check, spec) in checks.iter_mut().zip(&task.checks) {
        if let Some(limit) = &spec.time {
            check.push(match end.passed {
                true => time::check(task, limit, file, &values, processor)?,
                false => time::not_measured(limit),
            });
        }
    }
    Ok(Results { end: (!has_end).then_some(end), checks })
}

/// Checks the conditions of all checks.
///
/// # Errors
/// A signal asked the program to end.
fn check_all(specs: &[Vec<Expectation>], facts: &Facts) -> Result<Vec<Vec<Check>>, Failed> {
    let mut checks = Vec::new();
    for spec in specs {
        // A search in a long output takes a while.
        if vmm::host::interrupted() {
            return Err(Error::Interrupted.into());
        }
        checks.push(spec.iter().map(|one| one.check(facts)).collect());
    }
    Ok(checks)
}

/// The check that a guest has ended by itself.
fn end(run: &GuestRun) -> Check {
    Check {
        passed: status::of_report(&run.report) == status::OK,
        subject: "the run".into(),
        expected: "must end by itself (a halt, exit code 0, or a power-off)".into(),
        seen: format!("ended: {}", crate::summary::ending(&run.report)),
        possible: true,
    }
}
