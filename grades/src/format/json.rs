//! JSON: one document, or a line for each grade. Points are decimal numbers, and exact.

use crate::clean::{NAME, TEXT, clean};
use crate::{Check, Grade, Options, Statistics, Task};
use std::fmt::Write as _;

/// The version of the format. A reader refuses others.
pub const VERSION: u64 = 1;

/// A JSON string of a text.
pub fn quoted(text: &str, limit: usize) -> String {
    format!("\"{}\"", escaped(text, limit))
}

/// A text for a JSON string. It is cleaned first, so only quotes and backslashes need an escape.
pub fn escaped(text: &str, limit: usize) -> String {
    clean(text, limit).replace('\\', "\\\\").replace('"', "\\\"")
}

/// Items with commas between them.
pub fn joined(items: impl IntoIterator<Item = String>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

/// All grades, with their statistics.
pub fn document(grades: &[Grade], options: Options) -> String {
    let lines = joined(grades.iter().map(|grade| object(grade, options)), ",\n");
    let all = Statistics::of(grades);
    format!(
        "{{\"version\":{VERSION},\"grades\":[\n{lines}\n],\"statistics\":{{\"submissions\":{},\"not_graded\":{},\"full\":{},\
         \"mean\":{},\"median\":{},\"lowest\":{},\"highest\":{}}}}}\n",
        all.submissions, all.not_graded, all.full, all.mean, all.median, all.lowest, all.highest
    )
}

/// A grade, in one line without its end.
pub fn object(grade: &Grade, options: Options) -> String {
    let error = options.error(grade).map_or("null".into(), |error| quoted(&error, TEXT));
    format!(
        "{{\"version\":{VERSION},\"submission\":{},\"exercise\":{},\"seed\":{},\"points\":{},\"earned\":{},\"error\":{error},\
         \"milliseconds\":{},\"tasks\":[{}]}}",
        quoted(&grade.submission, NAME),
        quoted(&grade.exercise, NAME),
        grade.seed,
        grade.points(),
        grade.earned(),
        grade.milliseconds,
        joined(grade.tasks.iter().map(|task| task_object(task, options)), ",")
    )
}

fn task_object(task: &Task, options: Options) -> String {
    format!(
        "{{\"name\":{},\"points\":{},\"earned\":{},\"checks\":[{}]}}",
        quoted(&task.name, NAME),
        task.points,
        task.earned,
        joined(task.checks.iter().map(|check| check_object(check, options)), ",")
    )
}

fn check_object(check: &Check, options: Options) -> String {
    let mut object = format!(
        "{{\"passed\":{},\"name\":{},\"text\":{},\"cost\":",
        check.passed,
        quoted(&check.name, NAME),
        quoted(&options.text(check), TEXT)
    );
    // Writing to a String cannot fail.
    let _ = match check.cost {
        None => write!(object, "null"),
        Some(cost) => write!(object, "{cost}"),
    };
    object + ",\"visibility\":\"" + check.visibility.name() + "\"}"
}
