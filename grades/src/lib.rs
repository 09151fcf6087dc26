//! The grades of submissions: a model that every format is written from.
//!
//! A grade has tasks, and a task has checks. The model knows no guest and no exercise.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

mod clean;
mod feedback;
mod format;
mod points;
mod read;
mod statistics;
mod view;

pub use feedback::feedback;
pub use format::{Format, Stream, Unwritable};
pub use points::Points;
pub use statistics::Statistics;
pub use view::{Options, View};

/// The grade of one submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// The name of the submission: its path as the teacher gave it, with escapes instead of control characters.
    pub submission: String,
    /// The name of the exercise.
    pub exercise: String,
    /// The seed of the random numbers. The same seed gives the same points.
    pub seed: u64,
    /// The reason why there are no points, such as a failure of the host. `None` if the submission was graded.
    pub error: Option<String>,
    /// The tasks of the exercise, in its order. Empty with an error.
    pub tasks: Vec<Task>,
    /// The time that grading took, in milliseconds.
    pub milliseconds: u64,
}

/// A task of a graded submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The name of the task. It may be empty: texts then have no heading for it.
    pub name: String,
    /// The most points that the task can earn.
    pub points: Points,
    /// The points that it has earned.
    pub earned: Points,
    /// The checks, in the order of the exercise.
    pub checks: Vec<Check>,
}

/// A check of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// True if the check passed.
    pub passed: bool,
    /// The name of the check. Empty if it has none. A check that is not [`Shown`](Visibility::Shown) has one.
    pub name: String,
    /// One sentence: what was expected, and what was seen; then the cost, if the check failed. For the teacher: see
    /// [`Check::visibility`].
    pub text: String,
    /// The points that the check costs if it fails. `None` if it costs all points of the task.
    pub cost: Option<Points>,
    /// The details that a student sees.
    pub visibility: Visibility,
}

/// The details of a check that a student sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// The sentence with what was expected and what was seen.
    #[default]
    Shown,
    /// Only if the check passed, and its name.
    Hidden,
    /// As for `Hidden` until the deadline of the exercise, then as for `Shown`.
    AfterDeadline,
}

impl Visibility {
    /// All of them, with the names that exercises and results have.
    pub const NAMES: [(&'static str, Self); 3] =
        [("shown", Self::Shown), ("hidden", Self::Hidden), ("after-deadline", Self::AfterDeadline)];

    /// The name of this one.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(one, _)| *one == name).map(|(_, one)| *one)
    }
}

impl Grade {
    /// True if the submission was graded, and has all points.
    pub fn is_full(&self) -> bool {
        self.error.is_none() && self.earned() == self.points()
    }

    /// The points that the submission has earned.
    pub fn earned(&self) -> Points {
        self.tasks.iter().map(|task| task.earned).sum()
    }

    /// The most points that it can earn.
    pub fn points(&self) -> Points {
        self.tasks.iter().map(|task| task.points).sum()
    }
}
