//! The grade of a submission for an exercise in a file.

mod find;
mod run;

use crate::grade::output::Outputs;
use crate::grade::{GradeArgs, Settings, check_host, failed as no_grade, interrupted, milliseconds_since};
use crate::status::Failure;
use crate::streams::report_error;
use ::exercise::file::{CheckSpec, Task as TaskSpec};
use ::exercise::{Check, Exercise};
use grades::{Grade, Points, Task, Visibility};
use report::view::plural;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Instant;
use vmm::Error;
use vmm::host::printable_text;
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
    let started = Instant::now();
    let opened = submission(arguments)
        .map_err(Failure::from)
        .and_then(|submission| Ok((submission, Outputs::open(&arguments.output, 1, &arguments.inputs())?)));
    let (submission, outputs) = match opened {
        Ok(opened) => opened,
        Err(error) => return report_error(&error),
    };
    let settings = arguments.settings();
    let graded = check_host(settings).and_then(|()| grade(&exercise, &submission, seed, settings));
    let tasks = match graded {
        Ok(_) | Err(_) if vmm::host::interrupted() => return interrupted(),
        Ok(tasks) => tasks,
        Err(error) => return no_grade(&Failure::from(error)),
    };
    let graded = Grade {
        submission: arguments.submission(),
        exercise: printable_text(&exercise.name),
        seed,
        error: None,
        tasks,
        milliseconds: milliseconds_since(started),
    };
    outputs.write(&[graded], &format!("vmm: --seed {seed} repeats this grade\n"))
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
    let is_only =
        exercise.tasks.windows(2).all(|pair| matches!(pair, [one, other] if one.file == other.file));
    let mut tasks = Vec::new();
    for task in &exercise.tasks {
        let checks = match find::file(submission, &task.file, is_only) {
            Ok(file) => checks(task, &file, seed, settings.processor)?,
            Err(reason) => vec![failed(reason)],
        };
        let points = Points::whole(task.points);
        let costs = checks.iter().filter(|check| !check.passed);
        let cost: Points = costs.map(|check| check.cost.unwrap_or(points)).sum();
        let name = printable_text(&task.name);
        tasks.push(Task { name, points, earned: points.saturating_sub(cost), checks });
        if vmm::host::interrupted() {
            return Err(Error::Interrupted);
        }
    }
    Ok(tasks)
}

/// A failed check that costs all points.
fn failed(text: String) -> grades::Check {
    grades::Check { passed: false, name: String::new(), text, cost: None, visibility: Visibility::Shown }
}

/// Runs a file for a task, and checks the run.
///
/// # Errors
/// The host failed, or the exercise does not suit its own machine.
fn checks(
    task: &TaskSpec,
    file: &Path,
    seed: u64,
    processor: Option<Processor>,
) -> Result<Vec<grades::Check>, Error> {
    let results = match run::results(task, file, seed, processor) {
        Ok(results) => results,
        Err(run::Failed::Submission(reason)) => return Ok(vec![failed(reason)]),
        Err(run::Failed::Grade(error)) => return Err(error),
    };
    let cost = |end: &Check| if end.passed { "" } else { ALL };
    let of_end = |end: &Check| grades::Check { passed: end.passed, ..failed(format!("{end}{}", cost(end))) };
    let mut checks: Vec<grades::Check> = results.end.iter().map(of_end).collect();
    for (number, (spec, conditions)) in (1..).zip(task.checks.iter().zip(&results.checks)) {
        checks.push(of_check(spec, number, conditions));
    }
    Ok(checks)
}

/// The result of a check: the conditions that are not met, or all of them. A check whose details are hidden needs a name.
fn of_check(spec: &CheckSpec, number: usize, conditions: &[Check]) -> grades::Check {
    let passed = conditions.iter().all(|condition| condition.passed);
    let told = conditions.iter().filter(|condition| condition.passed == passed);
    let sentences: Vec<_> = told.map(ToString::to_string).collect();
    let mut text = sentences.join("; ");
    match spec.points {
        _ if passed => {}
        None => text += ALL,
        Some(points) => text += &format!("; costs {}", plural(points.into(), "point")),
    }
    let name = match (spec.visibility, spec.name.is_empty()) {
        (Visibility::Hidden | Visibility::AfterDeadline, true) => format!("check {number}"),
        _ => printable_text(&spec.name),
    };
    grades::Check { passed, name, text, cost: spec.points.map(Points::whole), visibility: spec.visibility }
}
