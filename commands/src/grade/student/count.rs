//! The number of exits in the output of a VMM.

use regex_lite::{Regex, RegexBuilder};
use vmm::Error;
use vmm::host::printable_text;

/// The largest size of a compiled pattern, in bytes.
const MOST_PATTERN: usize = 1 << 20;

/// The way to find the number.
pub(super) enum Pattern {
    /// In the last line that contains "exit".
    Line,
    /// By a regular expression.
    Regex(Regex),
}

impl Pattern {
    /// Reads `--count-pattern`.
    ///
    /// # Errors
    /// It is no regular expression, or a very large one.
    pub(super) fn new(pattern: Option<&str>) -> Result<Self, Error> {
        let Some(pattern) = pattern else { return Ok(Self::Line) };
        let regex = RegexBuilder::new(pattern).multi_line(true).size_limit(MOST_PATTERN).build();
        regex.map(Self::Regex).map_err(|_| {
            Error::Config(format!(
                "--count-pattern {} is no regular expression: give one such as 'exits: ([0-9]+)'",
                printable_text(pattern)
            ))
        })
    }

    /// The number of exits that this output names.
    pub(super) fn count(&self, output: &[u8]) -> Option<u64> {
        match self {
            Self::Line => {
                let mut lines = output.split(|byte| *byte == b'\n').rev();
                let word = |line: &&[u8]| line.windows(4).any(|word| word.eq_ignore_ascii_case(b"exit"));
                last_number(lines.find(word)?)
            }
            Self::Regex(regex) => {
                let output = String::from_utf8_lossy(output);
                let last = regex.captures_iter(&output).last()?;
                let part = last.get(1).or_else(|| last.get(0))?.as_str();
                numbers(part.as_bytes()).next().flatten()
            }
        }
    }
}

/// The decimal numbers of a text; `None` for each that is too large.
fn numbers(text: &[u8]) -> impl DoubleEndedIterator<Item = Option<u64>> {
    let digits = text.split(|byte| !byte.is_ascii_digit()).filter(|digits| !digits.is_empty());
    digits.map(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
}

/// The number of a line: the one after the last "exit", or otherwise the last one before it.
fn last_number(line: &[u8]) -> Option<u64> {
    let at = line.windows(4).rposition(|word| word.eq_ignore_ascii_case(b"exit"))?;
    let (before, after) = line.split_at_checked(at)?;
    numbers(after).next().or_else(|| numbers(before).next_back()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_in_the_last_line_about_exits() {
        let count = |output: &str| Pattern::Line.count(output.as_bytes());
        assert_eq!(count("VM exits: 35\nFinished vmm\n"), Some(35));
        assert_eq!(count("exits: 1\nNumber of VMEXITs = 7 in 3 ms\n"), Some(7));
        assert_eq!(count("12 exits\n"), Some(12));
        assert_eq!(count("took 5 ms, 12 exits"), Some(12));
        assert_eq!(count("exit\n"), None);
        assert_eq!(count("nothing 5\n"), None);
        assert_eq!(count("exits: 99999999999999999999999\n"), None);
    }

    #[test]
    fn a_pattern_finds_its_last_match() {
        let count =
            |pattern: &str, output: &str| Pattern::new(Some(pattern)).unwrap().count(output.as_bytes());
        assert_eq!(count(r"n=(\d+)", "n=1\nn=22 exits 3\n"), Some(22));
        assert_eq!(count(r"^total.*$", "x\ntotal: 4 of 5\n"), Some(4));
        assert_eq!(count("none", "exits: 3"), None);
        assert!(Pattern::new(Some("(")).is_err());
        assert!(Pattern::new(Some("(a{1000}){1000}")).is_err());
    }
}
