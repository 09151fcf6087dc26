//! The errors of this package.

use std::io;
use vmm::host::{host_advice, printable_text};

/// The content of a file is not a usable profile or trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// The file has another format.
    #[error(
        "the file is not a profile or a trace: give a file that --profile json=FILE or --trace FILE wrote"
    )]
    Neither,
    /// A later program wrote the file.
    #[error("the {what} has version {found}, and this program reads version {known}: use a newer vmm")]
    Version {
        /// The kind of the file: "profile" or "trace".
        what: &'static str,
        /// The version of the file.
        found: u64,
        /// The version that this program reads.
        known: u64,
    },
    /// The file is larger than any file that a run writes.
    #[error(
        "the {what} is too large: it has at least {size} bytes, and the limit is {limit}: give a smaller file"
    )]
    TooLarge {
        /// The kind of the file: "profile" or "trace".
        what: &'static str,
        /// The size in bytes, as far as it was read.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The trace ends within its header.
    #[error("the trace has only {there} of the 64 bytes of its header: record it again with --trace")]
    CutHeader {
        /// The number of bytes in the file.
        there: usize,
    },
    /// A value in the file is impossible.
    #[error("the {what} is damaged: {why}")]
    Damaged {
        /// The kind of the file: "profile" or "trace".
        what: &'static str,
        /// The wrong value and its place.
        why: String,
    },
}

/// A profile, trace or report file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path that the user gave cannot be written.
    #[error("cannot write {path}: {what}")]
    Path {
        /// The path, safe to print.
        path: String,
        /// The reason, and advice.
        what: String,
    },
    /// Writing a file failed.
    #[error("cannot write {path}: {source}{}", write_advice(.source))]
    Write {
        /// The path, safe to print.
        path: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Reading a file failed.
    #[error("cannot read {path}: {source}{}", host_advice(.source))]
    Read {
        /// The path, safe to print.
        path: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The file is not a profile or a trace, or it is damaged.
    #[error("{path}: {source}")]
    Content {
        /// The path, safe to print.
        path: String,
        /// The error in the content.
        source: SavedError,
    },
}

/// Returns the advice for an error of writing, or "".
fn write_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or give another file"
        }
        io::ErrorKind::FileTooLarge => ": allow larger files (ulimit -f)",
        _ => host_advice(error),
    }
}

/// The number of characters of a damaged file that a message quotes.
const QUOTED: usize = 160;

impl SavedError {
    /// Returns the error of an impossible value. `why` may quote the file, so it is shortened and made printable.
    pub(crate) fn damaged(what: &'static str, why: &str) -> Self {
        let mut shown: String = printable_text(why).chars().take(QUOTED).collect();
        if shown.len() < why.len() && why.chars().nth(QUOTED).is_some() {
            shown += "...";
        }
        Self::Damaged { what, why: shown }
    }

    /// Returns the error of the JSON parser. The line and column stay even if the text before them is shortened.
    pub(crate) fn json(what: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!("line {} column {}", error.line(), error.column());
        let why = text.strip_suffix(&place).map_or(text.as_str(), |text| text.trim_end_matches(" at "));
        match Self::damaged(what, why) {
            Self::Damaged { what, why } => Self::Damaged { what, why: format!("{why} at {place}") },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_quotes_a_short_and_printable_part_of_a_damaged_file() {
        let long = SavedError::damaged("profile", &"\u{1b}".repeat(1000)).to_string();
        assert!(long.len() < 250 && long.ends_with("...") && !long.contains('\u{1b}'), "{long}");
        assert_eq!(SavedError::damaged("trace", "é").to_string(), "the trace is damaged: é");
    }
}
