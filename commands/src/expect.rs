//! `--expect` and its like: conditions that a run must meet. `--dump-memory`: the guest's memory in files.

use crate::file_name::{check_dash, check_inputs};
use crate::status::{self, Failure};
use crate::streams::print_stderr;
use clap::Args;
use exercise::expect::{ExitLimit, MAX_OUTPUT, Output as ExpectedOutput};
use exercise::{Check, Expectation, Facts, ModeWatch};
use report::view::plural;
use report::{FileError, OutputFile};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::exit::Stop;
use vmm::host::{printable, printable_text};
use vmm::memory::{Gpa, GuestMemory};
use vmm::{Builder, Captured, Error, Machine, Output, Report};

/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);
/// The bytes of memory that are written at once.
const PIECE: usize = 64 << 10;

// The conditions of a run. A doc comment would become the description of the subcommands.
#[derive(Debug, Default, Args)]
pub(super) struct ExpectArgs {
    /// Require the guest's output to be the content of FILE, byte by byte; if it is not, the exit status is 120
    #[arg(long, value_name = "FILE")]
    expect_output: Option<PathBuf>,

    /// Require a value at the end of the run: a register of the first vCPU (rax=42, al=-1, zf=1), a little-endian word at a
    /// guest physical address (u16@0x400=42), the end (end=halt, end=7, end=crash), the mode of each exit (mode=real,long),
    /// or the state of the device (simvirtio=ready); can be repeated
    #[arg(long, value_name = "SUBJECT=VALUE")]
    expect: Vec<String>,

    /// Require a number of exits, with <=, >= or =: of all, of a reason, or of a device, as the table of exits names them,
    /// such as `<=40`, `HLT=1`, `PIO out 0xe9<=14`, `port 0x3f8=0` or `simvirtio<=9`; can be repeated
    #[arg(long, value_name = "[SITE]<=N", conflicts_with = "no_profile")]
    expect_exits: Vec<String>,

    /// Write SIZE bytes of the guest's memory from the guest physical address ADDR to FILE at the end of the run, such as
    /// 0x400+16=a.bin; can be repeated
    #[arg(long, value_name = "ADDR+SIZE=FILE")]
    dump_memory: Vec<OsString>,
}

/// A range of memory, and the file that gets its content.
struct Dump {
    start: u64,
    len: u64,
    file: OutputFile,
}

/// The checks and files of the end of a run.
#[derive(Default)]
pub(super) struct AfterRun {
    expectations: Vec<Expectation>,
    dumps: Vec<Dump>,
    modes: Option<ModeWatch>,
    output: Option<Captured>,
}

/// The results of the checks, and messages about the files.
#[derive(Default)]
pub(super) struct Checked {
    checks: Vec<Check>,
    /// The run ended as it was expected to.
    ended_as_expected: bool,
    written: Vec<String>,
    failures: Vec<String>,
}

impl ExpectArgs {
    /// Reads the expectations, and opens the files for memory. `inputs` returns the files that the run reads.
    ///
    /// # Errors
    /// An expectation is wrong, or a file cannot be read or written, or is an input or another result.
    pub fn prepare(&self, inputs: impl FnOnce() -> Vec<PathBuf>) -> Result<AfterRun, Failure> {
        let mut expectations = Vec::new();
        if let Some(path) = &self.expect_output {
            expectations.push(Expectation::Output(expected_output(path)?));
        }
        for text in &self.expect {
            expectations.push(text.parse().map_err(|error| wrong("--expect", text, error))?);
        }
        for text in &self.expect_exits {
            let limit = ExitLimit::parse(text).map_err(|error| wrong("--expect-exits", text, error))?;
            expectations.push(Expectation::Exits(limit));
        }
        let dumps = if self.dump_memory.is_empty() { Vec::new() } else { self.open_dumps(&inputs())? };
        let watches_modes = expectations.iter().any(Expectation::needs_modes);
        let modes = watches_modes.then(ModeWatch::default);
        Ok(AfterRun { expectations, dumps, modes, output: None })
    }

