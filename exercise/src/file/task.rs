//! A task of an exercise.

use super::check::CheckSpec;
use super::fields::Fields;
use super::settings::{Settings, address};
use crate::read::read_file;
use crate::template::{Numbers, draw, fill};
use crate::toml::{Problem, Table, Value};
use std::path::{Component, Path};
use vmm::host::printable_text;
use vmm::x86::InitialValue;

/// The keys of a task besides those of the settings.
pub const OWN_KEYS: [&str; 9] =
    ["name", "points", "file", "input", "input_file", "input_at", "registers", "random", "check"];
/// The most points of a task.
const MAX_POINTS: u64 = 10_000;
/// The most checks of a task.
const MAX_CHECKS: usize = 64;
/// The longest input.
const MAX_INPUT: usize = 1 << 20;
/// The most random numbers of a task.
const MAX_RANDOM: usize = 64;
/// A seed with which a file is checked.
const ANY_SEED: u64 = 1;

/// A task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: u32,
    /// The pattern of the file in the directory of a submission.
    pub file: String,
    /// Its machine and limits.
    pub settings: Settings,
    /// Its input.
    pub input: Option<Input>,
    /// The address at which the guest finds its input. `None` if it reads the input from a device.
    pub input_at: Option<u64>,
    /// Values of registers at the start: name, and text of the value.
    registers: Vec<(String, String)>,
    /// The random numbers: name, and least and largest number.
    random: Vec<(String, i64, i64)>,
    /// Its checks.
    pub checks: Vec<CheckSpec>,
}

/// The input of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text with expressions.
    Text(String),
    /// The content of a file.
    Bytes(Vec<u8>),
}

impl Task {
    /// Reads a task. `None` if it has no name.
    pub fn read(
        table: &Table,
        at: usize,
        defaults: &Settings,
        folder: &Path,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let keys: Vec<&str> = OWN_KEYS.into_iter().chain(super::RUN_KEYS).collect();
        let fields = Fields::new(table, at, &keys, problems);
        let name = fields.needed_text("name", problems).map(|(name, _)| name);
        let file = fields.needed_text("file", problems);
        if let Some((file, at)) = file.filter(|(file, _)| !is_inside(file)) {
            let message = format!("file {file:?} must be a name inside the directory of a submission");
            problems.push(Problem::new(at, message));
        }
        if fields.get("points").is_none() {
            problems.push(Problem::new(at, "points is missing here"));
        }
        let points =
            fields.number("points", 0, MAX_POINTS, problems).and_then(|points| u32::try_from(points).ok());
        let random = random(&fields, problems);
        let mut task = Self {
            name: name.unwrap_or_default().into(),
            points: points.unwrap_or(0),
            file: file.map_or("", |(file, _)| file).into(),
            settings: defaults.clone().with(&fields, problems),
            input: input(&fields, folder, problems),
            input_at: address(&fields, "input_at", problems),
            registers: Vec::new(),
            random,
            checks: Vec::new(),
        };
        let numbers = task.numbers(ANY_SEED);
        task.registers = registers(&fields, &numbers, problems);
        task.check_input(&fields, &numbers, problems);
        let checks = fields.tables("check", problems);
        if !(1..=MAX_CHECKS).contains(&checks.len()) {
            problems.push(Problem::new(at, format!("give 1 to {MAX_CHECKS} checks: write [[task.check]]")));
        }
        for (table, at) in checks.into_iter().take(MAX_CHECKS) {
            // If the points of the task are wrong, those of its checks are not compared with them.
            let most = points.map_or(MAX_POINTS, u64::from);
            task.checks.extend(CheckSpec::read(table, at, most, folder, &numbers, problems));
        }
        name.map(|_| task)
    }

    fn check_input(&self, fields: &Fields, numbers: &Numbers, problems: &mut Vec<Problem>) {
        if let (Some(Input::Text(text)), Some(entry)) = (&self.input, fields.get("input"))
            && let Err(error) = fill(text, numbers)
        {
            problems.push(Problem::new(entry.node.at, error));
        }
        if let (None, Some(entry)) = (&self.input, fields.get("input_at")) {
            problems.push(Problem::new(entry.at, "input_at needs an input or an input_file"));
        }
    }

