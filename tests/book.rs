//! The lab book (`docs/book`): its commands are run, and print what it shows. Its listings compile without warnings, its links and
//! includes lead somewhere, and each chapter has its exercise.
#![allow(clippy::unwrap_used)]

#[path = "support/console_blocks.rs"]
mod console_blocks;
#[path = "support/markdown.rs"]
mod markdown;
mod support;

use console_blocks::{Shell, is_like};
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use support::{kvm_test, plain_test, run};

const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/book");
const COURSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/courses/first-vmm");

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("the_summary_has_all_pages", summary),
        plain_test("each_chapter_has_its_exercise", exercises),
        plain_test("links_and_includes_lead_somewhere", links),
        plain_test("the_listings_compile_without_warnings", listings),
        plain_test("a_wrong_output_is_found", differences),
    ];
    tests.extend(pages().into_iter().filter(|page| !page.commands().is_empty()).map(commands));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// A page of the book.
struct Page {
    /// The name of the file without its extension. That of a chapter begins with its number.
    name: String,
    text: String,
}

impl Page {
    fn read(name: &str) -> Self {
        let file = format!("{BOOK}/src/{name}.md");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        Self { name: name.into(), text }
    }

    /// The number of a chapter.
    fn number(&self) -> Option<u32> {
        self.name.split_once('-')?.0.parse().ok()
    }

    /// The commands of its console blocks.
    fn commands(&self) -> Vec<String> {
        let blocks = markdown::blocks(&self.text, "console");
        let steps = blocks.iter().flat_map(|block| console_blocks::steps(&block.text));
        steps.map(|step| step.command).collect()
    }
}

/// The pages that the summary lists, in this order.
fn pages() -> Vec<Page> {
    let summary = Page::read("SUMMARY");
    let links = markdown::links(&summary.text).into_iter();
    links.map(|(path, _)| Page::read(path.trim_start_matches("./").strip_suffix(".md").unwrap())).collect()
}

/// The names of the files in a folder, in order.
fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn summary() {
    let mut listed: Vec<_> = pages().into_iter().map(|page| format!("{}.md", page.name)).collect();
    let numbers: Vec<_> = pages().iter().filter_map(Page::number).collect();
    assert!(!numbers.is_empty() && numbers.iter().copied().eq(1..=numbers.len() as u32), "{numbers:?}");
    listed.push("SUMMARY.md".into());
    listed.sort();
    assert_eq!(names(&format!("{BOOK}/src")), listed);
}

/// A chapter and its exercise have the same name, so that a reader finds one from the other.
fn exercises() {
    let pages = pages();
    let chapters: Vec<_> = pages.iter().filter(|page| page.number().is_some()).collect();
    for page in &chapters {
        let (number, name) = (page.number().unwrap(), &page.name);
        assert!(
            Path::new(COURSE).join(name).join("check.toml").exists(),
            "the exercise of {name} is missing"
        );
        let command = format!("vmm lab check {number}");
        let has =
            page.text.split(&command).skip(1).any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
        assert!(has, "{name} does not have {command}");
    }
    let folders = names(COURSE).into_iter().filter(|name| Path::new(COURSE).join(name).is_dir());
    let chapters: Vec<_> = chapters.iter().map(|page| page.name.clone()).collect();
    assert_eq!(folders.collect::<Vec<_>>(), chapters);
}

fn links() {
    let pages: Vec<PathBuf> =
        names(&format!("{BOOK}/src")).iter().map(|name| format!("{BOOK}/src/{name}").into()).collect();
    for file in pages.iter().chain([&format!("{BOOK}/README.md").into()]) {
        let text = fs::read_to_string(file).unwrap();
        let (folder, file) = (file.parent().unwrap(), file.display());
        let is_page = folder.ends_with("src");
        for (path, fragment) in markdown::links(&text) {
            // `make book` has the pages and the listings, and no other files.
            let is_inside = !path.starts_with("../") || path.starts_with("../code/");
            assert!(is_inside || !is_page, "{file}: the link {path} leads out of the book");
            let target = folder.join(&path);
            assert!(target.exists(), "{file}: the link {path} leads nowhere");
            let target =
                if path.is_empty() { text.clone() } else { fs::read_to_string(target).unwrap_or_default() };
            let is_known = fragment.is_empty() || markdown::fragments(&target).contains(&fragment);
            assert!(is_known, "{file}: the link {path}#{fragment} leads to no heading");
        }
        for include in text.split("{{#include ").skip(1) {
            let include = include.split("}}").next().unwrap().trim();
            let (path, part) = include.split_once(':').unwrap_or((include, ""));
            let target = fs::read_to_string(folder.join(path));
            let target = target.unwrap_or_else(|error| panic!("{file}: the include {include}: {error}"));
            let is_part = part.is_empty()
                || part.starts_with(|c: char| c.is_ascii_digit() || c == ':')
                || ["ANCHOR", "ANCHOR_END"].iter().all(|word| has_anchor(&target, word, part));
            assert!(is_part, "{file}: {path} has no anchor {part}");
        }
    }
}

