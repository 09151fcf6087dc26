//! Exercises in files. docs/exercises.md describes the format.

mod check;
mod deadline;
mod fields;
mod guest_image;
mod random;
mod settings;
mod task;

pub use check::{CheckSpec, TimeLimit};
pub use guest_image::GuestImage;
pub use settings::{Kind, Settings};
pub use task::{Input, Task};

use crate::read::{Files, read_file};
use crate::toml::{self, Problem};
use fields::Fields;
use grades::{Points, Visibility};
use std::fmt;
use std::path::Path;
use std::time::SystemTime;
use vmm::host::{printable, printable_text, sort_by_key};

/// The version of the format.
pub const VERSION: u64 = 1;
/// The longest file.
const MAX_FILE: usize = 1 << 20;
/// The most tasks of an exercise.
const MAX_TASKS: usize = 64;
/// The most mistakes that are reported.
const MAX_PROBLEMS: usize = 20;

/// An example with comments, which `vmm exercise new` writes.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The keys of an exercise.
pub const KEYS: [&str; 6] = ["version", "name", "description", "deadline", "run", "task"];
pub use check::KEYS as CHECK_KEYS;
pub use settings::KEYS as RUN_KEYS;
pub use task::OWN_KEYS as TASK_KEYS;

/// An exercise.
#[derive(Clone, Debug)]
pub struct Exercise {
    /// Its name.
    pub name: String,
    /// A description for readers of the file. It may be empty.
    pub description: String,
    /// The end of the time for submissions.
    pub deadline: Option<SystemTime>,
    /// Its tasks.
    pub tasks: Vec<Task>,
    source: Source,
}

/// The file of an exercise, for messages with places in it. The debug text leaves it out: two
/// files with the same tasks have the same exercise.
#[derive(Clone, Default)]
struct Source {
    name: String,
    text: String,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Exercise {
    /// Reads an exercise.
    ///
    /// # Errors
    /// The file cannot be read, or has mistakes: a line for each, with the place.
    pub fn open(path: &Path) -> Result<Self, Vec<String>> {
        let name = printable(path);
        let bytes =
            read_file(path, MAX_FILE).map_err(|error| vec![format!("cannot read {name}: {error}")])?;
        let text = String::from_utf8(bytes).map_err(|_| vec![format!("{name} is not UTF-8 text")])?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match Self::parse(&text, Files::Folder(folder)) {
            Ok(exercise) => Ok(Self { source: Source { name, text }, ..exercise }),
            Err(problems) => Err(problems.iter().map(|problem| line(&name, &text, problem)).collect()),
        }
    }

    /// A mistake as a line, with its place in the file.
    pub fn line(&self, problem: &Problem) -> String {
        line(&self.source.name, &self.source.text, problem)
    }

    /// The exercise as it is at this time: after the deadline, checks show details that they did not show before.
    #[must_use]
    pub fn at(mut self, now: SystemTime) -> Self {
        if self.deadline.is_some_and(|deadline| deadline < now) {
            let checks = self.tasks.iter_mut().flat_map(|task| &mut task.checks);
            let late = checks.filter(|check| check.visibility == Visibility::AfterDeadline);
            late.for_each(|check| check.visibility = Visibility::Shown);
        }
        self
    }

    /// Parses an exercise, which names some of these files.
    ///
    /// # Errors
    /// It has mistakes.
    pub fn parse(text: &str, files: Files) -> Result<Self, Vec<Problem>> {
        let root = toml::parse(text)?;
        let mut problems = Vec::new();
        let fields = Fields::new(&root, 0, &KEYS, &mut problems);
        if fields.get("version").is_none() {
            problems.push(Problem::new(0, format!("version is missing: write version = {VERSION}")));
        }
        fields.number("version", VERSION, VERSION, &mut problems);
        let name = fields.needed_text("name", &mut problems).map_or("", |(name, _)| name);
        let description = fields.text("description", &mut problems).map_or("", |(text, _)| text);
        let deadline = fields.text("deadline", &mut problems).and_then(|(text, at)| {
            deadline::parse(text).map_err(|error| problems.push(Problem::new(at, error))).ok()
        });
        let defaults = match fields.table("run", &mut problems) {
            Some((table, at)) => {
                let fields = Fields::new(table, at, &RUN_KEYS, &mut problems);
                Settings::default().with(&fields, files, &mut problems)
            }
            None => Settings::default(),
        };
        let tables = fields.tables("task", &mut problems);
        if !(1..=MAX_TASKS).contains(&tables.len()) {
            problems.push(Problem::new(text.len(), format!("give 1 to {MAX_TASKS} tasks: write [[task]]")));
        }
        let mut tasks: Vec<Task> = Vec::new();
        for (table, at) in tables.into_iter().take(MAX_TASKS) {
            let Some(task) = Task::read(table, at, &defaults, files, &mut problems) else { continue };
            if tasks.iter().any(|other| other.name == task.name) {
                let twice = format!("two tasks have the name {:?}: give each its own", task.name);
                problems.push(Problem::new(at, twice));
            }
            tasks.push(task);
        }
        sort_by_key(&mut problems, |problem| problem.at);
        problems.truncate(MAX_PROBLEMS);
        match problems.is_empty() {
            true => Ok(Self {
                name: name.into(),
                description: description.into(),
                deadline,
                tasks,
                source: Source::default(),
            }),
            false => Err(problems),
        }
    }

    /// The points of all tasks.
    pub fn points(&self) -> Points {
        self.tasks.iter().map(|task| task.worth(task.points)).sum()
    }
}

/// A mistake in a file as a line: name, line, column, and description.
fn line(name: &str, text: &str, problem: &Problem) -> String {
    let (line, column) = place(text, problem.at);
    format!("{name}:{line}:{column}: {}", printable_text(&problem.message))
}

/// The line and the column of an offset, both from 1. Columns count characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let bytes = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    let line = bytes.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
    let start = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
    let column = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).chars().count();
    (line, column.saturating_add(1))
}

#[cfg(test)]
mod tests;
