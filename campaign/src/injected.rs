//! Small guests on a host that fails: one call of the C library or of KVM, or all from one on, returns an error.
//!
//! The calls that can fail are those that each guest's run makes on this host; a run without failures counts them first.

use crate::Setup;
use crate::compile::compile;
use crate::judge::{self, Verdict};
use crate::program::{Ran, Run, new_files};
use crate::queues;
use crate::schedule::Part;
use fastrand::Rng;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The size of an entry of the library's table of calls, and of the name in it, in bytes.
const ENTRY: usize = 32;
const NAME: usize = 24;
/// The time limit of a guest, in seconds. The program gets more to end.
const TIMEOUT: &str = "4";
const LIMIT: Duration = Duration::from_secs(16);

const INPUT: &str = "input";
const DISK: &str = "disk.img";
const RESULTS: [&str; 3] = ["run.json", "run.trace", "page.html"];

/// A command line, and how it ends on a host that works.
struct Case {
    run: Run,
    stdout: Vec<u8>,
    /// The names of the calls that it makes.
    calls: Vec<String>,
}

/// The part.
pub struct Injected {
    library: PathBuf,
    cases: Vec<Case>,
}

/// The command lines.
fn lines(kernel: &str, saved: &Path) -> Vec<Run> {
    let (profile, trace) = (saved.join("run.json"), saved.join("run.trace"));
    let (profile, trace) = (profile.display().to_string(), trace.display().to_string());
    let guest = |arguments: &[&str]| Run::new(&[arguments, &["--timeout", TIMEOUT]].concat());
    let mut lines = vec![guest(&["real16-42"]), guest(&["smp-counter"]), guest(&["smp-print"])];
    for transport in ["exit", "coalesced", "doorbell", "polling"] {
        lines.push(guest(&["simvirtio", "--transport", transport]));
        lines.push(guest(&["simvirtio-upper", "--input", INPUT, "--transport", transport]));
    }
    lines.extend(["kev-hypercall", "kev-msr-rules", "kev-mmio", "user64-hello"].map(|name| guest(&[name])));
    let boot = ["boot", kernel, "--disk", DISK, "--mem", "16M", "--cmdline", "plain"];
    lines.push(guest(&boot));
    lines.push(guest(&[&boot[..], &["--console", "virtio", "--cpus", "2"]].concat()));
    lines.push(guest(&[&boot[..], &["--profile", "json=run.json"]].concat()));
    for transport in ["exit", "polling"] {
        let options = ["--transport", transport, "--profile", "json=run.json", "--trace", "run.trace"];
        lines.push(guest(&[&["simvirtio"], &options[..]].concat()));
    }
    lines.push(Run::new(&["report", &profile]));
    lines.push(Run::new(&["report", &trace, "--format", "csv"]));
    lines.push(Run::new(&["report", &profile, "--format", "html", "-o", "page.html"]));
    lines
}

impl Injected {
    /// Compiles the library and the kernel, and runs each command line once on a host that works.
    ///
    /// # Errors
    /// A run does not end with 0.
    pub fn new(setup: &Setup) -> Result<Self, String> {
        let folder = setup.folder.path();
        let source = include_str!("../../tests/support/failing-host.c");
        let library = compile(folder, "failing-host.so", source, &["-shared", "-fPIC", "-ldl"])?;
        let kernel = queues::kernel(folder)?.display().to_string();
        let saved = folder.join("saved");
        fs::create_dir_all(&saved).map_err(|error| format!("cannot create a folder: {error}"))?;
        let files = Run::new(&["simvirtio", "--profile", "json=run.json", "--trace", "run.trace"]);
        files.run(&setup.program, &saved, LIMIT)?;
        let cases: Result<_, _> =
            lines(&kernel, &saved).into_iter().map(|run| case(setup, &library, run)).collect();
        Ok(Self { cases: cases?, library })
    }
}

/// Writes the files that a guest needs.
fn prepare(folder: &Path) -> Result<(), String> {
    let written = fs::write(folder.join(INPUT), "Ana are mere")
        .and_then(|()| fs::write(folder.join(DISK), [0; queues::DISK as usize]));
    written.map_err(|error| format!("cannot write a file: {error}"))
}

