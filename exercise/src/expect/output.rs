//! The output of a run.

use super::Check;
use crate::facts::Facts;
use vmm::host::printable_text;

/// The longest output that is expected, in bytes.
pub const MAX_OUTPUT: usize = 16 << 20;
/// The most characters of a line that a sentence shows.
const EXCERPT: usize = 60;
/// The most characters of a line before the place that differs.
const BEFORE: usize = 20;

/// The output that is expected.
#[derive(Clone, Debug)]
pub struct Output {
    text: Vec<u8>,
    /// The name of the text, such as its file.
    name: String,
}

impl Output {
    /// The whole output must be `text`. A failed check calls it `name`.
    ///
    /// # Errors
    /// It is too long.
    pub fn exactly(text: Vec<u8>, name: String) -> Result<Self, String> {
        match text.len() <= MAX_OUTPUT {
            true => Ok(Self { text, name }),
            false => {
                Err(format!("{name} is too long: an expected output has at most {} MiB", MAX_OUTPUT >> 20))
            }
        }
    }

    pub(super) fn needed(&self) -> usize {
        // The line that differs is shown to its end.
        self.text.len().saturating_add(4 * EXCERPT)
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let subject = "the output".into();
        let expected = format!("must be {}", self.name);
        let passed = facts.output == self.text && facts.output_len == self.text.len() as u64;
        let seen = match passed {
            true => format!("is {} ({} bytes)", self.name, self.text.len()),
            false => difference(&self.text, facts.output),
        };
        Check { passed, subject, expected, seen }
    }
}

/// Describes the first difference of two texts.
fn difference(expected: &[u8], seen: &[u8]) -> String {
    let same = expected.iter().zip(seen).take_while(|(one, other)| one == other).count();
    let before = expected.get(..same).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
    let column = String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
    format!(
        "differs at line {line}, column {}: {} is expected there, and {} was printed",
        column.saturating_add(1),
        excerpt(expected, start, same),
        excerpt(seen, start, same)
    )
}

/// The line of `text` from `start` around `place`, safe to print.
fn excerpt(text: &[u8], start: usize, place: usize) -> String {
    if place >= text.len() {
        return "the end".into();
    }
    let from = start.max(place.saturating_sub(BEFORE));
    let rest = text.get(from..).unwrap_or_default();
    let line = rest.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    // A character has at most 4 bytes.
    let bounded = line.get(..4 * EXCERPT).unwrap_or(line);
    let shown: String = String::from_utf8_lossy(bounded).chars().take(EXCERPT).collect();
    let is_cut = line.len() > bounded.len() || String::from_utf8_lossy(bounded).chars().count() > EXCERPT;
    let (before, after) = (if from > start { "..." } else { "" }, if is_cut { "..." } else { "" });
    format!("\"{before}{}{after}\"", printable_text(&shown))
}
