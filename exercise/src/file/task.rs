//! A task of an exercise.

use super::check::{CheckSpec, Context, TimeLimit};
use super::fields::Fields;
use super::guest_image::{self, GuestImage};
use super::random;
use super::settings::{Kind, Settings, address};
use crate::read::{Files, is_inside};
use crate::template::{Range, Values, draw, fill};
use crate::toml::{Problem, Table, Value};
use grades::Points;
use vmm::host::printable_text;
use vmm::x86::InitialValue;

/// The keys of a task besides those of the settings.
pub const OWN_KEYS: [&str; 13] = [
    "name",
    "points",
    "weight",
    "file",
    "input",
    "input_file",
    "input_at",
    "registers",
    "image",
    "image_text",
    "random",
    "helper",
    "check",
];
/// The most points of a task.
const MAX_POINTS: u64 = 10_000;
/// The most checks of a task.
const MAX_CHECKS: usize = 64;
/// The longest input.
const MAX_INPUT: usize = 1 << 20;
/// The factors by which the points of a task can be multiplied, in hundredths.
const WEIGHTS: (u64, u64) = (1, 10_000);
/// The factor 1.
const ONE: u64 = 100;
/// A path of an image with which a file is checked.
const ANY_PATH: &str = "image";
/// A seed with which a file is checked.
const ANY_SEED: u64 = 1;

/// A task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its points, before they are multiplied by its weight: see [`worth`](Self::worth).
    pub points: u32,
    /// The factor of its points, in hundredths.
    weight: u64,
    /// The pattern of the file in the directory of a submission.
    pub file: String,
    /// Its machine and limits.
    pub settings: Settings,
    /// Its input.
    pub input: Option<Input>,
    /// The address at which the guest finds its input. `None` if it reads the input from a device.
    pub input_at: Option<u64>,
    /// The image of a guest, which a VMM gets as a file.
    pub image: Option<GuestImage>,
    /// Values of registers at the start: name, and text of the value.
    registers: Vec<(String, String)>,
    /// The random values: name and range.
    random: Vec<(String, Range)>,
    /// The part of the program that runs the task and decides its steps, in a built-in course.
    pub helper: Option<String>,
    /// Its checks.
    pub checks: Vec<CheckSpec>,
    /// The offset of the task in the file.
    pub at: usize,
    /// The offset of `input_at`.
    pub input_at_place: usize,
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
        files: Files,
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
        let helper = fields.text("helper", problems).map(|(helper, _)| helper.into());
        let mut task = Self {
            name: name.unwrap_or_default().into(),
            points: points.unwrap_or(0),
            weight: fields.hundredths("weight", WEIGHTS.0, WEIGHTS.1, problems).unwrap_or(ONE),
            file: file.map_or("", |(file, _)| file).into(),
            settings: defaults.clone().with(&fields, files, problems),
            input: input(&fields, files, problems),
            input_at: address(&fields, "input_at", problems),
            image: GuestImage::read(&fields, files, problems),
            registers: Vec::new(),
            random: random::read(&fields, problems),
            helper,
            checks: Vec::new(),
            at,
            input_at_place: fields.get("input_at").map_or(at, |entry| entry.at),
        };
        let values = task.values(ANY_SEED);
        task.registers = registers(&fields, &values, problems);
        task.check_texts(&fields, &values, problems);
        let checks = fields.tables("check", problems);
        if !(1..=MAX_CHECKS).contains(&checks.len()) {
            problems.push(Problem::new(at, format!("give 1 to {MAX_CHECKS} checks: write [[task.check]]")));
        }
        let context = Context {
            kind: task.settings.kind,
            // If the points of the task are wrong, those of its checks are not compared with them.
            points: points.map_or(MAX_POINTS, u64::from),
            has_helper: task.helper.is_some(),
            files,
            values: &values,
        };
        for (table, at) in checks.into_iter().take(MAX_CHECKS) {
            task.checks.push(CheckSpec::read(table, at, context, problems));
        }
        name.map(|_| task)
    }

    /// Finds mistakes in texts with expressions.
    fn check_texts(&self, fields: &Fields, values: &Values, problems: &mut Vec<Problem>) {
        if let (Some(Input::Text(text)), Some(entry)) = (&self.input, fields.get("input"))
            && let Err(error) = fill(text, values)
        {
            problems.push(Problem::new(entry.node.at, error));
        }
        if let (None, Some(entry)) = (&self.input, fields.get("input_at")) {
            problems.push(Problem::new(entry.at, "input_at needs an input or an input_file"));
        }
        // If the image cannot be read, that is the only mistake.
        let path = fields.get("image").map(|_| ANY_PATH);
        if let Err(error) = self.args(values, path) {
            let at = self.settings.place(&["args"]).unwrap_or(self.at);
            problems.push(Problem::new(at, format!("args: {error}")));
        }
        let Some(image) = self.image.as_ref().filter(|_| self.settings.kind == Kind::Vmm) else { return };
        if let (Err(error), Some(entry)) = (image.filled(values), fields.get("image_text")) {
            problems.push(Problem::new(entry.node.at, error));
        }
        let at = fields.get("image").map_or(self.at, |entry| entry.at);
        if self.random.iter().any(|(name, _)| name == guest_image::NAME) {
            problems.push(Problem::new(
                at,
                "image is the path of the image in args: give the random value another name",
            ));
        } else if self.args(values, None).is_ok() {
            problems.push(Problem::new(at, "the program does not get the image: write args = [\"{image}\"]"));
        }
    }

    /// The most runs that can take as long as the limits permit. Others are shorter, because their time is limited together.
    pub fn long_runs(&self) -> u32 {
        let timed = self.checks.iter().filter(|check| check.time.is_some()).count();
        let timed = u32::try_from(timed).unwrap_or(u32::MAX);
        timed.saturating_mul(TimeLimit::ROUNDS.0).saturating_mul(2).saturating_add(1)
    }

    /// The check that a step of the helper decides.
    pub fn step(&self, name: &str) -> Option<&CheckSpec> {
        self.checks.iter().find(|check| check.step.as_deref() == Some(name))
    }

    /// Points of the task, multiplied by its weight.
    pub fn worth(&self, points: u32) -> Points {
        Points::from_hundredths(u64::from(points).saturating_mul(self.weight))
    }

    /// The arguments of a VMM, with these values and the path of its image.
    ///
    /// # Errors
    /// An expression is wrong.
    pub fn args(&self, values: &Values, image: Option<&str>) -> Result<Vec<String>, String> {
        let values = match image {
            Some(path) => &guest_image::with_path(values, path),
            None => values,
        };
        let fill = |text: &String| match fill(text, values) {
            Ok(text) if text.contains('\0') => Err("an argument has a zero byte".into()),
            filled => filled,
        };
        self.settings.args.iter().map(fill).collect()
    }

    /// The random values of a seed.
    pub fn values(&self, seed: u64) -> Values {
        draw(seed, &self.name, &self.random)
    }

    /// The input, with these values.
    ///
    /// # Errors
    /// An expression is too large with them.
    pub fn input(&self, values: &Values) -> Result<Vec<u8>, String> {
        match &self.input {
            Some(Input::Text(text)) => fill(text, values).map(String::into_bytes),
            Some(Input::Bytes(bytes)) => Ok(bytes.clone()),
            None => Ok(Vec::new()),
        }
    }

    /// The registers at the start, with these values.
    ///
    /// # Errors
    /// A value does not fit.
    pub fn registers(&self, values: &Values) -> Result<Vec<InitialValue>, String> {
        let set = |(name, value): &(String, String)| format!("{name}={}", fill(value, values)?).parse();
        self.registers.iter().map(set).collect()
    }
}

