//! A check of a task.

use super::fields::Fields;
use super::settings::{Kind, address};
use super::task::read;
use crate::expect::{ExitLimit, Expectation, Forbidden, MAX_OUTPUT, MemoryCheck, Output, SetupLine};
use crate::read::Files;
use crate::template::{Values, fill};
use crate::toml::{Problem, Table};
use grades::Visibility;
use vmm::exit::Reason;

/// The keys of a check.
pub const KEYS: [&str; 14] = [
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
    "forbid",
    "setup",
    "time",
    "step",
];
/// The keys of a range of memory.
pub const MEMORY_KEYS: [&str; 3] = ["at", "hex", "text"];
/// The keys of a limit of the time.
pub const TIME_KEYS: [&str; 2] = ["reference", "at_most"];
/// The largest image of a reference.
const MAX_REFERENCE: usize = 4 << 20;
/// The largest multiple of the reference's time, in hundredths.
const MAX_TIMES: u64 = 100_000;

/// A check: conditions that must all be met.
#[derive(Clone, Debug)]
pub struct CheckSpec {
    /// The name, for a student who may not see the details. It may be empty.
    pub name: String,
    /// The points that a failed check costs; all of the task if this is `None`.
    pub points: Option<u32>,
    /// The part that a student sees.
    pub visibility: Visibility,
    /// The step of the task's helper that decides the check.
    pub step: Option<String>,
    /// The limit of the time.
    pub time: Option<TimeLimit>,
    /// The offset of the check in the file.
    pub at: usize,
    /// The conditions, and their offsets.
    conditions: Vec<(Condition, usize)>,
}

/// A limit of the time: a multiple of that of a guest of the teacher's.
#[derive(Clone, Debug)]
pub struct TimeLimit {
    /// The name of its file.
    pub name: String,
    /// Its image.
    pub reference: Vec<u8>,
    /// The largest multiple, in hundredths.
    pub at_most: u64,
    /// The offset of the limit in the file.
    pub at: usize,
}

impl TimeLimit {
    /// The least and the largest number of runs of the submission, and as many of the reference. After the least, the runs go on only
    /// while the limit is exceeded, and while the time is not over.
    pub const ROUNDS: (u32, u32) = (3, 12);
}