fn preload(run: &Run, library: &Path, variable: (&'static str, String)) -> Run {
    let mut run = run.clone();
    run.variables.extend([("LD_PRELOAD", library.display().to_string()), variable]);
    run
}

/// Runs a command line without a failure, and counts its calls.
fn case(setup: &Setup, library: &Path, run: Run) -> Result<Case, String> {
    let folder = setup.scratch()?;
    prepare(folder.path())?;
    let table = setup.folder.path().join("calls");
    let _ = fs::remove_file(&table);
    let counted = preload(&run, library, ("CALLS", table.display().to_string()));
    let ran = counted.run(&setup.program, folder.path(), LIMIT)?;
    if let Some(why) =
        wrong(&ran, &ran.stdout, folder.path()).or((ran.status != 0).then(|| ran.stderr.clone()))
    {
        return Err(format!("without a failure, `{}` {why}", run.shown(&setup.program)));
    }
    let table = fs::read(&table).map_err(|error| format!("cannot read the counts of calls: {error}"))?;
    let calls = table.chunks_exact(ENTRY).filter(|entry| entry[NAME..].iter().any(|byte| *byte != 0));
    let name = |entry: &[u8]| {
        String::from_utf8_lossy(entry[..NAME].split(|byte| *byte == 0).next().unwrap_or_default())
            .into_owned()
    };
    Ok(Case { run, stdout: ran.stdout, calls: calls.map(name).collect() })
}

/// Chooses a failure, as the variable FAIL of the library.
fn failure(choices: &mut Rng, calls: &[String]) -> String {
    // EPERM, EINTR, EIO, EBADF, EAGAIN, ENOMEM, EFAULT, EINVAL, EMFILE, ENOSPC, ENOSYS.
    const ONCE: [i32; 11] = [1, 4, 5, 9, 11, 12, 14, 22, 24, 28, 38];
    // A call that is interrupted, or cannot continue, without end may be repeated without end.
    const ALWAYS: [i32; 7] = [1, 5, 12, 22, 24, 28, 38];
    let name = &calls[choices.usize(..calls.len())];
    let first = if choices.bool() { 1 + choices.u32(..4) } else { 1 + choices.u32(..25) };
    match choices.u8(..4) {
        0 => format!("{name} {} {first} 0", ALWAYS[choices.usize(..ALWAYS.len())]),
        _ => format!("{name} {} {first} 1", ONCE[choices.usize(..ONCE.len())]),
    }
}

/// Checks a run, and the files that it leaves. Returns what is wrong.
fn wrong(ran: &Ran, stdout: &[u8], folder: &Path) -> Option<String> {
    judge::check_complete(ran, stdout).or_else(|| {
        let left = new_files(folder, &[&[INPUT, DISK], &RESULTS[..]].concat());
        (!left.is_empty()).then(|| format!("leaves files behind: {left:?}"))
    })
}

/// Checks the result files that a command line asks for: complete, or absent. After success they are there. Only a trace may be
/// cut short, if the error says so.
fn wrong_result(run: &Run, ran: &Ran, folder: &Path) -> Option<String> {
    for name in RESULTS.iter().filter(|name| run.arguments.iter().any(|argument| argument.ends_with(**name)))
    {
        let path = folder.join(name);
        // The last two command lines read files of this name in another folder.
        if run.arguments.iter().any(|argument| argument.starts_with('/') && argument.ends_with(*name)) {
            continue;
        }
        if !path.exists() {
            if ran.status == 0 {
                return Some(format!("ends with 0, and {name} is missing"));
            }
            continue;
        }
        let is_whole = match *name {
            "page.html" => fs::read_to_string(&path).is_ok_and(|page| page.trim_end().ends_with("</html>")),
            _ => match report::read(&path) {
                // The first records of a trace are kept, and the error says so.
                Ok(report::Saved::Trace(_, cut)) => {
                    cut.is_none() || (ran.status != 0 && ran.stderr.contains("cut short"))
                }
                Ok(report::Saved::Profile(_)) => true,
                Err(_) => false,
            },
        };
        if !is_whole {
            return Some(format!("leaves {name} incomplete"));
        }
    }
    None
}

impl Part for Injected {
    fn name(&self) -> &'static str {
        "injected"
    }

    fn run(&self, setup: &Setup, number: u64) -> Result<Verdict, String> {
        let mut choices = setup.choices(self.name(), number);
        let case = &self.cases[choices.usize(..self.cases.len())];
        let failure = failure(&mut choices, &case.calls);
        let run = preload(&case.run, &self.library, ("FAIL", failure.clone()));
        let folder = setup.scratch()?;
        prepare(folder.path())?;
        let ran = run.run(&setup.program, folder.path(), LIMIT)?;
        let mut wrong =
            wrong(&ran, &case.stdout, folder.path()).or_else(|| wrong_result(&case.run, &ran, folder.path()));
        // Without standard error, a reason cannot be told.
        if failure.starts_with("write_stderr ")
            && wrong.as_ref().is_some_and(|why| why.contains("says no reason"))
        {
            wrong = None;
        }
        let command = run.shown(&setup.program);
        Ok(Verdict { status: ran.status, wrong: wrong.map(|why| format!("{why} [{failure}]")), command })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_failures_again() {
        let calls: Vec<String> = ["open", "mmap", "ioctl:80"].map(String::from).into();
        for seed in 0..100 {
            let choose = || failure(&mut Rng::with_seed(seed), &calls);
            assert_eq!(choose(), choose());
            assert_eq!(choose().split(' ').count(), 4);
        }
    }

    #[test]
    fn an_incomplete_result_is_found() {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let run = Run::new(&["x", "--profile", "json=run.json"]);
        let ended = |status| Ran { status, ..Ran::default() };
        assert!(wrong_result(&run, &ended(0), folder.path()).is_some(), "it is missing");
        assert_eq!(wrong_result(&run, &ended(115), folder.path()), None);
        fs::write(folder.path().join("run.json"), "{").unwrap_or_else(|error| panic!("{error}"));
        assert!(wrong_result(&run, &ended(115), folder.path()).is_some(), "it is cut short");
    }
}
