//! `vmm guests`: prints the built-in guests as a list.

use crate::streams::print_stdout;
use clap::Args;
use guest::{End, Exits, GUESTS, Guest, Part};
use std::fmt::Write as _;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm guests       names, and what each guest does
  vmm real16-42    runs one of them")]
pub struct GuestsArgs {}

/// Prints the list. Returns the exit status.
pub fn main(_: &GuestsArgs) -> u8 {
    let mut text = String::new();
    for (part, title) in
        [(Part::Example, "Guests:"), (Part::Test, "Guests that do something wrong, for tests:")]
    {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{title}");
        for guest in GUESTS.iter().filter(|guest| guest.part == part) {
            let _ = writeln!(text, "  {:<23} {}", guest.name, guest.about);
            let _ = writeln!(text, "  {:<23} {}", "", expectation(guest));
        }
        let _ = writeln!(text);
    }
    let _ = writeln!(text, "Run one with `vmm NAME`.");
    print_stdout(&text)
}

/// Describes in one line how the guest should end, and how many exits it should make.
fn expectation(guest: &Guest) -> String {
    let end = match guest.end {
        End::FortyTwo => "leaves 42".into(),
        End::Halts => "halts".into(),
        End::WrongResult => "leaves a wrong result".into(),
        End::ExitCode(code) => format!("exits with code {code}"),
        End::TripleFault => "triple-faults".into(),
        End::Dies => "crashes".into(),
        End::ProtocolError => "ends with a protocol error".into(),
        End::Never => "never ends".into(),
    };
    let mut text = format!("{} mode at {:#x}; ", guest.mode, guest.load_at);
    if !guest.input.is_empty() {
        text += &format!("with the input {:?}, ", guest.input);
    }
    if !guest.output.is_empty() {
        text += &format!("prints {}; ", crate::summary::excerpt(guest.output));
    }
    text += &end;
    if let Some(exits) = exits(guest.exits) {
        text += &format!("; {exits}");
    }
    if let Some(polling) = guest.polling_exits.and_then(exits) {
        text += &format!(", with polling {polling}");
    }
    text
}

fn exits(exits: Exits) -> Option<String> {
    match exits {
        Exits::Exactly(count) => Some(report::view::plural(count, "exit")),
        Exits::Elements(count) => Some(format!("{count} accesses (exits vary by host)")),
        Exits::Unspecified => None,
    }
}