/// The part of a task that its checks depend on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The kind of what runs.
    pub kind: Kind,
    /// The points of the task.
    pub points: u64,
    /// True if the task has a helper.
    pub has_helper: bool,
    /// The files that it names.
    pub files: Files<'a>,
    /// Any values with the task's names.
    pub values: &'a Values,
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
    /// Reads a check of a task.
    pub fn read(table: &Table, at: usize, task: Context, problems: &mut Vec<Problem>) -> Self {
        let fields = Fields::new(table, at, &KEYS, problems);
        let name = fields.text("name", problems).map_or("", |(name, _)| name);
        let cost =
            fields.number("points", 0, task.points, problems).and_then(|cost| u32::try_from(cost).ok());
        let visibility =
            fields.choice("visibility", &Visibility::NAMES, problems).unwrap_or(Visibility::Shown);
        let step = fields.text("step", problems);
        if let Some((_, at)) = step.filter(|_| !task.has_helper) {
            problems.push(Problem::new(at, "step names a part of the task's helper, and the task has none"));
        }
        let before = problems.len();
        let mut conditions = texts(&fields, task.files, problems);
        conditions.extend(memory(&fields, problems));
        conditions.extend(forbidden(&fields, task.kind, problems));
        conditions.extend(setup(&fields, problems));
        let time = time(&fields, task, problems);
        if conditions.is_empty() && time.is_none() && step.is_none() && problems.len() == before {
            let message = "a check needs a condition: output, output_file, contains, matches, expect, exits, memory, forbid, setup or time";
            problems.push(Problem::new(at, message));
        }
        for (condition, at) in &conditions {
            let checked = condition.expectation(task.values).and_then(|one| suits(&one, task.kind));
            problems.extend(checked.err().map(|error| Problem::new(*at, error)));
        }
        let step = step.map(|(step, _)| step.into());
        Self { name: name.into(), points: cost, visibility, step, time, at, conditions }
    }

    /// The offset of a condition in the file.
    pub fn place(&self, condition: usize) -> usize {
        self.conditions.get(condition).map_or(self.at, |(_, at)| *at)
    }

    /// The first text that the output must contain.
    pub fn contained(&self) -> Option<&str> {
        self.conditions.iter().find_map(|(condition, _)| match condition {
            Condition::Contains(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The sites of exits that conditions are about, as far as they have a place and a width.
    pub fn sites(&self) -> Vec<(Reason, u64, u8)> {
        let site = |(condition, _): &(Condition, usize)| match condition {
            Condition::Exits(text) => ExitLimit::parse(text).ok()?.site(),
            _ => None,
        };
        self.conditions.iter().filter_map(site).collect()
    }

    /// The conditions, with these values.
    ///
    /// # Errors
    /// A value does not fit.
    pub fn expectations(&self, values: &Values) -> Result<Vec<Expectation>, String> {
        self.conditions.iter().map(|(condition, _)| condition.expectation(values)).collect()
    }
}

/// The conditions that are texts, and their places.
fn texts(fields: &Fields, files: Files, problems: &mut Vec<Problem>) -> Vec<(Condition, usize)> {
    let mut found = Vec::new();
    if let Some((text, at)) = fields.text("output", problems) {
        found.push((Condition::Output(text.into()), at));
    }
    if let Some((file, at)) = fields.text("output_file", problems)
        && let Some(bytes) = read(file, at, "output_file", MAX_OUTPUT, files, problems)
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

/// Checks that a condition can be seen of what runs.
///
/// # Errors
/// It cannot.
fn suits(condition: &Expectation, kind: Kind) -> Result<(), String> {
    let lacking = match condition {
        Expectation::Setup(_) if kind != Kind::Vmm => {
            return Err("setup is about the calls of a VMM: it needs kind = \"vmm\"".into());
        }
        _ if kind != Kind::Vmm => return Ok(()),
        Expectation::Modes(_) => "the mode of each exit is not seen",
        Expectation::Simvirtio(_) => "the state of its devices is not seen",
        Expectation::End(end) if !end.is_of_vmm() => {
            "end is the exit status of the program, 0 to 255, or crash (a signal) or timeout"
        }
        _ => return Ok(()),
    };
    Err(format!("of a VMM that is observed, {lacking}"))
}

/// The features that may not be used: `forbid = ["irqchip"]`.
fn forbidden(fields: &Fields, kind: Kind, problems: &mut Vec<Problem>) -> Vec<(Condition, usize)> {
    let mut found = Vec::new();
    for (name, at) in fields.texts("forbid", problems) {
        match Forbidden::parse(name, kind == Kind::Vmm) {
            Ok(feature) => found.push((Condition::Fixed(Expectation::Forbidden(feature)), at)),
            Err(error) => problems.push(Problem::new(at, error)),
        }
    }
    found
}

/// The calls that a VMM must make: `setup = "slot 0: 0x0 to 0xffff"`.
fn setup(fields: &Fields, problems: &mut Vec<Problem>) -> Vec<(Condition, usize)> {
    let mut found = Vec::new();
    for (pattern, at) in fields.texts("setup", problems) {
        match SetupLine::parse(pattern) {
            Ok(line) => found.push((Condition::Fixed(Expectation::Setup(line)), at)),
            Err(error) => problems.push(Problem::new(at, error)),
        }
    }
    found
}

/// The limit of the time: `time = { reference = "solution.bin", at_most = 3 }`.
fn time(fields: &Fields, task: Context, problems: &mut Vec<Problem>) -> Option<TimeLimit> {
    let (table, at) = fields.table("time", problems)?;
    if task.kind != Kind::Image {
        problems.push(Problem::new(at, "time is for kind = \"image\" only"));
    }
    let fields = Fields::new(table, at, &TIME_KEYS, problems);
    for key in TIME_KEYS.into_iter().filter(|key| fields.get(key).is_none()) {
        let message =
            format!("{key} is missing here: time = {{ reference = \"solution.bin\", at_most = 3 }}");
        problems.push(Problem::new(at, message));
    }
    let (name, name_at) = fields.text("reference", problems)?;
    let reference = read(name, name_at, "reference", MAX_REFERENCE, task.files, problems)?;
    let at_most = fields.hundredths("at_most", 100, MAX_TIMES, problems)?;
    Some(TimeLimit { name: name.into(), reference, at_most, at })
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
    fn expectation(&self, values: &Values) -> Result<Expectation, String> {
        match self {
            Self::Output(text) => {
                let text = fill(text, values)?;
                let name = Output::shown(&text);
                Output::exactly(text.into_bytes(), name).map(Expectation::Output)
            }
            Self::Contains(text) => Output::containing(fill(text, values)?).map(Expectation::Output),
            Self::Expect(text) => fill(text, values)?.parse(),
            Self::Exits(text) => ExitLimit::parse(&fill(text, values)?).map(Expectation::Exits),
            Self::Text(address, text) => {
                MemoryCheck::bytes(*address, fill(text, values)?.into_bytes()).map(Expectation::Memory)
            }
            Self::Fixed(expectation) => Ok(expectation.clone()),
        }
    }
}
