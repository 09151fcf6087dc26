//! Text: the evidence of one submission, or a table of several.

use crate::clean::{NAME, clean};
use crate::{Grade, Options, Statistics, view};
use std::fmt::Write as _;

/// The most characters of a submission's name in a table.
const COLUMN: usize = 40;
/// The most characters of a task's name in a table.
const TASK_COLUMN: usize = 16;

/// The points and the evidence of a submission.
pub fn of_one(grade: &Grade, options: Options) -> String {
    if let Some(error) = options.error(grade) {
        return format!("not graded: {error}\n");
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    for task in &grade.tasks {
        let _ = write!(text, "{:>3}/{:<3} {}", task.earned, task.points, clean(&task.name, NAME));
        let indent = if task.name.is_empty() { "" } else { "\n        " };
        for check in &task.checks {
            let _ =
                write!(text, "{indent}{} {}", if check.passed { "+" } else { "-" }, options.sentence(check));
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{:>3}/{}", grade.earned(), grade.points());
    text
}

/// A table: a submission in each row, and the points of each task. Then the statistics.
pub fn table(grades: &[Grade]) -> String {
    let names = column_names(grades);
    let mut rows = vec![[&["submission".into()], &names[..], &["total".into()]].concat()];
    for grade in grades {
        let mut row = vec![clean(&grade.submission, COLUMN).into_owned()];
        match &grade.error {
            Some(error) => row.push(format!("not graded: {}", clean(error, NAME))),
            None => {
                row.extend(grade.tasks.iter().map(|task| format!("{}/{}", task.earned, task.points)));
                row.resize(names.len().saturating_add(1), String::new());
                row.push(format!("{}/{}", grade.earned(), grade.points()));
            }
        }
        rows.push(row);
    }
    let mut text = aligned(&rows);
    let all = Statistics::of(grades);
    let _ = write!(
        text,
        "{} submissions: mean {}, median {}, {} with all points",
        all.submissions, all.mean, all.median, all.full
    );
    text += &if all.not_graded > 0 { format!(", {} not graded\n", all.not_graded) } else { "\n".into() };
    text
}

/// The names of the tasks, from the grade that has most of them.
fn column_names(grades: &[Grade]) -> Vec<String> {
    let longest = grades.iter().max_by_key(|grade| grade.tasks.len());
    let tasks = longest.into_iter().flat_map(view::tasks);
    tasks.map(|(name, _)| clean(&name, TASK_COLUMN).into_owned()).collect()
}

/// Aligns rows: the first column to the left, and the others to the right. A row that was not graded has a text instead.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let full = rows.iter().filter(|row| row.len() == columns || column == 0);
        full.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (number, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match number {
                0 => write!(text, "{cell:<width$}"),
                _ if row.len() < columns => write!(text, "  {cell}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}
