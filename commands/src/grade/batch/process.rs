//! Starts the process of a submission, and takes its grade.

use crate::grade::batch::child::Order;
use crate::sys::{has_ended, kill_group, number, wait_readable};
use grades::Grade;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vmm::host::{interrupted, printable_text};

/// The most bytes of a grade.
const MAX_GRADE: usize = 16 << 20;
/// The most bytes of messages that are kept.
const MAX_MESSAGES: usize = 4096;
/// The time between two looks at the signals of this program.
const LOOK: Duration = Duration::from_millis(100);
/// The time that a process has to end after it has closed its streams.
const ENDING: Duration = Duration::from_secs(2);

/// The command for the processes of a batch.
pub struct Launcher {
    /// This program.
    program: PathBuf,
    /// The words between `grade --child` and the submission.
    words: Vec<OsString>,
    order: Order,
    /// The time limit of a process.
    limit: Duration,
}

/// The reason why a process gave no grade.
#[derive(Debug)]
pub enum Failed {
    /// The batch was interrupted.
    Interrupted,
    /// The process failed. One sentence.
    Process(String),
}

impl Launcher {
    /// A command for processes that grade a submission for the exercise `subject` within `limit`.
    ///
    /// # Errors
    /// The path of this program is not known.
    pub fn new(subject: &Path, options: Vec<OsString>, order: Order, limit: Duration) -> io::Result<Self> {
        // The link leads to the file even if a new version has replaced it since.
        let link = Path::new("/proc/self/exe");
        let program =
            if cfg!(target_os = "linux") && link.exists() { link.into() } else { std::env::current_exe()? };
        let words = [options, vec!["--".into(), subject.into()]].concat();
        Ok(Self { program, words, order, limit })
    }

    /// Grades a submission in a process of its own.
    ///
    /// # Errors
    /// The process cannot be started, dies, does not end, or writes no grade; or this program was interrupted.
    pub fn grade(&self, submission: &Path) -> Result<Grade, Failed> {
        let mut command = Command::new(&self.program);
        command.args(["grade", "--child"]).args(&self.words).arg(submission);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let failed = |what: &str, error: io::Error| Failed::Process(format!("{what}: {error}"));
        let mut child = command.spawn().map_err(|error| failed("cannot start a process", error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A process that is dead already says why below.
            let _ = stdin.write_all(self.order.line().as_bytes());
        }
        let read = Streams::of(&mut child).read(self.limit);
        if read.is_ok() {
            await_end(&child);
        }
        let was_alive = !has_ended(&child);
        // All that the submission has left behind, too.
        kill_group(&child);
        let status = child.wait().map_err(|error| failed("cannot wait for a process", error))?;
        let (grade, messages) = read?;
        match Grade::from_json(&grade) {
            Ok(grade) => Ok(grade),
            Err(_) => Err(Failed::Process(reason(status, was_alive, &grade, &messages))),
        }
    }
}

/// Waits for the end of a process that has closed its streams.
fn await_end(child: &Child) {
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    while !has_ended(child) && started.elapsed() < ENDING {
        thread::sleep(pause);
        pause = pause.saturating_mul(2).min(Duration::from_millis(5));
    }
}

/// The reason why a process has written no grade.
fn reason(status: ExitStatus, was_alive: bool, grade: &[u8], messages: &[u8]) -> String {
    let messages = String::from_utf8_lossy(messages);
    let last = messages.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last = last.trim_start_matches("vmm: error: ");
    let ended = match (was_alive, status.signal(), status.code()) {
        (true, ..) => "closed its output without a grade".into(),
        (_, Some(signal), _) => format!("was ended by signal {signal}"),
        (_, _, Some(0)) if grade.is_empty() => "ended without a grade".into(),
        (_, _, Some(0)) => "wrote a grade that cannot be read".into(),
        (_, _, code) => format!("ended with status {}", code.unwrap_or(-1)),
    };
    let told = if last.is_empty() { String::new() } else { format!(": {}", printable_text(last)) };
    format!("the process that graded it {ended}{told}")
}

/// The streams of a process.
struct Streams {
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
}

impl Streams {
    fn of(child: &mut Child) -> Self {
        Self { stdout: child.stdout.take(), stderr: child.stderr.take() }
    }