    /// The files of `--dump-memory`, with the name of the option.
    ///
    /// # Errors
    /// A value has another form.
    pub fn dump_files(&self) -> Result<Vec<(&'static str, &Path)>, Error> {
        self.dump_memory
            .iter()
            .map(|text| parse_dump(text).map(|(.., path)| ("--dump-memory", path)))
            .collect()
    }

    /// The file that the run is compared with.
    pub fn input(&self) -> Option<PathBuf> {
        self.expect_output.clone()
    }

    fn open_dumps(&self, inputs: &[PathBuf]) -> Result<Vec<Dump>, Failure> {
        let mut dumps: Vec<Dump> = Vec::new();
        for text in &self.dump_memory {
            let (start, len, path) = parse_dump(text)?;
            check_inputs("--dump-memory", path, inputs.iter().map(PathBuf::as_path))?;
            check_dash("--dump-memory", path)?;
            dumps.push(Dump { start, len, file: OutputFile::open_within(path, WAIT)? });
        }
        Ok(dumps)
    }
}

/// The error for a wrong value of an option.
fn wrong(option: &str, value: &str, error: String) -> Error {
    Error::Config(format!("{option} \"{}\": {error}", printable_text(value)))
}

/// Reads the file of `--expect-output`.
///
/// # Errors
/// It cannot be read, or is too long.
fn expected_output(path: &Path) -> Result<ExpectedOutput, Error> {
    let shown = printable(path);
    let text = exercise::read::read_file(path, MAX_OUTPUT)
        .map_err(|error| Error::Config(format!("cannot read {shown} for --expect-output: {error}")))?;
    ExpectedOutput::exactly(text, format!("that of {shown}")).map_err(Error::Config)
}

/// Parses `ADDR+SIZE=FILE`.
///
/// # Errors
/// It has another form.
fn parse_dump(text: &OsStr) -> Result<(u64, u64, &Path), Error> {
    let parse = || {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=')?;
        let (range, file) = bytes.split_at_checked(at)?;
        let file = file.get(1..).filter(|file| !file.is_empty())?;
        let (start, len) = std::str::from_utf8(range).ok()?.split_once('+')?;
        let start = crate::args::parse_number(start.trim()).ok()?;
        let len = crate::args::parse_size(len.trim()).ok().filter(|len| *len > 0)?;
        start.checked_add(len).map(|_| (start, len, Path::new(OsStr::from_bytes(file))))
    };
    let wrong_form = "give ADDR+SIZE=FILE, such as 0x400+16=a.bin or 0x1000+4K=a.bin";
    parse().ok_or_else(|| wrong("--dump-memory", &text.to_string_lossy(), wrong_form.into()))
}

impl AfterRun {
    /// Keeps what the checks need of the output, and of the exits.
    pub fn watch(&mut self, builder: Builder, output: &Output) -> Builder {
        let needed = self.expectations.iter().map(Expectation::needed_output).max();
        self.output = needed.filter(|needed| *needed > 0).map(|needed| output.copied(needed));
        match &self.modes {
            Some(modes) => modes.apply(builder),
            None => builder,
        }
    }

