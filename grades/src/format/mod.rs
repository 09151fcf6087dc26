//! The formats of results. docs/grading.md describes them, and names the documentation of their readers.

mod csv;
mod github;
mod gradescope;
mod json;
mod junit;
mod tap;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod text;
mod vmchecker;

use crate::{Grade, Options};
use std::fmt;

pub(crate) use json::VERSION;

/// A format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The evidence of one submission, or a table of several.
    Text,
    /// One JSON document with all grades, and their statistics.
    Json,
    /// JSON Lines: a grade in each line.
    Jsonl,
    /// A table for spreadsheets (RFC 4180).
    Csv,
    /// JUnit XML.
    Junit,
    /// The Test Anything Protocol.
    Tap,
    /// `results.json` of Gradescope.
    Gradescope,
    /// The result of a step for GitHub Classroom's autograding reporter.
    Github,
    /// The output that vmchecker-next reads.
    Vmchecker,
}

/// The reason why grades cannot be written in a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwritable {
    /// The format is for one submission, and there are this many.
    Number(Format, usize),
    /// The format has no way to say that a submission was not graded, for this reason.
    NotGraded(Format, String),
}

impl fmt::Display for Unwritable {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(format, number) => write!(
                to,
                "the format {} is for one submission, and there are {number}: grade each by itself, or choose another format",
                format.name()
            ),
            Self::NotGraded(format, reason) => {
                write!(to, "the format {} is for grades only, and there is none: {reason}", format.name())
            }
        }
    }
}

impl std::error::Error for Unwritable {}

impl Format {
    /// All formats, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Text,
        Self::Json,
        Self::Jsonl,
        Self::Csv,
        Self::Junit,
        Self::Tap,
        Self::Gradescope,
        Self::Github,
        Self::Vmchecker,
    ];
    /// The names of the formats, in the same order.
    pub const NAMES: [&'static str; 9] =
        ["text", "json", "jsonl", "csv", "junit", "tap", "gradescope", "github", "vmchecker"];

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().zip(Self::NAMES).find(|(_, one)| *one == name).map(|(format, _)| format)
    }

    /// The name of this format.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().zip(Self::NAMES).find(|(one, _)| *one == self).map_or("", |(_, name)| name)
    }

    /// True if the format is for one submission.
    pub fn is_for_one(self) -> bool {
        matches!(self, Self::Gradescope | Self::Github | Self::Vmchecker)
    }

    /// Writes grades.
    ///
    /// # Errors
    /// The format [is for one](Self::is_for_one) submission, and there are more or none; or it is `Gradescope`, and the submission was
    /// not graded.
    pub fn write(self, grades: &[Grade], options: Options) -> Result<String, Unwritable> {
        if let Some(mut stream) = Stream::new(self, options) {
            let mut text = stream.begin();
            grades.iter().for_each(|grade| text += &stream.add(grade));
            return Ok(text + &stream.end());
        }
        let one = || match grades {
            [one] => Ok(one),
            several => Err(Unwritable::Number(self, several.len())),
        };
        match self {
            Self::Json => Ok(json::document(grades, options)),
            Self::Csv => Ok(csv::table(grades)),
            Self::Junit => Ok(junit::document(grades, options)),
            Self::Gradescope => gradescope::results(one()?, options),
            Self::Github => Ok(github::result(one()?, options)),
            Self::Vmchecker => Ok(vmchecker::output(one()?, options)),
            Self::Text | Self::Jsonl | Self::Tap => Ok(match grades {
                [one] => text::of_one(one, options),
                several => text::table(several),
            }),
        }
    }
}

impl Grade {
    /// The grade as in a line of [`Format::Jsonl`], without the line feed.
    pub fn to_json(&self, options: Options) -> String {
        json::object(self, options)
    }
}

/// A format that can be written grade by grade, while a batch runs.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    format: Format,
    options: Options,
    /// The number of tests that were written.
    tests: u64,
}

impl Stream {
    /// The stream of [`Format::Jsonl`] or [`Format::Tap`]. `None` for other formats.
    pub fn new(format: Format, options: Options) -> Option<Self> {
        matches!(format, Format::Jsonl | Format::Tap).then_some(Self { format, options, tests: 0 })
    }

    /// The text before the first grade.
    pub fn begin(&self) -> String {
        if self.format == Format::Tap { tap::HEADER.into() } else { String::new() }
    }

    /// The text of the next grade. It ends with a line feed.
    pub fn add(&mut self, grade: &Grade) -> String {
        match self.format {
            Format::Tap => tap::tests(grade, self.options, &mut self.tests),
            _ => json::object(grade, self.options) + "\n",
        }
    }

    /// The text after the last grade.
    pub fn end(self) -> String {
        if self.format == Format::Tap { tap::plan(self.tests) } else { String::new() }
    }
}
