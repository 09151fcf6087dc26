//! What a run leaves behind in files: [profiles](Profile), which count and time its exits by site, and
//! [traces](Trace), which hold the last ones one by one. `docs/formats.md` is their specification.
//!
//! A file comes from anywhere. Reading one gives what it says or a [`SavedError`], and takes no more memory than a
//! few times its size.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod capture;
mod file;
pub mod profile;
mod summary;
pub mod trace;
pub mod view;

pub use file::{OutputFile, read};
pub use profile::SavedProfile;
pub use trace::{Cut, SavedTrace};

use std::io;
use vmm::host::{host_advice, printable_text};

/// Why a file is no profile or trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// It is something else.
    #[error(
        "the file is neither a profile nor a trace: give what --profile json=FILE or --trace FILE has written"
    )]
    Neither,
    /// A later program wrote it.
    #[error("the {what} has version {found}, and this program reads version {known}: use a newer vmm")]
    Version {
        /// A profile or a trace.
        what: &'static str,
        /// The version that it has.
        found: u64,
        /// The version that can be read.
        known: u64,
    },
    /// It is larger than any that a run writes.
    #[error("the {what} has {size} bytes or more, and at most {limit} are read: give a smaller file")]
    TooLarge {
        /// A profile or a trace.
        what: &'static str,
        /// Its size in bytes, or so much of it as was seen.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// It breaks off before there is anything to show.
    #[error("the trace is cut short within its header ({there} of 64 bytes): make it anew")]
    CutHeader {
        /// How many bytes there are.
        there: usize,
    },
    /// Something in it cannot be.
    #[error("the {what} is damaged: {why}")]
    Damaged {
        /// A profile or a trace.
        what: &'static str,
        /// What is wrong, and where.
        why: String,
    },
}

/// A file of results could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The user named a path that cannot be written.
    #[error("cannot write {path}: {what}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}{}", write_advice(.source))]
    Write {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is not a profile or a trace, or is damaged.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: SavedError,
    },
}

/// What to do where a file cannot be written, if that is known.
fn write_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or give another file"
        }
        io::ErrorKind::FileTooLarge => ": allow larger files (ulimit -f)",
        _ => host_advice(error),
    }
}

/// How much is quoted of what a damaged file says, in characters.
const QUOTED: usize = 160;

impl SavedError {
    /// Something in the file cannot be. What the file says is made fit for a terminal.
    fn damaged(what: &'static str, why: &str) -> Self {
        let mut shown: String = printable_text(why).chars().take(QUOTED).collect();
        if shown.len() < why.len() && why.chars().nth(QUOTED).is_some() {
            shown += "...";
        }
        Self::Damaged { what, why: shown }
    }

    /// What the parser of JSON says, its place always included.
    fn json(what: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!("line {} column {}", error.line(), error.column());
        let why = text.strip_suffix(&place).map_or(text.as_str(), |text| text.trim_end_matches(" at "));
        match Self::damaged(what, why) {
            Self::Damaged { what, why } => Self::Damaged { what, why: format!("{why} at {place}") },
            other => other,
        }
    }
}

/// Either of the two.
#[derive(Clone, Debug, PartialEq)]
pub enum Saved {
    /// A profile.
    Profile(Box<SavedProfile>),
    /// A trace, and how much of it is missing.
    Trace(SavedTrace, Option<Cut>),
}

impl Saved {
    /// Reads a profile or a trace. Which it is, its content says.
    ///
    /// # Errors
    /// It is neither, or damaged.
    pub fn read(bytes: &[u8]) -> Result<Self, SavedError> {
        let magic = bytes.get(..trace::MAGIC.len()).unwrap_or(bytes);
        if !bytes.is_empty() && trace::MAGIC.starts_with(magic) {
            let (trace, cut) = SavedTrace::read(bytes)?;
            return Ok(Self::Trace(trace, cut));
        }
        match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Ok(Self::Profile(SavedProfile::read(bytes)?.into())),
            _ => Err(SavedError::Neither),
        }
    }
}

/// A reason in JSON: the text that it displays as.
mod reason {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;
    use std::borrow::Cow;
    use vmm::exit::Reason;

    pub(super) fn serialize<S: Serializer>(reason: &Reason, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(reason)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Reason, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        text.parse().map_err(|error| Error::custom(format!("{error}: {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_its_content_says() {
        let read = |bytes: &[u8]| Saved::read(bytes).unwrap_err();
        for other in [&b""[..], b" ", b"[]", b"\x7fELF", b"vmmtracy", &[0; 100]] {
            assert_eq!(read(other), SavedError::Neither, "{other:?}");
        }
        assert_eq!(read(b"vmm"), SavedError::CutHeader { there: 3 });
        assert!(matches!(read(b"  {}"), SavedError::Damaged { what: "profile", .. }));
    }

    #[test]
    fn what_a_damaged_file_says_is_quoted_in_short_and_made_printable() {
        let long = SavedError::damaged("profile", &"\u{1b}".repeat(1000)).to_string();
        assert!(long.len() < 250 && long.ends_with("...") && !long.contains('\u{1b}'), "{long}");
        assert_eq!(SavedError::damaged("trace", "é").to_string(), "the trace is damaged: é");
    }
}
