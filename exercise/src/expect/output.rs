//! The output of a run.

use super::Check;
use crate::facts::Facts;
use regex_lite::{Regex, RegexBuilder};
use vmm::host::printable_text;

/// The longest output that is expected, in bytes.
pub const MAX_OUTPUT: usize = 16 << 20;
/// The most characters of a line that a sentence shows. A line in which a guest says what is wrong fits.
const EXCERPT: usize = 100;
/// The most characters of a line before the place that differs.
const BEFORE: usize = 20;

/// The most bytes of an output in which a text or a pattern is looked for.
const SEARCHED: usize = 1 << 20;

/// The size of a pattern in memory, in bytes. The time of a search grows with it: a larger one takes many seconds.
const MAX_PATTERN: usize = 16 << 10;

/// The output that is expected.
#[derive(Clone, Debug)]
pub struct Output {
    kind: Kind,
    /// The name of the text, such as its file.
    name: String,
}

#[derive(Clone, Debug)]
enum Kind {
    Exactly(Vec<u8>),
    Contains(String),
    Matches(Regex),
}

impl Output {
    /// The whole output must be `text`. A failed check calls it `name`.
    ///
    /// # Errors
    /// It is too long.
    pub fn exactly(text: Vec<u8>, name: String) -> Result<Self, String> {
        match text.len() <= MAX_OUTPUT {
            true => Ok(Self { kind: Kind::Exactly(text), name }),
            false => {
                Err(format!("{name} is too long: an expected output has at most {} MiB", MAX_OUTPUT >> 20))
            }
        }
    }

    /// The output must contain `text`.
    ///
    /// # Errors
    /// The text is empty.
    pub fn containing(text: String) -> Result<Self, String> {
        let name = Self::shown(&text);
        match text.is_empty() {
            false => Ok(Self { kind: Kind::Contains(text), name }),
            true => Err("an empty text is in every output: give another one".into()),
        }
    }

    /// The output must have a match of a regular expression. Bytes that are no UTF-8 are read as U+FFFD.
    ///
    /// # Errors
    /// It is not one.
    pub fn matching(pattern: &str) -> Result<Self, String> {
        Ok(Self { kind: Kind::Matches(regex(pattern)?), name: Self::shown(pattern) })
    }

    /// A text in quotes, safe to print and not too long.
    pub fn shown(text: &str) -> String {
        excerpt(text.as_bytes(), 0, 0, false)
    }

    pub(super) fn needed(&self) -> usize {
        match &self.kind {
            // The line that differs is shown to its end.
            Kind::Exactly(text) => text.len().saturating_add(4 * EXCERPT),
            Kind::Contains(_) | Kind::Matches(_) => SEARCHED,
        }
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let subject = "the output".into();
        let name = &self.name;
        match &self.kind {
            Kind::Exactly(text) => {
                // A longer expected text than the output is compared with what another check keeps of it.
                let output = facts.output.get(..self.needed()).unwrap_or(facts.output);
                let passed = output == text && facts.output_len == text.len() as u64;
                let seen = match passed {
                    true => format!("is {name} ({})", bytes(text.len() as u64)),
                    false => difference(text, output),
                };
                Check { passed, subject, expected: format!("must be {name}"), seen, possible: true }
            }
            Kind::Contains(text) => {
                let passed = memchr::memmem::find(facts.output, text.as_bytes()).is_some();
                let seen = if passed { format!("contains {name}") } else { whole(facts) };
                Check { passed, subject, expected: format!("must contain {name}"), seen, possible: true }
            }
            Kind::Matches(regex) => {
                let passed = regex.is_match(&String::from_utf8_lossy(facts.output));
                let seen = if passed { format!("matches {name}") } else { whole(facts) };
                Check { passed, subject, expected: format!("must match {name}"), seen, possible: true }
            }
        }
    }
}

/// Parses a regular expression.
///
/// # Errors
/// It is not one, or it is too large.
pub(super) fn regex(pattern: &str) -> Result<Regex, String> {
    let regex = RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
    regex.map_err(|error| format!("this is not a regular expression, or it is too large: {error}"))
}

/// Describes the first difference of two texts.
fn difference(expected: &[u8], seen: &[u8]) -> String {
    let same = expected.iter().zip(seen).take_while(|(one, other)| one == other).count();
    let before = expected.get(..same).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
    let column = String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
    let rest = match (expected.get(same), seen.get(same)) {
        (_, None) => {
            format!("{} is expected there, and the output ends", excerpt(expected, start, same, true))
        }
        (None, _) => {
            format!("the output must end there, and {} was printed", excerpt(seen, start, same, true))
        }
        (Some(_), Some(_)) => {
            let (expected, seen) = (excerpt(expected, start, same, true), excerpt(seen, start, same, true));
            format!("{expected} is expected there, and {seen} was printed")
        }
    };
    format!("differs at line {line}, column {} (offset {same}): {rest}", column.saturating_add(1))
}

/// The output, or its beginning.
fn whole(facts: &Facts) -> String {
    match facts.output_len {
        0 => "is empty".into(),
        len => format!("is {} ({})", excerpt(facts.output, 0, 0, false), bytes(len)),
    }
}

/// A number of bytes, in words.
fn bytes(number: u64) -> String {
    format!("{number} {}", if number == 1 { "byte" } else { "bytes" })
}

/// The text from `start` around `place`, or only its line, safe to print.
fn excerpt(text: &[u8], start: usize, place: usize, is_line: bool) -> String {
    let from = start.max(place.saturating_sub(BEFORE));
    let rest = text.get(from..).unwrap_or_default();
    let line = match is_line {
        true => rest.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default(),
        false => rest,
    };
    // A character has at most 4 bytes.
    let bounded = line.get(..4 * EXCERPT).unwrap_or(line);
    let shown: String = String::from_utf8_lossy(bounded).chars().take(EXCERPT).collect();
    let is_cut = line.len() > bounded.len() || String::from_utf8_lossy(bounded).chars().count() > EXCERPT;
    let (before, after) = (if from > start { "..." } else { "" }, if is_cut { "..." } else { "" });
    format!("\"{before}{}{after}\"", printable_text(&shown))
}
