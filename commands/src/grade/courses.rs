//! The built-in courses: exercises in files that are a part of the program. Their tasks have helpers, which run them and decide the
//! steps of their checks.

use crate::grade::{Evidence, Task};
use ::exercise::Exercise;
use ::exercise::file::Task as TaskSpec;
use ::exercise::read::Files;
use grades::Points;
use std::sync::OnceLock;
use vmm::Error;

/// A course: its name, and its file.
struct Source(&'static str, &'static str);

const SO2: Source = Source("so2", include_str!("courses/so2.toml"));
const KEV: Source = Source("kev", include_str!("courses/kev.toml"));

/// The SO2 assignment.
///
/// # Errors
/// Its file has a mistake, which a test prevents.
pub(super) fn so2() -> Result<&'static Exercise, Error> {
    static COURSE: OnceLock<Result<Exercise, String>> = OnceLock::new();
    parsed(&COURSE, &SO2)
}

/// Project 2 of the KeV course.
///
/// # Errors
/// Its file has a mistake, which a test prevents.
pub(super) fn kev() -> Result<&'static Exercise, Error> {
    static COURSE: OnceLock<Result<Exercise, String>> = OnceLock::new();
    parsed(&COURSE, &KEV)
}

fn parsed(
    course: &'static OnceLock<Result<Exercise, String>>,
    source: &Source,
) -> Result<&'static Exercise, Error> {
    let parse = || {
        Exercise::parse(source.1, Files::Embedded(&[])).map_err(|problems| {
            let first = problems.into_iter().next().map(|problem| problem.message).unwrap_or_default();
            format!("the course {} of this program is damaged: {first}", source.0)
        })
    };
    course.get_or_init(parse).as_ref().map_err(|error| Error::Config(error.clone()))
}

/// The task of a course that has this helper.
///
/// # Errors
/// There is none.
pub(super) fn task(course: &'static Exercise, helper: &str) -> Result<&'static TaskSpec, Error> {
    let task = course.tasks.iter().find(|task| task.helper.as_deref() == Some(helper));
    task.ok_or_else(|| Error::Config(format!("the course {} of this program has no {helper}", course.name)))
}

/// The error for a task whose helper this program does not have.
pub(super) fn no_helper(task: &TaskSpec) -> Error {
    Error::Config(format!("this program has no helper for the task {}", task.name))
}

/// The points of a step; those of the task if the file gives it none.
pub(super) fn cost(task: &TaskSpec, step: &str) -> Points {
    let points = task.step(step).and_then(|check| check.points);
    task.worth(points.unwrap_or(task.points))
}

/// The text that the output of a step must contain.
pub(super) fn text<'a>(task: &'a TaskSpec, step: &str) -> &'a str {
    task.step(step).and_then(|check| check.contained()).unwrap_or_default()
}

/// A graded task.
pub(super) fn graded(task: &'static TaskSpec, evidence: Vec<Evidence>) -> Task {
    Task { title: task.name.as_str().into(), points: task.worth(task.points), evidence }
}

/// A graded task that has its evidence on the line of its points.
pub(super) fn graded_line(task: &TaskSpec, evidence: Evidence) -> Task {
    Task { title: "".into(), points: task.worth(task.points), evidence: vec![evidence] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_courses_are_right() {
        let points = |course: Result<&Exercise, Error>| course.unwrap().points().to_string();
        assert_eq!((points(so2()), points(kev())), ("100".into(), "100".into()));
        for task in &kev().unwrap().tasks {
            let is_guest = ["kev-guest", "kev-vmm"].contains(&task.helper.as_deref().unwrap());
            assert_eq!(guest::find(&task.name).is_some(), is_guest, "{}", task.name);
            let sites: usize = task.checks.iter().map(|check| check.sites().len()).sum();
            let texts: usize =
                task.checks.iter().map(|check| check.expectations(&Vec::new()).unwrap().len()).sum();
            assert!(
                sites == texts && (sites > 0) == is_guest,
                "{}: an exit needs a place and a width",
                task.name
            );
        }
    }

    #[test]
    fn each_step_that_the_helpers_decide_is_in_the_file() {
        for (helper, steps) in [
            ("so2-real", &["entry", "text", "result", "end"][..]),
            ("so2-wide", &["entry", "text"]),
            ("so2-simvirtio", &["magic", "reset", "config", "ready", "message", "queues"]),
            ("so2-polling", &["exits", "message", "queues"]),
            ("so2-counting", &["numbers"]),
        ] {
            let task = task(so2().unwrap(), helper).unwrap();
            let named: Vec<_> = task.checks.iter().filter_map(|check| check.step.as_deref()).collect();
            assert_eq!(named, steps, "{helper}");
        }
    }
}