    /// The random numbers of a seed.
    pub fn numbers(&self, seed: u64) -> Numbers {
        draw(seed, &self.name, &self.random)
    }

    /// The input, with these numbers.
    ///
    /// # Errors
    /// An expression is too large with them.
    pub fn input(&self, numbers: &Numbers) -> Result<Vec<u8>, String> {
        match &self.input {
            Some(Input::Text(text)) => fill(text, numbers).map(String::into_bytes),
            Some(Input::Bytes(bytes)) => Ok(bytes.clone()),
            None => Ok(Vec::new()),
        }
    }

    /// The registers at the start, with these numbers.
    ///
    /// # Errors
    /// A value does not fit.
    pub fn registers(&self, numbers: &Numbers) -> Result<Vec<InitialValue>, String> {
        let set = |(name, value): &(String, String)| format!("{name}={}", fill(value, numbers)?).parse();
        self.registers.iter().map(set).collect()
    }
}

/// True if a pattern leads to a file inside a directory.
fn is_inside(pattern: &str) -> bool {
    let mut parts = Path::new(pattern).components();
    parts.all(|part| matches!(part, Component::Normal(_))) && !pattern.contains('\0')
}

fn input(fields: &Fields, folder: &Path, problems: &mut Vec<Problem>) -> Option<Input> {
    let text = fields.text("input", problems).map(|(text, _)| Input::Text(text.into()));
    let file = fields.text("input_file", problems);
    if let (Some(_), Some((_, at))) = (&text, file) {
        problems.push(Problem::new(at, "input and input_file are two inputs: give one of them"));
    }
    let bytes = file.and_then(|(file, at)| read(file, at, "input_file", MAX_INPUT, folder, problems));
    text.or(bytes.map(Input::Bytes))
}

/// Reads a file beside the exercise.
pub(super) fn read(
    file: &str,
    at: usize,
    key: &str,
    limit: usize,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Vec<u8>> {
    let read = read_file(&folder.join(file), limit);
    let failed = |error| Problem::new(at, format!("cannot read {} for {key}: {error}", printable_text(file)));
    read.map_err(|error| problems.push(failed(error))).ok()
}

/// Reads the ranges of random numbers: `random = { a = [1, 9] }`.
fn random(fields: &Fields, problems: &mut Vec<Problem>) -> Vec<(String, i64, i64)> {
    let mut ranges = Vec::new();
    let Some((table, at)) = fields.table("random", problems) else { return ranges };
    if table.entries.len() > MAX_RANDOM {
        problems.push(Problem::new(at, format!("give at most {MAX_RANDOM} random numbers")));
    }
    for entry in table.entries.iter().take(MAX_RANDOM) {
        let range = match &entry.node.value {
            Value::Array(nodes) => match nodes.as_slice() {
                [min, max] => match (&min.value, &max.value) {
                    (Value::Integer(min), Value::Integer(max)) if min <= max => Some((*min, *max)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        let is_name = entry.key.starts_with(|c: char| c.is_ascii_alphabetic())
            && entry.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            problems.push(Problem::new(entry.at, "the name of a random number has letters, digits and _"));
        }
        match range {
            Some((min, max)) => ranges.push((entry.key.clone(), min, max)),
            None => problems
                .push(Problem::new(entry.node.at, "give the least and the largest number, such as [1, 999]")),
        }
    }
    ranges
}

/// Reads the values of registers at the start: `registers = { ax = 3, bx = "{a}" }`.
fn registers(fields: &Fields, numbers: &Numbers, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let mut registers = Vec::new();
    let Some((table, _)) = fields.table("registers", problems) else { return registers };
    for entry in &table.entries {
        let value = match &entry.node.value {
            Value::Integer(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            _ => String::new(),
        };
        let set =
            fill(&value, numbers).and_then(|value| format!("{}={value}", entry.key).parse::<InitialValue>());
        match set {
            Ok(_) => registers.push((entry.key.clone(), value)),
            Err(error) => problems.push(Problem::new(entry.at, error)),
        }
    }
    registers
}
