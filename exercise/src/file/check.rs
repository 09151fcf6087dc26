//! A check of a task.

use super::fields::Fields;
use super::settings::address;
use super::task::read;
use crate::expect::{ExitLimit, Expectation, MAX_OUTPUT, MemoryCheck, Output};
use crate::template::{Numbers, fill};
use crate::toml::{Problem, Table};
use grades::Visibility;
use std::path::Path;

/// The keys of a check.
pub const KEYS: [&str; 10] = [
    "name",
    "points",
    "visibility",
    "output",
    "output_file",
    "contains",
    "matches",
    "expect",
    "exits",
    "memory",
];
/// The keys of a range of memory.
pub const MEMORY_KEYS: [&str; 3] = ["at", "hex", "text"];

/// A check: conditions that must all be met.
#[derive(Clone, Debug)]
pub struct CheckSpec {
    /// The name, for a student who may not see the details. It may be empty.
    pub name: String,
    /// The points that a failed check costs; all of the task if this is `None`.
    pub points: Option<u32>,
    /// The part that a student sees.
    pub visibility: Visibility,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
enum Condition {
    /// The whole output: a text with expressions.
    Output(String),
    /// A part of the output: a text with expressions.
    Contains(String),
    /// `SUBJECT=VALUE` with expressions.
    Expect(String),
    /// A limit of exits with expressions.
    Exits(String),
    /// A range of memory that holds a text with expressions.
    Text(u64, String),
    /// A condition without expressions.
    Fixed(Expectation),
}

impl CheckSpec {
    /// Reads a check of a task with this number of points. `numbers` are any numbers with the task's names.
    pub fn read(
        table: &Table,
        at: usize,
        points: u64,
        folder: &Path,
        numbers: &Numbers,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let fields = Fields::new(table, at, &KEYS, problems);
        let name = fields.text("name", problems).map_or("", |(name, _)| name);
        let cost = fields.number("points", 0, points, problems).and_then(|cost| u32::try_from(cost).ok());
        let visibility =
            fields.choice("visibility", &Visibility::NAMES, problems).unwrap_or(Visibility::Shown);
        let before = problems.len();
        let mut conditions = texts(&fields, folder, problems);
        conditions.extend(memory(&fields, problems));
        if conditions.is_empty() && problems.len() == before {
            let message =
                "a check needs a condition: output, output_file, contains, matches, expect, exits or memory";
            problems.push(Problem::new(at, message));
        }
        for (condition, at) in &conditions {
            if let Err(error) = condition.expectation(numbers) {
                problems.push(Problem::new(*at, error));
            }
        }
        let conditions = conditions.into_iter().map(|(condition, _)| condition).collect();
        Some(Self { name: name.into(), points: cost, visibility, conditions })
    }

    /// The conditions, with these numbers.
    ///
    /// # Errors
    /// A value does not fit.
    pub fn expectations(&self, numbers: &Numbers) -> Result<Vec<Expectation>, String> {
        self.conditions.iter().map(|condition| condition.expectation(numbers)).collect()
    }
}

/// The conditions that are texts, and their places.
fn texts(fields: &Fields, folder: &Path, problems: &mut Vec<Problem>) -> Vec<(Condition, usize)> {
    let mut found = Vec::new();
    if let Some((text, at)) = fields.text("output", problems) {
        found.push((Condition::Output(text.into()), at));
    }
    if let Some((file, at)) = fields.text("output_file", problems)
        && let Some(bytes) = read(file, at, "output_file", MAX_OUTPUT, folder, problems)
    {
        match Output::exactly(bytes, format!("that of {file}")) {
            Ok(output) => found.push((Condition::Fixed(Expectation::Output(output)), at)),
            Err(error) => problems.push(Problem::new(at, error)),
        }
    }
    for (text, at) in fields.texts("contains", problems) {
        found.push((Condition::Contains(text.into()), at));
    }
    for (pattern, at) in fields.texts("matches", problems) {
        match Output::matching(pattern) {
            Ok(output) => found.push((Condition::Fixed(Expectation::Output(output)), at)),
            Err(error) => problems.push(Problem::new(at, error)),
        }
    }
    for (text, at) in fields.texts("expect", problems) {
        found.push((Condition::Expect(text.into()), at));
    }
    for (text, at) in fields.texts("exits", problems) {
        found.push((Condition::Exits(text.into()), at));
    }
    found
}

/// The condition for a range of memory: `memory = { at = 0x400, hex = "2a 00" }`.
fn memory(fields: &Fields, problems: &mut Vec<Problem>) -> Option<(Condition, usize)> {
    let (table, at) = fields.table("memory", problems)?;
    let fields = Fields::new(table, at, &MEMORY_KEYS, problems);
    if fields.get("at").is_none() {
        problems.push(Problem::new(at, "memory needs an address: memory = { at = 0x400, hex = \"2a 00\" }"));
    }
    let address = address(&fields, "at", problems)?;
    match (fields.text("hex", problems), fields.text("text", problems)) {
        (Some((hex, at)), None) => {
            let parsed = bytes(hex).and_then(|bytes| MemoryCheck::bytes(address, bytes));
            let parsed = parsed.map_err(|error| problems.push(Problem::new(at, error))).ok()?;
            Some((Condition::Fixed(Expectation::Memory(parsed)), at))
        }
        (None, Some((text, at))) => Some((Condition::Text(address, text.into()), at)),
        _ => {
            problems.push(Problem::new(at, "memory needs either hex or text"));
            None
        }
    }
}

/// Parses bytes in hexadecimal: two digits for each, with or without blanks.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).ok_or("give bytes in hexadecimal, such as \"2a 00\""))
        .collect::<Result<_, _>>()?;
    let pair = |pair: &[u32]| match pair {
        [high, low] => u8::try_from(high << 4 | low).map_err(|error| error.to_string()),
        _ => Err("the last byte has one digit: give two for each".into()),
    };
    digits.chunks(2).map(pair).collect()
}

impl Condition {
    fn expectation(&self, numbers: &Numbers) -> Result<Expectation, String> {
        match self {
            Self::Output(text) => {
                let text = fill(text, numbers)?;
                let name = Output::shown(&text);
                Output::exactly(text.into_bytes(), name).map(Expectation::Output)
            }
            Self::Contains(text) => Output::containing(fill(text, numbers)?).map(Expectation::Output),
            Self::Expect(text) => fill(text, numbers)?.parse(),
            Self::Exits(text) => ExitLimit::parse(&fill(text, numbers)?).map(Expectation::Exits),
            Self::Text(address, text) => {
                MemoryCheck::bytes(*address, fill(text, numbers)?.into_bytes()).map(Expectation::Memory)
            }
            Self::Fixed(expectation) => Ok(expectation.clone()),
        }
    }
}
