//! Console blocks of documents: each command is run, and its output is compared with what the document shows.
//!
//! A line `$ COMMAND` is a command. The next line continues it if it ends in `\`, and lines that begin with `> ` continue a
//! here-document. The other lines are the output. A line `...` stands for any lines, also for none.
#![allow(dead_code, reason = "each test uses a part")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A command, and the lines that it prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub command: String,
    pub shown: Vec<String>,
}

/// The steps of a console block.
pub fn steps(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.into(), shown: Vec::new() });
            continue;
        }
        let step =
            steps.last_mut().unwrap_or_else(|| panic!("a console block begins with a command, not: {line}"));
        let (is_first, rest) = (step.shown.is_empty(), line.strip_prefix("> "));
        match rest.filter(|_| step.command.contains("<<")) {
            _ if is_first && step.command.ends_with('\\') => {
                step.command += &format!("\n{}", rest.unwrap_or(line));
            }
            Some(rest) if is_first => step.command += &format!("\n{rest}"),
            _ => step.shown.push(line.into()),
        }
    }
    steps
}

/// The longest time that a command may take. The tests of other files run at the same time.
const LIMIT: Duration = Duration::from_secs(90);
/// The variables that a command finds, besides PATH. A reader has no variables of cargo and make.
const VARIABLES: [&str; 7] =
    ["HOME", "USER", "TMPDIR", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO_HOME", "LD_LIBRARY_PATH"];

/// A shell in a folder. The folder and the variables that a command sets are there for the next one.
pub struct Shell {
    bash: Child,
    input: ChildStdin,
    /// The commands, their output and their statuses.
    files: TempDir,
    count: usize,
}

/// The output of a command.
pub struct Printed {
    pub stdout: Text,
    pub stderr: Text,
    pub status: i32,
}

/// The lines of an output.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    pub lines: Vec<String>,
    /// The last line has no end, so that a terminal shows the next line of the other output after it.
    pub is_open: bool,
}

impl Text {
    pub fn new(text: &str) -> Self {
        let lines = text.lines().map(|line| line.trim_end().to_owned()).collect();
        Self { lines, is_open: !text.is_empty() && !text.ends_with('\n') }
    }

    /// Reads a file. The first MiB are enough.
    fn read(path: &Path) -> Self {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(path) {
            let _ = file.take(1 << 20).read_to_end(&mut bytes);
        }
        Self::new(&String::from_utf8_lossy(&bytes))
    }

    /// Line `at` if it is the last one, and has no end.
    fn open_line(&self, at: usize) -> Option<&str> {
        let is_last = self.is_open && at + 1 == self.lines.len();
        self.lines.get(at).filter(|_| is_last).map(String::as_str)
    }
}

impl Shell {
    /// Starts a shell in `folder`. The programs in `programs` come before all others.
    pub fn start(folder: &Path, programs: &Path) -> Self {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command
            .arg("--norc")
            .current_dir(folder)
            .env_clear()
            .env("PATH", path)
            .env("LC_ALL", "C.UTF-8")
            .env("status_before", "0");
        command.envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, so that everything that it has started can be ended.
        let mut bash = command.process_group(0).spawn().expect("bash starts");
        let input = bash.stdin.take().expect("the input of bash");
        Self { bash, input, files: TempDir::new().expect("a temporary folder"), count: 0 }
    }

    /// Runs a command.
    ///
    /// # Errors
    /// It took too long, or ended the shell.
    pub fn run(&mut self, command: &str) -> Result<Printed, String> {
        self.count += 1;
        let at = |kind: &str| -> PathBuf { self.files.path().join(format!("{}.{kind}", self.count)) };
        let (script, stdout, stderr, status) = (at("sh"), at("out"), at("err"), at("status"));
        fs::write(&script, command).expect("the command is written");
        // `$?` is the status of the last command. The file with the status appears with its content.
        let line = format!(
            "eval \"(exit $status_before)\n$(<'{}')\" >'{}' 2>'{}' </dev/null; status_before=$?; echo $status_before >'{}'; mv '{3}' '{3}.done'\n",
            script.display(),
            stdout.display(),
            stderr.display(),
            status.display()
        );
        self.input.write_all(line.as_bytes()).map_err(|error| format!("the shell has ended: {error}"))?;
        let done = PathBuf::from(format!("{}.done", status.display()));
        let started = Instant::now();
        while !done.exists() {
            if self.bash.try_wait().expect("bash can be waited for").is_some() {
                return Err("it has ended the shell".into());
            }
            if started.elapsed() > LIMIT {
                return Err(format!(
                    "it took longer than {} seconds: {:?}",
                    LIMIT.as_secs(),
                    Text::read(&stderr).lines
                ));
            }
            thread::sleep(Duration::from_millis(2));
        }
        let status = fs::read_to_string(&done).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(-1);
        Ok(Printed { stdout: Text::read(&stdout), stderr: Text::read(&stderr), status })
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = format!("-{}", self.bash.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.bash.kill();
        let _ = self.bash.wait();
    }
}

/// True if a line is the shown one, in which `...` stands for any characters.
pub fn is_like(shown: &str, line: &str) -> bool {
    let mut parts = shown.trim_end().split("...");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// Compares the lines that a document shows with those of both outputs. The lines of one output are in order; those of the other may
/// be anywhere between them, because a terminal shows them as they come.
///
/// # Errors
/// They differ. The text says where.
pub fn compare(shown: &[String], printed: &Printed, like: impl Fn(&str, &str) -> bool) -> Result<(), String> {
    let (out, err) = (&printed.stdout.lines, &printed.stderr.lines);
    // The states after some of the shown lines: how many lines of each output are used.
    let mut states = vec![(0, 0)];
    for (number, line) in shown.iter().enumerate() {
        let mut next = Vec::new();
        for &(a, b) in &states {
            if line == "..." {
                next.extend((a..=out.len()).flat_map(|a| (b..=err.len()).map(move |b| (a, b))));
                continue;
            }
            let is_like = |other: &String| like(line, other);
            next.extend(out.get(a).filter(|other| is_like(other)).map(|_| (a + 1, b)));
            next.extend(err.get(b).filter(|other| is_like(other)).map(|_| (a, b + 1)));
            let joined = match (printed.stdout.open_line(a), printed.stderr.open_line(b)) {
                (Some(first), _) => err.get(b).map(|second| format!("{first}{second}")),
                (_, Some(first)) => out.get(a).map(|second| format!("{first}{second}")),
                _ => None,
            };
            next.extend(joined.filter(is_like).map(|_| (a + 1, b + 1)));
        }
        next.sort_unstable();
        next.dedup();
        if next.is_empty() {
            let before = shown.get(number.wrapping_sub(1)).map_or("the command", String::as_str);
            return Err(format!("it does not print, after {before:?}: {line:?}"));
        }
        states = next;
    }
    match states.contains(&(out.len(), err.len())) {
        true => Ok(()),
        false => Err("it prints more".into()),
    }
}

/// Runs a step, and compares its output.
///
/// # Panics
/// The command prints something else.
pub fn check(shell: &mut Shell, place: &str, step: &Step, like: impl Fn(&str, &str) -> bool) {
    let command = &step.command;
    let printed = shell.run(command).unwrap_or_else(|what| panic!("{place}: {command}: {what}"));
    if let Err(what) = compare(&step.shown, &printed, like) {
        let (out, err, status) =
            (printed.stdout.lines.join("\n"), printed.stderr.lines.join("\n"), printed.status);
        panic!("{place}: {command}: {what}\nstdout:\n{out}\nstderr:\n{err}\nstatus {status}");
    }
}
