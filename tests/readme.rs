//! The README: its commands are run, and print what it shows. Its pictures and links are there.
#![allow(clippy::unwrap_used)]

#[path = "support/console_blocks.rs"]
mod console_blocks;
#[path = "support/markdown.rs"]
mod markdown;
mod support;

use console_blocks::Shell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use support::{kvm_test, plain_test};
use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The longest README that a reader reads to its end, in lines.
const MOST_LINES: usize = 150;

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("the_readme_is_short_and_its_links_lead_somewhere", links),
        plain_test("the_code_of_the_readme_is_that_of_an_example", code),
        plain_test("all_other_commands_are_run_by_the_ci", shell),
        kvm_test("the_commands_of_the_readme_print_what_it_shows", commands),
        kvm_test("the_recording_shows_what_the_program_prints", recording),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn readme() -> String {
    fs::read_to_string(format!("{ROOT}/README.md")).unwrap()
}

/// The blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    markdown::blocks(text, language).into_iter().map(|block| block.text).collect()
}

fn links() {
    let text = readme();
    assert!(text.lines().count() <= MOST_LINES, "{} lines", text.lines().count());
    let mut files = vec!["README.md".to_owned()];
    let documents = fs::read_dir(format!("{ROOT}/docs")).unwrap().map(|entry| entry.unwrap().file_name());
    files.extend(documents.filter_map(|name| name.into_string().ok()).map(|name| format!("docs/{name}")));
    files.extend(["CONTRIBUTING.md".to_owned(), "SECURITY.md".to_owned()]);
    for file in files.iter().filter(|file| file.ends_with(".md")) {
        let text = fs::read_to_string(format!("{ROOT}/{file}")).unwrap();
        let folder = PathBuf::from(ROOT).join(Path::new(file).parent().unwrap());
        for (path, _) in markdown::links(&text) {
            assert!(folder.join(&path).exists(), "{file}: the link {path} leads nowhere");
        }
    }
}

fn code() {
    let example = fs::read_to_string(format!("{ROOT}/vmm/examples/thousand_runs.rs")).unwrap();
    let blocks = blocks(&readme(), "rust");
    assert_eq!(blocks.len(), 1);
    let mut lines = example.lines().map(str::trim);
    for line in blocks[0].lines().map(str::trim) {
        assert!(lines.any(|other| other == line), "thousand_runs.rs does not have, at this place: {line}");
    }
}

/// The commands without output are those that `.ci/run` runs.
fn shell() {
    let blocks = blocks(&readme(), "sh");
    let commands = blocks.iter().flat_map(|block| block.lines());
    let commands: Vec<_> = commands.map(|line| line.split('#').next().unwrap().trim()).collect();
    assert_eq!(commands, ["make run", "make test"]);
    let ci = fs::read_to_string(format!("{ROOT}/.ci/run")).unwrap();
    assert!(ci.contains("target run check") && ci.contains("make test"), "{ci}");
}

/// A folder with the examples, built, and with the program in it.
struct Checkout(TempDir);

impl Checkout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["examples/first", "examples/exercises/sum"] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            let copied = Command::new("cp").arg("-r").arg(format!("{ROOT}/{name}")).arg(at(name)).status();
            assert!(copied.unwrap().success());
            let made = Command::new("make").args(["--silent", "-C"]).arg(at(name)).status();
            assert!(made.unwrap().success(), "{name}");
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vmm"), at("vmm")).unwrap();
        Self(folder)
    }

    fn shell(&self) -> Shell {
        Shell::start(self.0.path(), self.0.path())
    }

    /// The folder, as it is in the output of programs.
    fn prefix(&self) -> String {
        format!("{}/", self.0.path().canonicalize().unwrap().display())
    }
}

/// A line without what differs from run to run: numbers, units of time and the width of columns.
fn alike(line: &str) -> String {
    let mut text = String::new();
    for c in line.chars() {
        match c {
            '0'..='9' if text.ends_with('#') => {}
            '.' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            c => text.push(c),
        }
    }
    for unit in ["# us", "# ns", "# ms", "# s"] {
        text = text.replace(unit, "# time");
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn commands() {
    let checkout = Checkout::new();
    let prefix = checkout.prefix();
    let like = |shown: &str, line: &str| alike(shown) == alike(&line.replace(&prefix, ""));
    let mut count = 0;
    for block in markdown::blocks(&readme(), "console") {
        // Each block begins in the same folder.
        let (place, mut shell) = (format!("README.md:{}", block.line), checkout.shell());
        for step in console_blocks::steps(&block.text) {
            // Where the README does not show what a command prints, the next command shows its effect.
            match step.shown.is_empty() {
                true => _ = shell.run(&step.command).unwrap(),
                false => console_blocks::check(&mut shell, &place, &step, like),
            }
            count += 1;
        }
    }
    assert!(count >= 5, "{count} commands");
}

/// `make recording` makes the picture. The last command is left out here, because it takes long.
fn recording() {
    let picture = fs::read_to_string(format!("{ROOT}/docs/img/vmm.svg")).unwrap();
    let texts = picture.lines().filter_map(|line| line.strip_prefix("<text ")?.split_once('>'));
    let plain = |text: &str| {
        let text = text.trim_end_matches("</text>").replace("&lt;", "<").replace("&gt;", ">");
        text.replace("&#x27;", "'").replace("&quot;", "\"").replace("&amp;", "&")
    };
    let texts: Vec<(bool, String)> =
        texts.map(|(kind, text)| (kind.contains("\"command\""), plain(text))).collect();
    let commands: Vec<_> = texts.iter().filter(|(is_command, _)| *is_command).map(|(_, text)| text).collect();
    assert_eq!(commands, ["$ vmm crash.elf --mem 16M", "$ vmm simvirtio", "$ vmm compare"]);
    let checkout = Checkout::new();
    let prefix = checkout.prefix();
    let mut printed: Vec<String> = Vec::new();
    for (is_command, text) in &texts {
        match text.strip_prefix("$ ") {
            Some("vmm compare") => return,
            Some(command) if *is_command => {
                let ran = checkout.shell().run(&format!("cd examples/first && {command}")).unwrap();
                printed = [ran.stdout.lines, ran.stderr.lines].concat();
                printed.iter_mut().for_each(|line| *line = line.replace(&prefix, ""));
            }
            _ if text == "..." => {}
            _ => {
                let seen = alike(text.trim_end_matches('…'));
                let has =
                    printed.iter().any(|line| alike(&line.replace("examples/first/", "")).contains(&seen));
                assert!(has, "the program does not print {text}:\n{}", printed.join("\n"));
            }
        }
    }
}