    /// Checks that the machine has the memory that is to be written.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, machine: &Machine) -> Result<(), Error> {
        let lacking = self.dumps.iter().find(|dump| !has_memory(machine.memory(), dump.start, dump.len));
        lacking.map_or(Ok(()), |dump| {
            let ranges: Vec<_> = machine.memory().ranges().map(range).collect();
            Err(Error::Config(format!(
                "--dump-memory {:#x}+{:#x}: a part of the range is not memory: this machine has memory at {}",
                dump.start,
                dump.len,
                vmm::boot::list_ranges(&ranges)
            )))
        })
    }

    /// Checks a run that has ended, and writes the memory to its files.
    ///
    /// # Errors
    /// The host failed.
    pub fn finish(self, machine: &mut Machine, report: &Report) -> Result<Checked, Error> {
        let mut checked = Checked::default();
        if !self.expectations.is_empty() {
            let output = self.output.as_ref().map(Captured::bytes).unwrap_or_default();
            let output_len = self.output.as_ref().map_or(0, Captured::total);
            let mut facts = Facts::of(machine, report, &output, output_len)?;
            facts.modes = self.modes.as_ref().map(ModeWatch::modes);
            let check = |expectation: &Expectation| {
                let is_end = matches!(expectation, Expectation::End(_));
                let check = expectation.check(&facts);
                (is_end && check.passed, check)
            };
            let (ends, checks): (Vec<_>, Vec<_>) = self.expectations.iter().map(check).unzip();
            checked.ended_as_expected = ends.contains(&true);
            checked.checks = checks;
        }
        for dump in self.dumps {
            let shown = dump.file.shown().to_string();
            match write(dump, machine.memory()) {
                Ok(len) => {
                    checked.written.push(format!("wrote {} of memory to {shown}", plural(len, "byte")));
                }
                Err(error) => checked
                    .failures
                    .push(format!("{error}; the memory is not saved, and an existing file is unchanged")),
            }
        }
        Ok(checked)
    }
}

/// The range from a first to a last address.
fn range((first, last): (Gpa, Gpa)) -> Range<u64> {
    first.0..last.0.saturating_add(1)
}

/// True if the whole range is memory.
fn has_memory(memory: &GuestMemory, start: u64, len: u64) -> bool {
    let end = start.saturating_add(len);
    let mut from = start;
    for slot in memory.ranges().map(range) {
        if slot.contains(&from) {
            from = slot.end;
        }
    }
    from >= end
}

/// Writes a range of memory to its file. Returns its length.
fn write(dump: Dump, memory: &GuestMemory) -> Result<u64, FileError> {
    let Dump { start, len, mut file } = dump;
    let mut piece = vec![0; PIECE];
    let mut done = 0u64;
    while done < len {
        let size = usize::try_from(len.saturating_sub(done)).unwrap_or(PIECE).min(PIECE);
        let piece = piece.get_mut(..size).unwrap_or_default();
        if !memory.read(Gpa(start.saturating_add(done)), piece) {
            return Err(file.failed(std::io::Error::other("a part of the range is not memory")));
        }
        if let Err(source) = file.write_all(piece) {
            return Err(file.failed(source));
        }
        done = done.saturating_add(size as u64);
    }
    file.commit().map(|()| len)
}

impl Checked {
    /// Prints a sentence for each expectation that was not met, and one if all were. Returns the exit status, which is
    /// `status` without expectations.
    pub fn report(&self, report: &Report, status: u8, quiet: bool) -> u8 {
        self.failures.iter().for_each(|failure| print_stderr(&format!("vmm: error: {failure}\n")));
        if !quiet {
            self.written.iter().for_each(|line| print_stderr(&format!("vmm: {line}\n")));
        }
        let failed: Vec<_> = self.checks.iter().filter(|check| !check.passed).collect();
        failed.iter().for_each(|check| print_stderr(&format!("vmm: expectation failed: {check}\n")));
        if failed.is_empty() && !self.checks.is_empty() && !quiet {
            let met = match self.checks.len() {
                1 => "the expectation is met".into(),
                many => format!("all {} are met", plural(many as u64, "expectation")),
            };
            print_stderr(&format!("vmm: {met}\n"));
        }
        let is_invalid = [status::HOST_ERROR, status::INTERRUPTED].contains(&status);
        let is_halt = matches!(report.stop, Stop::Halted | Stop::Exited(0));
        // A wrong result, or a halt at a wrong place, keeps its own status.
        let is_expected = self.ended_as_expected && !is_halt;
        match status {
            status if is_invalid => status,
            _ if !failed.is_empty() => status::UNEXPECTED,
            status if status != status::OK && !is_expected => status,
            _ if !self.failures.is_empty() => status::HOST_ERROR,
            _ => status::OK,
        }
    }
}