    /// Reads both streams to their ends.
    ///
    /// # Errors
    /// That takes longer than `limit`, a stream is too long, or this program was interrupted.
    fn read(mut self, limit: Duration) -> Result<(Vec<u8>, Vec<u8>), Failed> {
        let deadline = Instant::now().checked_add(limit);
        let (mut grade, mut messages) = (Vec::new(), Vec::new());
        let process = |what: String| Failed::Process(what);
        while self.stdout.is_some() || self.stderr.is_some() {
            if interrupted() {
                return Err(Failed::Interrupted);
            }
            let left = deadline.map_or(limit, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let seconds = limit.as_secs();
                return Err(process(format!("the process that graded it did not end within {seconds} s")));
            }
            let files = [number(&self.stdout), number(&self.stderr)];
            let ready = wait_readable(files, left.min(LOOK))
                .map_err(|error| process(format!("cannot read a grade: {error}")))?;
            let [stdout, stderr] = ready;
            if stdout {
                take(&mut self.stdout, &mut grade);
            }
            if stderr {
                take(&mut self.stderr, &mut messages);
            }
            if grade.len() > MAX_GRADE {
                return Err(process("the process that graded it wrote too much".into()));
            }
            let old = messages.len().saturating_sub(MAX_MESSAGES);
            messages.drain(..old);
        }
        Ok((grade, messages))
    }
}

/// Reads what a stream has. A stream that has ended becomes `None`.
fn take(stream: &mut Option<impl Read>, bytes: &mut Vec<u8>) {
    let mut part = [0; 16 << 10];
    let read = stream.as_mut().map(|stream| stream.read(&mut part));
    match read {
        Some(Ok(len)) if len > 0 => bytes.extend_from_slice(part.get(..len).unwrap_or_default()),
        Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
        _ => *stream = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grades::Options;

    /// Runs a shell command in the place of this program.
    fn run(script: &str, limit: Duration) -> Result<Grade, Failed> {
        let order = Order { seed: 1, digest: 2, parent: 3 };
        let launcher = Launcher { program: "/bin/sh".into(), words: Vec::new(), order, limit };
        // The shell reads this file: its name is the first word after the options.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("grade");
        std::fs::write(&file, script).unwrap();
        let program = folder.path().join("sh");
        std::fs::write(&program, format!("#!/bin/sh\n. {}\n", file.display())).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        Launcher { program, ..launcher }.grade(Path::new("x"))
    }

    fn error(script: &str) -> String {
        match run(script, Duration::from_secs(20)) {
            Err(Failed::Process(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_process_without_a_grade_says_why() {
        let of = |end: &str| format!("the process that graded it {end}");
        assert_eq!(error("kill -9 $$"), of("was ended by signal 9"));
        assert_eq!(error("exit 0"), of("ended without a grade"));
        assert_eq!(error("echo '{}'"), of("wrote a grade that cannot be read"));
        assert_eq!(
            error("echo a >&2; printf 'vmm: error: no \\033 memory\\n\\n' >&2; exit 115"),
            of("ended with status 115: no \\u{1b} memory")
        );
        assert_eq!(error("exec >&- 2>&-; sleep 30"), of("closed its output without a grade"));
        assert_eq!(error("yes"), of("wrote too much"));
    }

    #[test]
    fn a_process_beyond_its_limit_is_ended_with_its_children() {
        let started = Instant::now();
        let ended = run("sleep 60 & sleep 60", Duration::from_secs(1));
        assert!(
            matches!(&ended, Err(Failed::Process(reason)) if reason.contains("did not end within 1 s")),
            "{ended:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_grade_of_a_process_is_taken() {
        let grade = Grade {
            submission: String::new(),
            exercise: "e".into(),
            seed: 1,
            error: None,
            tasks: Vec::new(),
            milliseconds: 5,
        };
        let line = grade.to_json(Options::default());
        let grade =
            run(&format!("read order; [ \"$order\" = '1 2 3' ] && echo '{line}'"), Duration::from_secs(20));
        assert_eq!(grade.unwrap().exercise, "e");
    }
}
