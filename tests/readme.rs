//! The README: its commands are run, and print what it shows. Its pictures and links are there.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
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
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
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
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            let is_local = !path.is_empty() && !path.contains(':') && !path.contains(' ');
            assert!(!is_local || folder.join(path).exists(), "{file}: the link {link} leads nowhere");
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

    /// Runs a line of a shell. Returns the lines on stdout, and then those on stderr.
    fn run(&self, line: &str) -> Vec<String> {
        let folder = self.0.path();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(folder).env("PATH", path).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        let real = folder.canonicalize().unwrap();
        text.replace(&format!("{}/", real.display()), "").lines().map(str::to_owned).collect()
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

/// Checks that all lines occur in this order. `...` stands for any lines.
fn assert_shows(command: &str, shown: &[&str], printed: &[String]) {
    let mut rest = printed.iter();
    let mut any = false;
    for line in shown {
        if *line == "..." {
            any = true;
            continue;
        }
        let found = match any {
            true => rest.any(|other| alike(other) == alike(line)),
            false => rest.next().is_some_and(|other| alike(other) == alike(line)),
        };
        assert!(found, "{command} does not print, at this place: {line}\n{}", printed.join("\n"));
        any = false;
    }
    assert!(any || rest.next().is_none(), "{command} prints more:\n{}", printed.join("\n"));
}

fn commands() {
    let checkout = Checkout::new();
    let mut count = 0;
    for block in blocks(&readme(), "console") {
        for part in block.split("$ ").filter(|part| !part.is_empty()) {
            let mut lines = part.lines();
            let command = lines.next().unwrap();
            let shown: Vec<_> = lines.collect();
            let printed = checkout.run(command);
            if !shown.is_empty() {
                assert_shows(command, &shown, &printed);
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
    let mut printed: Vec<String> = Vec::new();
    for (is_command, text) in &texts {
        match text.strip_prefix("$ ") {
            Some("vmm compare") => return,
            Some(command) if *is_command => {
                printed = checkout.run(&format!("cd examples/first && {command}"));
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