/// True if a line has a mark such as `ANCHOR: name`, also in a comment of C.
fn has_anchor(text: &str, word: &str, name: &str) -> bool {
    let names =
        text.lines().filter_map(|line| line.split_once(&format!("{word}: "))?.1.split_whitespace().next());
    names.into_iter().any(|other| other == name)
}

fn listings() {
    let code = format!("{BOOK}/code");
    let files = support::Files::new();
    let object = files.0.path().join("object");
    for name in names(&code) {
        let mut command = match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("c") => Command::new("gcc"),
            Some("rs") => Command::new("rustc"),
            _ => continue,
        };
        match name.ends_with(".c") {
            true => command.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-c", &name]),
            false => command.args(["--edition", "2021", "-D", "warnings", "--emit", "metadata", &name]),
        };
        let ran = run(command.current_dir(&code).arg("-o").arg(&object).stdout(Stdio::piped()));
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{name}");
    }
}

/// Runs the commands of a page in a fresh folder, which has the listings of the chapter. The exercises are in the folder first-vmm if
/// the page uses them, and does not write them itself.
fn commands(page: Page) -> Trial {
    let name = format!("commands_of_{}", page.name.replace('-', "_"));
    let body = move || {
        let files = support::Files::new();
        let (programs, folder) = (files.0.path().join("bin"), files.0.path().join("chapter"));
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vmm"), programs.join("vmm")).unwrap();
        let prefix = page.number().map(|number| format!("{number:02}-"));
        for name in names(&format!("{BOOK}/code")) {
            if prefix.as_ref().is_some_and(|prefix| name.starts_with(prefix)) {
                fs::copy(format!("{BOOK}/code/{name}"), folder.join(name)).unwrap();
            }
        }
        let commands = page.commands();
        let has = |text: &str| commands.iter().any(|command| command.contains(text));
        let mut shell = Shell::start(&folder, &programs);
        if has("first-vmm") && !has("vmm lab new first-vmm") {
            let printed = shell.run("vmm lab new first-vmm first-vmm").unwrap();
            assert_eq!(printed.status, 0, "{:?}", printed.stderr);
        }
        for block in markdown::blocks(&page.text, "console") {
            let place = format!("{}.md:{}", page.name, block.line);
            for step in console_blocks::steps(&block.text) {
                console_blocks::check(&mut shell, &place, &step, is_like);
            }
        }
    };
    kvm_test(name, body)
}

/// The comparison itself: `...` stands for something, but not for everything.
fn differences() {
    use console_blocks::{Printed, Text, compare, steps};
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let agrees = |shown: &str, stdout: &str, stderr: &str| {
        let printed = Printed { stdout: Text::new(stdout), stderr: Text::new(stderr), status: 0 };
        compare(&lines(shown), &printed, is_like).is_ok()
    };
    // The lines of one output are in order, and those of the other are between them.
    assert!(agrees("a\nx\nb", "a\nb\n", "x\n") && agrees("x\na\nb", "a\nb\n", "x\n") && agrees("", "", ""));
    assert!(!agrees("b\na", "a\nb\n", "") && !agrees("a\nx", "a\n", "x\ny\n"));
    assert!(!agrees("", "a\n", "") && !agrees("a", "", ""));
    // A line without an end is before a line of the other output.
    assert!(agrees("ax\ny", "a", "x\ny\n") && agrees("a\nx", "a", "x\n") && !agrees("ax", "a\n", "x\n"));
    // Dots stand for lines and for characters.
    assert!(
        agrees("a\n...\nd", "a\nb\nc\nd\n", "") && agrees("...", "a\n", "b\n") && agrees("a\n...", "a\n", "")
    );
    assert!(!agrees("a\n...\nd", "a\nb\n", "") && !agrees("...\na", "b\n", ""));
    assert!(agrees("took ... ms, ... us", "took 1.5 ms, 20 us\n", "") && agrees("a...", "a\n", ""));
    assert!(
        !agrees("took ... ms", "took 1 us\n", "") && !agrees("aa", "a\n", "") && !agrees("a...a", "a\n", "")
    );
    let read = steps("$ cat <<E\n> a\n> E\na\n$ gcc \\\n  -c\n$ true\n");
    let commands: Vec<_> = read.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["cat <<E\na\nE", "gcc \\\n  -c", "true"]);
    assert_eq!((read[0].shown.as_slice(), read[1].shown.len()), (&["a".to_owned()][..], 0));
    // The shell keeps the folder, the variables and the status.
    let files = support::Files::new();
    let mut shell = Shell::start(files.0.path(), files.0.path());
    assert_eq!(shell.run("mkdir d && cd d && X=1; sleep 60 & false").unwrap().status, 1);
    let second = shell.run("echo $? ${PWD##*/} $X; echo wrong >&2").unwrap();
    assert_eq!(
        (second.stdout, second.stderr, second.status),
        (Text::new("1 d 1\n"), Text::new("wrong\n"), 0)
    );
    assert!(shell.run("exit 3").is_err());
}