fn input(fields: &Fields, files: Files, problems: &mut Vec<Problem>) -> Option<Input> {
    let text = fields.text("input", problems).map(|(text, _)| Input::Text(text.into()));
    let file = fields.text("input_file", problems);
    if let (Some(_), Some((_, at))) = (&text, file) {
        problems.push(Problem::new(at, "input and input_file are two inputs: give one of them"));
    }
    let bytes = file.and_then(|(file, at)| read(file, at, "input_file", MAX_INPUT, files, problems));
    text.or(bytes.map(Input::Bytes))
}

/// Reads a file beside the exercise.
pub(super) fn read(
    file: &str,
    at: usize,
    key: &str,
    limit: usize,
    files: Files,
    problems: &mut Vec<Problem>,
) -> Option<Vec<u8>> {
    let read = files.read(file, limit);
    let failed = |error| Problem::new(at, format!("cannot read {} for {key}: {error}", printable_text(file)));
    read.map_err(|error| problems.push(failed(error))).ok()
}

/// Reads the values of registers at the start: `registers = { ax = 3, bx = "{a}" }`.
fn registers(fields: &Fields, values: &Values, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let mut registers = Vec::new();
    let Some((table, _)) = fields.table("registers", problems) else { return registers };
    for entry in &table.entries {
        let value = match &entry.node.value {
            Value::Integer(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            _ => String::new(),
        };
        let set =
            fill(&value, values).and_then(|value| format!("{}={value}", entry.key).parse::<InitialValue>());
        match set {
            Ok(_) => registers.push((entry.key.clone(), value)),
            Err(error) => problems.push(Problem::new(entry.at, error)),
        }
    }
    registers
}
