//! The parts of a grade that a reader sees.

use crate::clean::{NAME, TEXT, clean};
use crate::{Check, Grade, Task, Visibility};

/// The reader of a grade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Sees all details.
    #[default]
    Teacher,
    /// Sees what the [`Visibility`] of each check allows.
    Student,
}

/// The options of a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The reader. [`Format::Gradescope`](crate::Format::Gradescope), `Github` and `Vmchecker` always show students their view.
    pub view: View,
    /// True if the deadline of the exercise has passed, so that students see the checks of [`Visibility::AfterDeadline`].
    pub deadline_passed: bool,
}

impl Options {
    /// True if the reader sees the details of a check.
    pub(crate) fn shows(self, check: &Check) -> bool {
        match check.visibility {
            _ if self.view == View::Teacher => true,
            Visibility::Shown => true,
            Visibility::Hidden => false,
            Visibility::AfterDeadline => self.deadline_passed,
        }
    }

    /// The sentence of a check as the reader sees it. It has no name.
    pub(crate) fn text(self, check: &Check) -> String {
        match self.shows(check) {
            true => clean(&check.text, TEXT).into_owned(),
            false => String::new(),
        }
    }

    /// The name and the sentence of a check as the reader sees them. A hidden check says its cost, if it failed.
    pub(crate) fn sentence(self, check: &Check) -> String {
        let name = clean(&check.name, NAME);
        match (self.shows(check), name.is_empty()) {
            (true, true) => self.text(check),
            (true, false) => format!("{name}: {}", self.text(check)),
            (false, _) => format!("{} (hidden){}", name, cost(check)),
        }
    }

    /// The reason why a submission was not graded, as the reader sees it. A student sees nothing of the host.
    pub(crate) fn error(self, grade: &Grade) -> Option<String> {
        let error = grade.error.as_ref()?;
        Some(match self.view {
            View::Teacher => clean(error, TEXT).into_owned(),
            View::Student => "the grading failed".into(),
        })
    }

    /// The same options for a student.
    pub(crate) fn for_student(self) -> Self {
        Self { view: View::Student, ..self }
    }
}

/// The cost of a failed check.
fn cost(check: &Check) -> String {
    match check.cost {
        _ if check.passed => String::new(),
        None => "; costs all points of the task".into(),
        Some(cost) => {
            format!("; costs {cost} {}", if cost == crate::Points::whole(1) { "point" } else { "points" })
        }
    }
}

/// The tasks of a grade, with names. A task without a name is called by its number.
pub(crate) fn tasks(grade: &Grade) -> impl Iterator<Item = (String, &Task)> {
    (1..).zip(&grade.tasks).map(|(number, task)| (named(&task.name, "task", number), task))
}

/// The checks of a task, with names. A check without a name is called by its place: "check 2" would be the name of a hidden check
/// without one.
pub(crate) fn checks(task: &Task) -> impl Iterator<Item = (String, &Check)> {
    (1..).zip(&task.checks).map(|(number, check)| (named(&check.name, "evidence", number), check))
}

fn named(name: &str, kind: &str, number: usize) -> String {
    if name.is_empty() { format!("{kind} {number}") } else { clean(name, NAME).into_owned() }
}
