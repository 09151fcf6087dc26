//! `results.json` of Gradescope's autograder specification: a test for each task, and one for the details that a student does not
//! see.

use crate::clean::{NAME, TEXT, clean};
use crate::format::json::{escaped, joined, quoted};
use crate::format::{Format, Unwritable};
use crate::{Check, Grade, Options, Task, Visibility, view};

/// The results. Without a grade there are none: a score of 0 would be wrong.
pub fn results(grade: &Grade, options: Options) -> Result<String, Unwritable> {
    if let Some(error) = &grade.error {
        return Err(Unwritable::NotGraded(Format::Gradescope, clean(error, TEXT).into_owned()));
    }
    let options = options.for_student();
    let mut tests = Vec::new();
    for (number, (name, task)) in (1usize..).zip(view::tasks(grade)) {
        tests.push(test(&name, number, task, options));
        let hidden = view::checks(task).filter(|(_, check)| !options.shows(check));
        tests.extend((1usize..).zip(hidden).map(|(at, (check_name, check))| {
            details(&format!("{name}: {check_name}"), &format!("{number}.{at}"), check)
        }));
    }
    Ok(format!(
        "{{\n\"score\":{},\n\"execution_time\":{}.{:03},\n\"output\":{},\n\"output_format\":\"text\",\n\"visibility\":\"visible\",\n\
         \"stdout_visibility\":\"hidden\",\n\"tests\":[\n{}\n]}}\n",
        grade.earned(),
        grade.milliseconds / 1000,
        grade.milliseconds % 1000,
        quoted(&grade.exercise, NAME),
        joined(tests, ",\n")
    ))
}

/// The test of a task. Its lines are joined after each is cleaned, so that a text cannot add a line.
fn test(name: &str, number: usize, task: &Task, options: Options) -> String {
    let lines = task.checks.iter().map(|check| {
        let line = format!("{} {}", if check.passed { "+" } else { "-" }, options.sentence(check));
        escaped(&line, TEXT)
    });
    format!(
        "{{\"name\":{},\"number\":\"{number}\",\"score\":{},\"max_score\":{},\"status\":\"{}\",\"output\":\"{}\",\
         \"output_format\":\"text\",\"visibility\":\"visible\"}}",
        quoted(name, NAME),
        task.earned,
        task.points,
        if task.earned == task.points { "passed" } else { "failed" },
        joined(lines, "\\n"),
    )
}

/// A test without points: the details of a check that only the teacher sees, or that a student sees later.
fn details(name: &str, number: &str, check: &Check) -> String {
    let visibility = if check.visibility == Visibility::Hidden { "hidden" } else { "after_due_date" };
    format!(
        "{{\"name\":{},\"number\":\"{number}\",\"score\":0,\"max_score\":0,\"status\":\"{}\",\"output\":{},\
         \"output_format\":\"text\",\"visibility\":\"{visibility}\"}}",
        quoted(name, NAME),
        if check.passed { "passed" } else { "failed" },
        quoted(&check.text, TEXT),
    )
}
