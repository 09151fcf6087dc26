//! The end of a run: its summary, its result files and its exit status. All commands that run a machine share it.

use crate::expect::{AfterRun, Checked};
use crate::measure::{MeasureArgs, ResultFiles};
use crate::outputs::check_different;
use crate::progress;
use crate::sample::SampleFiles;
use crate::screen::ScreenFile;
use crate::status::Failure;
use crate::streams::{print_stderr, report_error};
use crate::{sample, screen, status, summary};
use gdb::Server;
use report::view::By;
use report::{Measured, Samples, SavedName};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use vmm::{Error, Output, Report};

/// A run that has ended.
pub struct Ran {
    /// The guest's name, to print.
    pub name: String,
    /// The report of the run.
    pub report: Report,
    /// Lines with the names of the places in the guest's code where it died. Empty if it did not, or without symbols.
    pub places: String,
    /// The message about the core, and true if it is an error.
    pub core: Option<(String, bool)>,
    /// The results of the checks of `--expect`.
    pub checked: Checked,
    /// The names of the addresses that exits come from.
    pub names: Vec<SavedName>,
    /// The samples of the guest, if some were to be taken.
    pub samples: Option<Samples>,
    /// The server of the debugger, which waits for the exit status.
    pub debugger: Option<Server>,
}

/// Standard output for the guest's text.
pub struct GuestText {
    /// The output of the machine.
    pub output: Output,
    /// True if it is a terminal.
    pub is_terminal: bool,
    /// The checks and files of the end of the run.
    pub after: AfterRun,
}

/// The value in the place of the last byte while the guest has printed nothing.
const NOTHING_PRINTED: u16 = u16::MAX;

/// Calls `run` with standard output for the guest's text, prints the summary and writes the result files. `inputs` returns
/// the files that the run reads; `step` is the file of `--step-file`. Returns the exit status.
pub fn run_and_report(
    arguments: &MeasureArgs,
    step: Option<&Path>,
    inputs: impl FnOnce() -> Vec<PathBuf>,
    run: impl FnOnce(GuestText) -> Result<Ran, Failure>,
) -> u8 {
    let last_byte = Arc::new(AtomicU16::new(NOTHING_PRINTED));
    vmm::host::catch_interrupts();
    let open_and_run = || {
        check_different(arguments, step)?;
        let text = output(last_byte.clone())?;
        let inputs = inputs();
        let after = arguments.expect.prepare(|| inputs.clone())?;
        let results = Results::open(arguments, inputs)?;
        let is_terminal = text.is_terminal;
        Ok::<_, Failure>((results, is_terminal, run(GuestText { after, ..text })?))
    };
    let (results, is_terminal, ran) = match open_and_run() {
        Ok(results) => results,
        Err(error) => return report_error(&error),
    };
    let Ran { name, report, places, names, samples, core, checked, debugger } = ran;
    let quiet = arguments.results.quiet;
    let last_byte = u8::try_from(last_byte.load(Ordering::Relaxed)).ok();
    let shown = show_screen(results.screen, &report, is_terminal, last_byte);
    let status = first_failure(status::of_report(&report), shown);
    let mut text = summary::first_line(&name, &report);
    if !quiet {
        text += &summary::details(&report, &places, &names, arguments.results.by.map(By::from));
        text += &sample::lines(&report, samples.as_ref());
    }
    print_stderr(&text);
    let core = core.map_or(status::OK, |core| tell_core(core, quiet));
    // An expected end of the run is no failure, and a core that is missing is one.
    let status = first_failure(checked.report(&report, status, quiet), core);
    let ended = summary::ending(&report);
    let measured = Measured::of(&name, &ended, &report).map(|measured| Measured {
        names: &names,
        samples: samples.as_ref(),
        ..measured
    });
    let status = first_failure(status, results.samples.write(samples.as_ref(), &name, quiet));
    let status = results.files.write(measured.as_ref(), status);
    if let Some(mut server) = debugger {
        server.finish(status);
    }
    status
}

