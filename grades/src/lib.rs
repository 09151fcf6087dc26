//! The grades of submissions: a model that every format is written from.
//!
//! A grade has tasks, and a task has checks. The model knows no guest and no exercise.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

mod points;

pub use points::Points;
use serde::{Deserialize, Serialize};

/// The grade of one submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The name of the task.
    pub name: String,
    /// The most points that the task can earn.
    pub points: Points,
    /// The points that it has earned.
    pub earned: Points,
    /// The checks, in the order of the exercise.
    pub checks: Vec<Check>,
}

/// A check of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// True if the check passed.
    pub passed: bool,
    /// The name of the check. Empty if the exercise gives it none.
    pub name: String,
    /// One sentence: what was expected, and what was seen. For the teacher: see [`Check::visibility`].
    pub text: String,
    /// The points that the check costs if it fails. `None` if it costs all points of the task.
    pub cost: Option<Points>,
    /// The details that a student sees.
    pub visibility: Visibility,
}

/// The details of a check that a student sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// What was expected and what was seen.
    #[default]
    Shown,
    /// Only if the check passed, and its name.
    Hidden,
    /// As for `Hidden` until the deadline of the exercise, then as for `Shown`.
    AfterDeadline,
}

impl Grade {
    /// The points that the submission has earned.
    pub fn earned(&self) -> Points {
        self.tasks.iter().map(|task| task.earned).sum()
    }

    /// The most points that it can earn.
    pub fn points(&self) -> Points {
        self.tasks.iter().map(|task| task.points).sum()
    }
}
