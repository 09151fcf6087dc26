//! Grades as text, for a student or for the teacher.

use grades::{Check, Grade, Points, Visibility};
use report::view::plural;
use std::fmt::Write as _;

/// The reader of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Does not see the details of hidden checks.
    Student,
    /// Sees all details.
    Teacher,
}

/// The points and the evidence of a grade.
pub fn of_grade(grade: &Grade, reader: Reader) -> String {
    if let Some(error) = &grade.error {
        return match reader {
            Reader::Teacher => format!("no grade: {error}\n"),
            Reader::Student => "no grade: the grading failed\n".into(),
        };
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    for task in &grade.tasks {
        let _ = writeln!(text, "{:>3}/{:<3} {}", task.earned, task.points, task.name);
        for check in &task.checks {
            let sign = if check.passed { "+" } else { "-" };
            let _ = writeln!(text, "        {sign} {}", of_check(check, reader));
        }
    }
    let _ = writeln!(text, "{:>3}/{}", grade.earned(), grade.points());
    text
}

fn of_check(check: &Check, reader: Reader) -> String {
    let name = match check.visibility {
        Visibility::Shown => check.name.clone(),
        Visibility::Hidden | Visibility::AfterDeadline => format!("{} (hidden)", check.name),
    };
    match (check.visibility, reader) {
        (Visibility::Hidden | Visibility::AfterDeadline, Reader::Student) => name + &cost(check),
        _ if name.is_empty() => check.text.clone(),
        _ => format!("{name}: {}", check.text),
    }
}

/// The cost of a failed check. The sentence that a student does not see has it, too.
fn cost(check: &Check) -> String {
    match check.cost {
        _ if check.passed => String::new(),
        None => "; costs all points of the task".into(),
        Some(points) if points == Points::whole(1) => "; costs 1 point".into(),
        Some(points) => format!("; costs {points} points"),
    }
}

/// The widest column of a task.
const MAX_TASK: usize = 20;
/// The widest column of names.
const MAX_NAME: usize = 50;

/// A table of the grades: the points of each task and of all, with means and medians.
pub fn table(grades: &[Grade]) -> String {
    let Some(first) = grades.iter().find(|grade| grade.error.is_none()) else {
        return "no submission has a grade\n".into();
    };
    let names: Vec<String> = first.tasks.iter().map(|task| shortened(&task.name, MAX_TASK)).collect();
    let titles = ["submission".to_string()].into_iter().chain(names).chain(["total".into()]);
    let mut rows: Vec<Vec<String>> = vec![titles.collect()];
    let columns: Vec<Vec<Points>> = columns(grades, first.tasks.len());
    for grade in grades {
        let mut row = vec![shortened(&grade.submission, MAX_NAME)];
        match grade.error {
            Some(_) => row.extend(std::iter::repeat_n("-".into(), columns.len())),
            None => {
                row.extend(grade.tasks.iter().map(|task| task.earned.to_string()));
                row.push(format!("{}/{}", grade.earned(), grade.points()));
            }
        }
        rows.push(row);
    }
    for (name, value) in [("mean", mean as fn(&[Points]) -> Points), ("median", median)] {
        let values = columns.iter().map(|column| value(column).to_string());
        rows.push([name.to_string()].into_iter().chain(values).collect());
    }
    let mut text = aligned(&rows);
    let without = grades.iter().filter(|grade| grade.error.is_some()).count();
    if without > 0 {
        let all = plural(grades.len() as u64, "submission");
        let _ = writeln!(text, "{without} of {all} {} no grade", if without == 1 { "has" } else { "have" });
    }
    text
}

/// The points of each task, and of all tasks, of the submissions that have a grade.
fn columns(grades: &[Grade], tasks: usize) -> Vec<Vec<Points>> {
    let graded = || grades.iter().filter(|grade| grade.error.is_none());
    let of_task = |number: usize| {
        graded().map(|grade| grade.tasks.get(number).map_or(Points::ZERO, |task| task.earned)).collect()
    };
    (0..tasks).map(of_task).chain([graded().map(Grade::earned).collect()]).collect()
}

fn mean(points: &[Points]) -> Points {
    let sum = points.iter().copied().sum::<Points>().hundredths();
    let count = points.len() as u64;
    // Rounded to the nearest hundredth.
    let rounded = sum.saturating_add(count / 2).checked_div(count);
    Points::from_hundredths(rounded.unwrap_or(0))
}

fn median(points: &[Points]) -> Points {
    let mut sorted = points.to_vec();
    vmm::host::sort_by_key(&mut sorted, |points| *points);
    let upper = sorted.len() / 2;
    let lower = sorted.len().saturating_sub(1) / 2;
    let middle: Vec<Points> = [lower, upper].iter().filter_map(|at| sorted.get(*at).copied()).collect();
    mean(&middle)
}

/// Rows as lines, with columns of equal width.
fn aligned(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        for (number, (width, cell)) in widths.iter().zip(row).enumerate() {
            let _ = match number {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

/// A text with at most so many characters: its end is kept.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.into();
    }
    let skipped = count.saturating_sub(most).saturating_add(3);
    format!("...{}", text.chars().skip(skipped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use grades::Task;

    fn check(passed: bool, cost: Option<u32>, visibility: Visibility) -> Check {
        let name = if visibility == Visibility::Shown { "" } else { "check 2" };
        Check {
            passed,
            name: name.into(),
            text: "42 was seen".into(),
            cost: cost.map(Points::whole),
            visibility,
        }
    }

    fn grade(name: &str, earned: &[u32]) -> Grade {
        let task = |earned: &u32| Task {
            name: "numbers".into(),
            points: Points::whole(10),
            earned: Points::whole(*earned),
            checks: vec![
                check(true, None, Visibility::Shown),
                check(false, Some(1), Visibility::Hidden),
                check(false, Some(3), Visibility::AfterDeadline),
                check(false, None, Visibility::Shown),
            ],
        };
        Grade {
            submission: name.into(),
            exercise: "e".into(),
            seed: 1,
            error: None,
            tasks: earned.iter().map(task).collect(),
            milliseconds: 1,
        }
    }

    #[test]
    fn only_the_teacher_sees_hidden_details() {
        let student = of_grade(&grade("a", &[6]), Reader::Student);
        assert_eq!(
            student,
            "  6/10  numbers\n        + 42 was seen\n        - check 2 (hidden); costs 1 point\n        - check 2 (hidden); costs 3 points\n        \
             - 42 was seen\n  6/10\n"
        );
        let teacher = of_grade(&grade("a", &[6]), Reader::Teacher);
        assert!(teacher.contains("- check 2 (hidden): 42 was seen\n"), "{teacher}");
        let failed = Grade { error: Some("secret".into()), ..grade("a", &[]) };
        assert_eq!(of_grade(&failed, Reader::Student), "no grade: the grading failed\n");
        assert_eq!(of_grade(&failed, Reader::Teacher), "no grade: secret\n");
    }

    #[test]
    fn the_table_has_means_and_medians_of_the_graded() {
        let failed = Grade { error: Some("x".into()), tasks: Vec::new(), ..grade("cy", &[]) };
        let all = [grade("ana", &[10, 4]), grade("b", &[5, 4]), failed, grade("d", &[0, 3])];
        assert_eq!(
            table(&all),
            "submission  numbers  numbers  total\n\
             ana              10        4  14/20\n\
             b                 5        4   9/20\n\
             cy                -        -      -\n\
             d                 0        3   3/20\n\
             mean              5     3.67   8.67\n\
             median            5        4      9\n\
             1 of 4 submissions has no grade\n"
        );
        assert_eq!(median(&[Points::whole(1), Points::whole(2)]).to_string(), "1.5");
        assert_eq!(table(&[]), "no submission has a grade\n");
        let long = table(&[grade(&"x".repeat(99), &[1])]);
        assert!(long.lines().all(|line| line.len() < 80), "{long}");
    }
}