/// The files for the results of a run.
struct Results<'a> {
    files: ResultFiles<'a>,
    samples: SampleFiles<'a>,
    screen: Option<ScreenFile<'a>>,
}

impl<'a> Results<'a> {
    /// Opens the files, of which none may be an input.
    ///
    /// # Errors
    /// One is, or cannot be written.
    fn open(arguments: &'a MeasureArgs, inputs: Vec<PathBuf>) -> Result<Self, Failure> {
        let screen = arguments.screen.as_ref().map(|path| ScreenFile::open(path, &inputs)).transpose()?;
        arguments.sample.check_shown(&arguments.results)?;
        let samples = SampleFiles::open(&arguments.sample, &inputs)?;
        let files = ResultFiles::open(&arguments.results, || inputs)?;
        Ok(Self { files, samples, screen })
    }
}

/// The first of two statuses that is not OK.
fn first_failure(first: u8, second: u8) -> u8 {
    if first == status::OK { second } else { first }
}

/// Writes the screen to its file, or prints it if the output is not a terminal, which has shown it. Then the cursor is at the
/// start of a line. Returns the exit status.
fn show_screen(
    file: Option<ScreenFile<'_>>,
    report: &Report,
    is_terminal: bool,
    last_byte: Option<u8>,
) -> u8 {
    let unprinted = report.screen.as_ref().filter(|_| !is_terminal && !report.screen_is_printed);
    let prints_screen = unprinted.is_some() && file.is_none();
    let status = match (file, unprinted) {
        (Some(file), _) => file.write(report.screen.as_ref()),
        (None, Some(screen)) => screen::print(screen, last_byte),
        (None, None) => status::OK,
    };
    // The guest's last line may lack its newline. The summary starts on a new line.
    if !prints_screen && last_byte.is_some_and(|byte| byte != b'\n') && stdout_is_stderr() {
        print_stderr("\n");
    }
    status
}

/// Prints the message about a core. Returns the exit status.
fn tell_core((text, failed): (String, bool), quiet: bool) -> u8 {
    match failed {
        true => print_stderr(&format!("vmm: error: {text}\n")),
        false if !quiet => print_stderr(&format!("vmm: {text}\n")),
        false => {}
    }
    if failed { status::HOST_ERROR } else { status::OK }
}

/// Opens standard output for the guest's text. A terminal gets each byte at once, anything else whole lines.
fn output(last_byte: Arc<AtomicU16>) -> Result<GuestText, Error> {
    let stdout = io::stdout();
    let file = stdout.as_fd().try_clone_to_owned();
    let file = file.map_err(|source| Error::Host { operation: "opening standard output", source })?;
    let is_terminal = stdout.is_terminal();
    let output = Output::new(Stdout { file: file.into(), last_byte }, !is_terminal);
    Ok(GuestText { output, is_terminal, after: AfterRun::default() })
}

/// Returns true if stdout and stderr are the same terminal, file or pipe.
fn stdout_is_stderr() -> bool {
    let identity = |stream: BorrowedFd<'_>| {
        let metadata = File::from(stream.try_clone_to_owned().ok()?).metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let stdout = identity(stdout.as_fd());
    stdout.is_some() && stdout == identity(stderr.as_fd())
}

/// Standard output as a file, so that a write returns when a signal interrupts it. Remembers the last byte that was
/// written.
struct Stdout {
    file: File,
    last_byte: Arc<AtomicU16>,
}

impl Write for Stdout {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.last_byte.load(Ordering::Relaxed) == NOTHING_PRINTED {
            progress::end();
        }
        let written = self.file.write(data)?;
        if let Some(last) = written.checked_sub(1).and_then(|at| data.get(at)) {
            self.last_byte.store((*last).into(), Ordering::Relaxed);
        }
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
