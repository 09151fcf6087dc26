//! The deaths of observed guests, after the table of exits.

use super::names::ObservedNames;
use observe::{Death, Deaths, Observation};
use report::view::plural;
use std::fmt::Write;

/// The most deaths that have a line.
const LINES: usize = 16;

/// The refusals and the first death, with details unless `quiet` is set. Of the other vCPUs that died, a line each, unless they
/// died in the same way.
pub(super) fn text(
    name: &str,
    observation: &Observation,
    deaths: &Deaths,
    names: Option<&ObservedNames>,
    quiet: bool,
) -> String {
    let mut text = String::new();
    let mut shown: Vec<Shown<'_>> = Vec::new();
    let mut more = deaths.more();
    for death in deaths.iter() {
        let what = death.to_string();
        if let Some(same) = shown.iter_mut().find(|shown| shown.what == what) {
            same.others = same.others.saturating_add(1);
        } else if shown.len() < LINES {
            shown.push(Shown { death, what, others: 0 });
        } else {
            more = more.saturating_add(1);
        }
    }
    let first = shown.iter().position(|shown| !shown.death.is_refusal());
    for (place, Shown { death, what, others }) in shown.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "vmm: {name}: {}: {what}{}{}",
            observation.name_of(death.vcpu),
            again(death, deaths.later(death)),
            alike(*others)
        );
        if !quiet && (death.is_refusal() || Some(place) == first) {
            let places = names.map(|names| names.places(death)).unwrap_or_default();
            text += &death.details(&places);
        }
    }
    if more > 0 {
        let _ = writeln!(text, "vmm: {name}: {} not shown", plural(more, "more death"));
    }
    text
}

/// A death that is shown, and the number of other vCPUs that died in the same way after it.
struct Shown<'a> {
    death: &'a Death,
    what: String,
    others: u64,
}

/// The number of further deaths of the vCPU.
fn again(death: &Death, later: u64) -> String {
    let what = if death.is_refusal() { "refusal" } else { "death" };
    match later {
        0 => String::new(),
        later => format!(" (and {} after it)", plural(later, what)),
    }
}

/// The number of other vCPUs with the same text.
fn alike(others: u64) -> String {
    match others {
        0 => String::new(),
        others => format!(" (and {} after it in the same way)", plural(others, "other vCPU")),
    }
}
