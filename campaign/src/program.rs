//! Runs the program with a time limit, and keeps what it prints.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The end of a run.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// The exit status. A signal's number is added to 128, and 124 stands for a program that had to be killed.
    pub status: i32,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error.
    pub stderr: String,
}

/// The status of a program that had to be killed.
pub const KILLED: i32 = 124;
/// The most bytes of each stream that are kept.
const MOST: u64 = 128 << 20;

/// A command line of the program, with its environment.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The arguments.
    pub arguments: Vec<String>,
    /// The variables of the environment.
    pub variables: Vec<(&'static str, String)>,
}

impl Run {
    /// Creates a run with these arguments.
    pub fn new(arguments: &[&str]) -> Self {
        Self {
            arguments: arguments.iter().map(|argument| (*argument).into()).collect(),
            variables: Vec::new(),
        }
    }

    /// The command line as a shell accepts it.
    pub fn shown(&self, program: &Path) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}='{value}'"));
        let program = std::iter::once(program.display().to_string());
        variables.chain(program).chain(self.arguments.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    /// Runs the program in `folder`. After `limit` it is killed.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn run(&self, program: &Path, folder: &Path, limit: Duration) -> Result<Ran, String> {
        let mut command = Command::new(program);
        command.args(&self.arguments).current_dir(folder).env_remove("RUST_LOG");
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let stdout = child.stdout.take().map(|stream| thread::spawn(move || drain(stream)));
        let stderr = child.stderr.take().map(|stream| thread::spawn(move || drain(stream)));
        let status = wait(&mut child, limit)?;
        let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (collect(stdout), collect(stderr));
        Ok(Ran { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }
}

/// Reads a stream to its end, and keeps the first [`MOST`] bytes.
fn drain(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = from.by_ref().take(MOST).read_to_end(&mut kept);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    kept
}

fn wait(child: &mut Child, limit: Duration) -> Result<i32, String> {
    use std::os::unix::process::ExitStatusExt;
    let started = Instant::now();
    loop {
        match child.try_wait().map_err(|error| format!("cannot wait for the program: {error}"))? {
            Some(status) => {
                return Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1));
            }
            None if started.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(KILLED);
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The files in `folder`, without those that were there before.
pub fn new_files(folder: &Path, known: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| PathBuf::from(entry.file_name()));
    files.filter(|file| !known.iter().any(|name| file == Path::new(name))).collect()
}
