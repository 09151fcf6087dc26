//! Reports about profiles and traces, written as text, JSON, CSV or an HTML page.
//!
//! [`write()`] first turns the input into one set of tables, and then writes these in one of the [formats](Format).
//! [`exit_table`] is the shorter table that `vmm` prints after a run. [`duration`] and [`plural`] format a time and a
//! count in the same way as the reports.
//!
//! ```
//! # use report::view;
//! assert_eq!(view::duration(1_160_000), "1.16 ms");
//! assert_eq!(view::plural(2, "exit"), "2 exits");
//! ```
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod advice;
mod compare;
mod csv;
mod exits;
mod functions;
mod headline;
mod html;
mod json;
mod kernel;
mod labels;
mod markup;
mod plot;
mod profile;
mod samples;
mod setup;
mod table;
mod text;
mod timeline;
mod trace;

pub use exits::exit_table;
pub use functions::{By, function_table};
pub(crate) use markup::escape;
pub use table::{duration, plural};

use crate::{Saved, SavedProfile};
use std::io::{self, Write};

/// The format of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text for a terminal.
    #[default]
    Text,
    /// JSON for programs.
    Json,
    /// CSV for spreadsheets.
    Csv,
    /// One HTML page for a browser. It works without a network.
    Html,
}

/// A file that a report is about.
#[derive(Debug)]
pub struct Source {
    /// The name of the file, safe to print.
    name: String,
    saved: Saved,
    /// The profile, or the sums over the trace.
    summary: SavedProfile,
    /// The kind of the main table, if it is about the guest's code.
    by: Option<By>,
}

impl Source {
    /// Makes a source of a report. The name is printed as it is, so it must be safe for a terminal.
    pub fn new(name: String, saved: Saved) -> Self {
        let summary = match &saved {
            Saved::Profile(profile) => (**profile).clone(),
            Saved::Trace(trace, _) => trace.profile(),
        };
        Self { name, saved, summary, by: None }
    }

    /// Makes the table of functions or lines the main table.
    pub fn by(self, by: Option<By>) -> Self {
        Self { by, ..self }
    }

    /// True if the exits of the file have addresses in the guest's code.
    pub fn has_addresses(&self) -> bool {
        !self.summary.addresses.is_empty()
    }
}

/// Writes a report about `a`, or about the change from `a` to `b`.
///
/// # Errors
/// Writing to `to` fails.
pub fn write(mut to: &mut dyn Write, format: Format, a: &Source, b: Option<&Source>) -> io::Result<()> {
    // One type of writer keeps the program small.
    let to = &mut to;
    let mut view = match (b, &a.saved) {
        (Some(b), _) => {
            let caveat = |source: &Source, side| match &source.saved {
                Saved::Trace(trace, cut) => trace::caveat(trace, *cut, side),
                Saved::Profile(_) => None,
            };
            let caveats = caveat(a, "A").into_iter().chain(caveat(b, "B")).collect();
            compare::view(&a.summary, &b.summary, [a.name.clone(), b.name.clone()], caveats)
        }
        (None, Saved::Profile(profile)) => profile::view(profile),
        (None, Saved::Trace(trace, cut)) => trace::view(trace, *cut, &a.summary),
    };
    if b.is_none() {
        functions::add(&mut view, &a.summary, a.by);
        samples::add(&mut view, &a.summary);
    }
    match format {
        Format::Text => text::write(to, &view),
        Format::Json => json::write(to, &view),
        Format::Csv => csv::write(to, &view),
        Format::Html => html::write(to, &view, a, b),
    }
}
