//! CSV as in RFC 4180: a submission in each row, and a column for each task.

use crate::clean::{NAME, clean};
use crate::format::json::joined;
use crate::{Grade, Points, view};

/// The table of grades. It has no evidence, and so nothing that is hidden.
pub fn table(grades: &[Grade]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in grades.iter().flat_map(view::tasks) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let fixed = ["submission", "exercise", "seed", "earned", "points", "milliseconds", "not graded"]
        .map(String::from);
    let heads = names.iter().map(|name| format!("task {name}"));
    let mut table = row(fixed.into_iter().chain(heads));
    for grade in grades {
        let points = |points: Points| if grade.error.is_some() { String::new() } else { points.to_string() };
        let cells = [
            grade.submission.clone(),
            grade.exercise.clone(),
            grade.seed.to_string(),
            points(grade.earned()),
            points(grade.points()),
            grade.milliseconds.to_string(),
            grade.error.clone().unwrap_or_default(),
        ];
        let earned = names.iter().map(|name| {
            let task = view::tasks(grade).find(|(one, _)| one == name);
            task.map_or(String::new(), |(_, task)| points(task.earned))
        });
        table += &row(cells.into_iter().chain(earned));
    }
    table
}

fn row(cells: impl Iterator<Item = String>) -> String {
    joined(cells.map(|text| cell(&text)), ",") + "\r\n"
}

/// A cell. A spreadsheet would compute a text that begins as a formula, so such a text gets an apostrophe.
fn cell(text: &str) -> String {
    let text = clean(text, NAME);
    let is_formula = text.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let apostrophe = if is_formula { "'" } else { "" };
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{apostrophe}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{apostrophe}{text}")
    }
}
