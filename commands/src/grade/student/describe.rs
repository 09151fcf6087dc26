//! Parts of sentences about what was seen of a run.

use crate::grade::student::run::Seen;
use observe::Ending;
use report::view::plural;
use std::os::unix::process::ExitStatusExt;
use vmm::exit::{Reason, Site};
use vmm::host::printable_text;

/// The longest excerpts, in characters: of texts, and of errors.
const EXCERPT: usize = 60;
const ERRORS: usize = 300;

/// An excerpt of a text, in quotes.
pub(super) fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(EXCERPT).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("\"{}{dots}\"", printable_text(&short))
}

/// The beginning of the output.
pub(super) fn output(seen: &Seen) -> String {
    match seen.stdout.text() {
        empty if empty.is_empty() => "nothing".into(),
        text => excerpt(&text) + &flood(seen),
    }
}

/// The end of the output.
pub(super) fn end_of_output(seen: &Seen) -> String {
    let text = seen.stdout.text();
    match text.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => excerpt(line) + &flood(seen) + &errors(seen),
        None => format!("no output{}", errors(seen)),
    }
}

fn flood(seen: &Seen) -> String {
    match seen.stdout.dropped {
        0 => String::new(),
        dropped => format!(" (and {} more, which were cut)", plural(dropped, "byte")),
    }
}

/// The last lines of the errors.
fn errors(seen: &Seen) -> String {
    let text = seen.stderr.trim();
    let start = text.char_indices().rev().take(ERRORS).last().map_or(0, |(at, _)| at);
    match printable_text(&text.get(start..).unwrap_or_default().replace('\n', "; ")) {
        empty if empty.is_empty() => String::new(),
        errors => format!("; stderr: {errors}"),
    }
}

/// The way in which the program ended, if it is unusual, and what it wrote to stderr.
pub(super) fn ending(seen: &Seen) -> String {
    let ended = match seen.ending {
        Ending::Timeout(limit) => {
            let halted = if seen.halt.is_some() { ", although its guest halted" } else { "" };
            // The sentence about the death also tells of a guest that makes no exits.
            let hang = seen.hang.as_ref().filter(|_| seen.death.is_none());
            let hang = hang.map_or_else(String::new, |hang| format!(": at the end it {hang}"));
            format!("; it did not end within {} s{halted}{hang}", limit.as_secs_f64())
        }
        Ending::Ended(status) if status.success() => String::new(),
        Ending::Ended(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("; it ended with status {code}"),
            _ => format!("; it {}", seen.ending),
        },
    };
    // The state of the vCPU at its entry is the cause of what follows.
    let death = seen.death.as_ref().filter(|_| seen.entry.as_ref().is_none_or(|entry| entry.fault.is_none()));
    let died = match death {
        Some(death) => format!("; its guest died: {death}"),
        None if seen.run_failed => "; KVM_RUN failed".into(),
        None => String::new(),
    };
    format!("{died}{ended}{}{}", flood(seen), errors(seen))
}

/// The bytes on the debug console.
pub(super) fn console(seen: &Seen) -> String {
    format!("{} on port 0xe9", plural(seen.console_bytes, "byte"))
}

/// The last exit, if it was not a HLT.
pub(super) fn last_exit(seen: &Seen) -> String {
    match seen.last.as_ref().and_then(Site::of) {
        None => "; it made no exit".into(),
        Some(site) => format!("; its last exit was {}", site.reason),
    }
}

/// A sentence about a program that takes another exit for a HLT.
pub(super) fn early_end(seen: &Seen) -> String {
    let ended = matches!(seen.ending, Ending::Ended(status) if status.success());
    let reason = seen.last.as_ref().and_then(Site::of).map(|site| site.reason);
    match reason {
        Some(reason @ (Reason::PioOut | Reason::PioIn | Reason::MmioRead | Reason::MmioWrite))
            if ended && seen.halt.is_none() =>
        {
            format!(": the program took an exit for {reason} as the end, so it did not look at exit_reason")
        }
        _ => String::new(),
    }
}
