//! The grade of a submission for an exercise in a file, in this process.

pub(super) mod find;
mod guest;
#[cfg(has_kvm)]
mod image_file;
#[cfg_attr(not(has_kvm), path = "observed_absent.rs")]
mod observed;
mod run;
mod time;

use crate::grade::Settings;
use crate::jail::JailArgs;
use ::exercise::file::{CheckSpec, Task as TaskSpec};
use ::exercise::{Check, Exercise};
use grades::{Points, Task, Visibility};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use vmm::Error;
use vmm::host::{printable, printable_text};
use vmm::machine::Processor;

/// The cost of a failed check without points of its own.
const ALL: &str = "; costs all points of the task";

/// Grades a submission. The same seed gives the same points.
///
/// # Errors
/// The host failed, or the exercise does not suit its own machine.
pub(super) fn grade(
    exercise: &Exercise,
    submission: &Path,
    seed: u64,
    settings: Settings,
    jail: JailArgs,
) -> Result<Vec<Task>, Error> {
    let exercise = exercise.clone().at(SystemTime::now());
    let is_only =
        exercise.tasks.windows(2).all(|pair| matches!(pair, [one, other] if one.file == other.file));
    // The folder of a file has the other submissions.
    let jail = jail.in_folder(!submission.is_dir());
    let mut tasks = Vec::new();
    for task in &exercise.tasks {
        let checks = match find::file(submission, &task.file, is_only) {
            Ok(file) => checks(task, &file, seed, (settings.processor, jail))?,
            Err(reason) => vec![failed(reason)],
        };
        let points = task.worth(task.points);
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
    (processor, jail): (Option<Processor>, JailArgs),
) -> Result<Vec<grades::Check>, Error> {
    let results = match run::results(task, file, seed, processor, jail) {
        Ok(results) => results,
        Err(run::Failed::Submission(reason)) => return Ok(vec![failed(for_student(&reason, task, file))]),
        Err(run::Failed::Grade(error)) => return Err(error),
    };
    let cost = |end: &Check| if end.passed { "" } else { ALL };
    let of_end = |end: &Check| grades::Check { passed: end.passed, ..failed(format!("{end}{}", cost(end))) };
    let mut checks: Vec<grades::Check> = results.end.iter().map(of_end).collect();
    for (number, (spec, conditions)) in (1..).zip(task.checks.iter().zip(&results.checks)) {
        let cost = spec.points.map(|points| task.worth(points));
        checks.push(of_check(spec, number, conditions, cost));
    }
    for check in &mut checks {
        check.text = for_student(&check.text, task, file);
    }
    Ok(checks)
}

/// A sentence with the words that a student knows: the keys of the exercise and no options, and the file of the submission without
/// the folder in which it is graded.
fn for_student(sentence: &str, task: &TaskSpec, file: &Path) -> String {
    const KEYS: [(&str, &str); 3] = [
        ("(--timeout)", "(timeout of the exercise)"),
        ("(--wall-timeout)", "(6 times the timeout of the exercise)"),
        ("(--output-limit; 0 means no limit)", "(output_limit of the exercise)"),
    ];
    let parts = Path::new(&task.file).components().count().max(1);
    let above = file.components().count().saturating_sub(parts);
    let shown: PathBuf = file.components().skip(above).collect();
    let paths = std::path::absolute(file).into_iter().chain([file.to_owned()]);
    let text =
        paths.fold(sentence.to_string(), |text, path| text.replace(&printable(&path), &printable(&shown)));
    KEYS.into_iter().fold(text, |text, (option, key)| text.replace(option, key))
}

/// The result of a check: the conditions that are not met, or all of them. A check whose details are hidden needs a name.
fn of_check(spec: &CheckSpec, number: usize, conditions: &[Check], cost: Option<Points>) -> grades::Check {
    let passed = conditions.iter().all(|condition| condition.passed);
    let told = conditions.iter().filter(|condition| condition.passed == passed);
    let sentences: Vec<_> = told.map(ToString::to_string).collect();
    let mut text = sentences.join("; ");
    match cost {
        _ if passed => {}
        None => text += ALL,
        Some(cost) if cost == Points::whole(1) => text += "; costs 1 point",
        Some(cost) => text += &format!("; costs {cost} points"),
    }
    let name = match (spec.visibility, spec.name.is_empty()) {
        (Visibility::Hidden | Visibility::AfterDeadline, true) => format!("check {number}"),
        _ => printable_text(&spec.name),
    };
    grades::Check { passed, name, text, cost, visibility: spec.visibility }
}
