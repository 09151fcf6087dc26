//! The grade of a submission for an exercise in a file.

mod find;
mod guest;
#[cfg_attr(not(has_kvm), path = "observed_absent.rs")]
mod observed;
mod run;
mod time;

use crate::grade::points::{Evidence, Task, as_text, wrong};
use crate::grade::{GradeArgs, Settings, check_host, failed, interrupted};
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout};
use ::exercise::file::{CheckSpec, Task as TaskSpec};
use ::exercise::{Check, Exercise};
use grades::{Points, Visibility};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use vmm::Error;
use vmm::machine::Processor;

/// The cost of a failed check without points of its own.
const ALL: &str = "; costs all points of the task";

/// Grades a submission, and prints the result. Returns the exit status.
pub(super) fn main(file: &Path, arguments: &GradeArgs) -> u8 {
    let exercise = match crate::exercise::open(file) {
        Ok(exercise) => exercise,
        Err(status) => return status,
    };
    let seed = arguments.vmm.seed;
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) & u64::from(u32::MAX));
    let graded = submission(arguments).and_then(|submission| {
        let settings = arguments.settings();
        check_host(settings)?;
        grade(&exercise, &submission, seed, settings)
    });
    let tasks = match graded {
        Ok(_) | Err(_) if vmm::host::interrupted() => return interrupted(),
        Ok(tasks) => tasks,
        Err(error) => return failed(&Failure::from(error)),
    };
    let earned = tasks.iter().map(Task::earned).sum();
    let points = exercise.points();
    let printed = print_stdout(&as_text(&tasks, earned, points));
    print_stderr(&format!("vmm: --seed {seed} repeats this grade\n"));
    match printed {
        status::OK if earned == points => status::OK,
        status::OK => status::WRONG_RESULT,
        failed => failed,
    }
}

/// The submission: a directory, or a file.
///
/// # Errors
/// There is none, or an option is for other grades.
fn submission(arguments: &GradeArgs) -> Result<PathBuf, Error> {
    if let Some(option) = arguments.foreign_to_exercises() {
        let what =
            format!("{option} is not for an exercise in a file, which has its own settings: leave it out");
        return Err(Error::Config(what));
    }
    let Some(path) = arguments.vmm.program().map(PathBuf::from) else {
        let what =
            "there is nothing to grade: give the submission, a directory or a file, after the exercise";
        return Err(Error::Config(what.into()));
    };
    if !path.exists() {
        let name = vmm::host::printable(&path);
        return Err(Error::Config(format!("there is no submission {name}: give a directory or a file")));
    }
    Ok(path)
}

/// Grades a submission. The same seed gives the same points.
///
/// # Errors
/// The host failed, or the exercise does not suit its own machine.
fn grade(exercise: &Exercise, submission: &Path, seed: u64, settings: Settings) -> Result<Vec<Task>, Error> {
    let exercise = exercise.clone().at(SystemTime::now());
    let is_only =
        exercise.tasks.windows(2).all(|pair| matches!(pair, [one, other] if one.file == other.file));
    let mut tasks = Vec::new();
    for task in &exercise.tasks {
        let evidence = match find::file(submission, &task.file, is_only) {
            Ok(file) => evidence(task, &file, seed, settings.processor)?,
            Err(reason) => vec![wrong(reason)],
        };
        tasks.push(Task {
            title: vmm::host::printable_text(&task.name).into(),
            points: task.worth(task.points),
            evidence,
        });
        if vmm::host::interrupted() {
            return Err(Error::Interrupted);
        }
    }
    Ok(tasks)
}

/// Runs a file for a task, and checks the run.
///
/// # Errors
/// The host failed, or the exercise does not suit its own machine.
fn evidence(
    task: &TaskSpec,
    file: &Path,
    seed: u64,
    processor: Option<Processor>,
) -> Result<Vec<Evidence>, Error> {
    let results = match run::results(task, file, seed, processor) {
        Ok(results) => results,
        Err(run::Failed::Submission(reason)) => return Ok(vec![wrong(reason)]),
        Err(run::Failed::Grade(error)) => return Err(error),
    };
    let mut evidence: Vec<Evidence> = results.end.iter().map(of_end).collect();
    for (number, (spec, checks)) in (1..).zip(task.checks.iter().zip(&results.checks)) {
        evidence.push(of_check(spec, number, checks, spec.points.map(|points| task.worth(points))));
    }
    Ok(evidence)
}

/// The evidence of the end of a run.
fn of_end(end: &Check) -> Evidence {
    let cost = if end.passed { "" } else { ALL };
    Evidence::new(end.passed, format!("{end}{cost}"))
}

/// The evidence of a check: the conditions that are not met, or all of them.
fn of_check(spec: &CheckSpec, number: usize, checks: &[Check], cost: Option<Points>) -> Evidence {
    let passed = checks.iter().all(|check| check.passed);
    let told = checks.iter().filter(|check| check.passed == passed);
    let sentences: Vec<_> = told.map(ToString::to_string).collect();
    let name = vmm::host::printable_text(&spec.name);
    let mut text = match (spec.visibility, name.is_empty()) {
        (Visibility::Shown, true) => sentences.join("; "),
        (Visibility::Shown, false) => format!("{name}: {}", sentences.join("; ")),
        (_, true) => format!("check {number} (hidden)"),
        (_, false) => format!("{name} (hidden)"),
    };
    match cost {
        _ if passed => {}
        None => text += ALL,
        Some(cost) if cost == Points::whole(1) => text += "; costs 1 point",
        Some(cost) => text += &format!("; costs {cost} points"),
    }
    Evidence { right: passed, text, cost, is_step: true }
}
