//! The manual pages: one for the program, and one for each subcommand.

use crate::text::{Block, Sections};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, io};

/// The documents of the package.
const DOCUMENTS: &str = "/usr/share/doc/exitlens";

/// Returns the file name and the text of each page.
pub fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = commands::command().disable_help_subcommand(true);
    command.build();
    let date = env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let common = Common {
        version: format!("vmm {}", command.get_version().unwrap_or_default()),
        date: vmm::host::utc(date.unwrap_or_else(now)).chars().take(10).collect(),
        exit_status: Sections::of(&after_help(&command)).exit_status,
        names: family(&command).iter().map(|command| name(command)).collect(),
    };
    family(&command).into_iter().map(|command| common.page(command)).collect()
}

/// The name of a command's page, such as `vmm-bench-scale`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).into()
}

/// Returns the command and all commands below it.
fn family(command: &Command) -> Vec<&Command> {
    let mut found = vec![command];
    found.extend(command.get_subcommands().filter(|command| !command.is_hide_set()).flat_map(family));
    found
}

/// The text behind the options.
fn after_help(command: &Command) -> String {
    let text = command.get_after_long_help().or_else(|| command.get_after_help());
    text.map(ToString::to_string).unwrap_or_default()
}

/// The parts of all pages.
struct Common {
    version: String,
    /// That of `SOURCE_DATE_EPOCH`, with which two builds have the same pages, and otherwise today's.
    date: String,
    /// The exit statuses of the program, for the pages of subcommands without a list of their own.
    exit_status: Vec<Block>,
    /// The names of all pages.
    names: Vec<String>,
}

impl Common {
    /// Returns the file name and the text of a command's page.
    fn page(&self, command: &Command) -> io::Result<(String, Vec<u8>)> {
        let name = name(command);
        // The short form: the list of all options is too long for a synopsis.
        let usage = command.clone().render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
        let page = Man::new(command.clone().override_usage(usage))
            .title(name.to_uppercase())
            .date(&self.date)
            .source(&self.version)
            .manual("User Commands");
        let mut text = Vec::new();
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        if command.has_subcommands() {
            page.render_subcommands_section(&mut text)?;
        }
        let mut sections = Sections::of(&after_help(command));
        if sections.exit_status.is_empty() {
            sections.exit_status.clone_from(&self.exit_status);
        }
        let mut roff = Roff::new();
        section(&mut roff, "EXIT STATUS", &sections.exit_status);
        section(&mut roff, "NOTES", &sections.notes);
        section(&mut roff, "EXAMPLES", &sections.examples);
        self.see_also(&mut roff, &name);
        roff.to_writer(&mut text)?;
        Ok((format!("{name}.1"), tidy(&text).into_bytes()))
    }

    /// Adds the names of all other pages, and the place of the documents.
    fn see_also(&self, roff: &mut Roff, name: &str) {
        roff.control("SH", ["SEE ALSO"]);
        let others = self.names.iter().filter(|other| *other != name);
        let mut line: Vec<_> = others.flat_map(|other| [bold(other), roman("(1), ")]).collect();
        line.push(roman(format!("the documents in {DOCUMENTS}")));
        roff.text(line);
    }
}

/// Leaves the definition of the apostrophe, which starts each rendered section, only at the start of the page. Leaves of two line
/// breaks with an empty line between them only a vertical space.
fn tidy(page: &[u8]) -> String {
    const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    let text = String::from_utf8_lossy(page).replace(APOSTROPHE, "").replace(".br\n\n.br\n", ".sp\n");
    format!("{APOSTROPHE}{text}")
}

/// Adds a section, if it has any blocks.
fn section(roff: &mut Roff, title: &str, blocks: &[Block]) {
    if blocks.is_empty() {
        return;
    }
    roff.control("SH", [title]);
    for (place, block) in blocks.iter().enumerate() {
        if place > 0 {
            roff.control("PP", []);
        }
        match block {
            Block::Prose(text) => {
                roff.text([roman(text)]);
            }
            Block::Verbatim(lines) => {
                roff.control("nf", []);
                for line in lines {
                    roff.text([roman(line)]);
                }
                roff.control("fi", []);
            }
        }
    }
}
