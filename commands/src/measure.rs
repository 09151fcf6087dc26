//! The options for measuring a run, and the result files that `--profile` and `--trace` write.

use crate::expect::ExpectArgs;
use crate::file_name::{ResultFormat, check_extension, check_inputs};
use crate::sample::SampleArgs;
use crate::status::{self, Failure};
use crate::streams::print_stderr;
use clap::{Args, ValueEnum};
use report::{FileError, Measured, OutputFile, SavedOrigin, SavedProfile, SavedTrace};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::host::printable;
use vmm::{Builder, Error};

/// The longest wait for the reader of a result file that is a pipe: for its start, and for each write.
const RESULT_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Args)]
pub(super) struct MeasureArgs {
    /// Disable counting and timing of exits
    #[arg(long, conflicts_with_all = ["profile", "trace", "by"])]
    no_profile: bool,

    /// Write an ELF core to FILE if the guest dies, or is ended by a time limit, a signal or Ctrl-A x: its memory and the
    /// registers of all vCPUs, for gdb, and for drgn and crash. Ctrl-A c at a keyboard writes one of the running guest to
    /// FILE.1, the next to FILE.2
    #[arg(long, value_name = "FILE")]
    pub(super) core: Option<PathBuf>,

    /// Write the text screen of a classic PC to FILE at the end of the run: as an image if FILE ends in .png, otherwise as
    /// text [default: text on standard output, unless that is a terminal]
    #[arg(long, value_name = "FILE")]
    pub(super) screen: Option<PathBuf>,

    #[command(flatten)]
    pub(super) sample: SampleArgs,

    #[command(flatten)]
    pub(super) expect: ExpectArgs,

    #[command(flatten)]
    pub(super) results: ResultArgs,
}

// The results of a run besides its output. A doc comment would become the description of the subcommands.
#[derive(Debug, Args)]
pub(super) struct ResultArgs {
    /// Write the counts and times of all exits to FILE, for `vmm report`
    #[arg(long, value_name = "json=FILE", value_parser = parse_profile)]
    profile: Option<ProfileFile>,

    /// Write the last exits to FILE, one by one, for `vmm report`; those of a guest of this program have its RIP
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Number of exits in the trace, 1 to 4194304 divided by the number of vCPUs; each takes 88 bytes of memory per
    /// vCPU
    #[arg(long, value_name = "N", default_value_t = TRACE_EXITS, requires = "trace", value_parser = parse_exits)]
    trace_exits: usize,

    /// Show which functions or source lines of the guest cause the exits, in place of the table by site; needs symbols,
    /// and RIP at each exit
    #[arg(long, value_enum, value_name = "PART")]
    pub(super) by: Option<ByArg>,

    /// Name functions and source lines from this ELF file or System.map; OFFSET is the distance of a kernel that has
    /// moved (KASLR), if vmm cannot find it
    /// [default: the guest's own file, if it is an ELF file]
    #[arg(long, value_name = "FILE[@OFFSET]")]
    pub(super) symbols: Option<PathBuf>,

    /// Print only the first line of the summary
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// The parts of a guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ByArg {
    /// Functions
    Function,
    /// Source lines
    Line,
}

/// The default number of exits in a trace.
const TRACE_EXITS: usize = 65_536;

/// The same values as clap gives without options.
impl Default for ResultArgs {
    fn default() -> Self {
        Self { profile: None, trace: None, trace_exits: TRACE_EXITS, by: None, symbols: None, quiet: false }
    }
}

/// The file of `--profile`.
#[derive(Clone, Debug)]
struct ProfileFile(PathBuf);

fn parse_profile(text: &str) -> Result<ProfileFile, String> {
    match text.split_once('=') {
        Some(("json", file)) if !file.is_empty() => Ok(ProfileFile(file.into())),
        _ => {
            Err("give json=FILE, such as json=profile.json; `vmm report` converts it to other formats".into())
        }
    }
}

/// Parses a number of exits. The library checks its range.
fn parse_exits(text: &str) -> Result<usize, String> {
    let number = crate::args::parse_number(text).ok().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| "give a number from 1 to 4194304".into())
}

impl ResultArgs {
    /// The number of exits in the trace; `None` without a trace.
    pub fn traced(&self) -> Option<usize> {
        self.trace.as_ref().map(|_| self.trace_exits)
    }

    /// The files, with the names of their options.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let profile = self.profile.as_ref().map(|file| ("--profile", file.0.as_path()));
        profile.into_iter().chain(self.trace.as_deref().map(|path| ("--trace", path)))
    }

    /// Checks that the functions or lines of `--by` are seen: `--quiet` without a file hides them.
    ///
    /// # Errors
    /// They are not.
    fn check_shown(&self) -> Result<(), Error> {
        if self.by.is_some() && self.hides_profile() {
            let what = "--quiet hides the table of --by: give --profile, or leave out --quiet";
            return Err(Error::Config(what.into()));
        }
        Ok(())
    }

    /// True if the profile is neither printed nor written.
    pub fn hides_profile(&self) -> bool {
        self.quiet && self.profile.is_none()
    }

    /// The file with the symbols.
    pub fn symbol_file(&self) -> Option<PathBuf> {
        self.symbols.as_deref().map(|argument| crate::names::symbol_file(argument).0)
    }
}

impl MeasureArgs {
    /// Sets what the machine measures.
    pub fn apply(&self, builder: Builder) -> Builder {
        let profile = !self.no_profile;
        let kernel_counters = profile && (!self.results.quiet || self.results.profile.is_some());
        let builder = builder.by_address(self.results.by.is_some());
        builder.profile(profile).trace(self.results.traced()).kernel_counters(kernel_counters)
    }
}

/// The result files of a run. They are opened before the run, so that a wrong path is reported before it.
pub struct ResultFiles<'a> {
    arguments: &'a ResultArgs,
    profile: Option<OutputFile>,
    trace: Option<OutputFile>,
    /// The origin of the run, if there is a file.
    origin: Option<SavedOrigin>,
}

impl<'a> ResultFiles<'a> {
    /// Opens the files. `inputs` returns the files that the run reads.
    ///
    /// # Errors
    /// One of them cannot be written, has the extension of another format or is an input, or both are the same file. Or
    /// nothing shows the table of `--by`.
    pub fn open(arguments: &'a ResultArgs, inputs: impl FnOnce() -> Vec<PathBuf>) -> Result<Self, Failure> {
        arguments.check_shown()?;
        if arguments.profile.is_none() && arguments.trace.is_none() {
            return Ok(Self { arguments, profile: None, trace: None, origin: None });
        }
        let inputs = inputs();
        let inputs = || inputs.iter().map(PathBuf::as_path);
        if let Some(file) = &arguments.profile {
            check_extension("--profile json=FILE", &file.0, ResultFormat::Json)?;
            check_inputs("--profile", &file.0, inputs())?;
        }
        if let Some(path) = &arguments.trace {
            check_extension("--trace", path, ResultFormat::Trace)?;
            check_inputs("--trace", path, inputs())?;
        }
        let profile = arguments
            .profile
            .as_ref()
            .map(|file| OutputFile::open_within(&file.0, RESULT_WAIT))
            .transpose()?;
        let trace =
            arguments.trace.as_ref().map(|path| OutputFile::open_within(path, RESULT_WAIT)).transpose()?;
        if let (Some(one), Some(other), Some(path)) = (&profile, &trace, &arguments.trace)
            && one.takes_the_place_of(other)
        {
            let path = printable(path);
            let what = format!("--profile and --trace write the same file, {path}: give two different files");
            return Err(Error::Config(what).into());
        }
        Ok(Self { arguments, profile, trace, origin: Some(SavedOrigin::here()) })
    }

    /// Writes the files for a run, of which `measured` is `None` if its exits were not counted. Prints each file on stderr,
    /// or why it could not be written. Returns `status`; if that is 0 and a file is missing, returns the status of a host
    /// error.
    pub fn write(self, measured: Option<&Measured>, status: u8) -> u8 {
        let measured = measured.map(|measured| Measured { origin: self.origin.as_ref(), ..measured.clone() });
        let measured = measured.as_ref();
        let mut failures = Vec::new();
        let mut done = Vec::new();
        if let (Some(to), Some(file)) = (self.profile, &self.arguments.profile) {
            match write_profile(measured.map(Measured::profile), to) {
                Err(failure) => failures.push(failure),
                Ok(()) => {
                    done.push(format!("wrote the profile: `vmm report {}` shows it", printable(&file.0)));
                }
            }
        }
        if let (Some(to), Some(path)) = (self.trace, &self.arguments.trace) {
            match write_trace(measured.and_then(Measured::trace), to) {
                Err(failure) => failures.push(failure),
                Ok(()) => done.push(format!("wrote the trace: `vmm report {}` shows it", printable(path))),
            }
        }
        failures.iter().for_each(|failure| print_stderr(&format!("vmm: error: {failure}\n")));
        if !self.arguments.quiet {
            done.iter().for_each(|line| print_stderr(&format!("vmm: {line}\n")));
        }
        if failures.is_empty() || status != status::OK { status } else { status::HOST_ERROR }
    }
}

/// Writes a profile, and puts it in its place.
///
/// # Errors
/// It is missing or cannot be written. The message says what happened to the file.
fn write_profile(profile: Option<SavedProfile>, mut to: OutputFile) -> Result<(), String> {
    let not_saved = |error: FileError| format!("{error}; the profile is not saved, {UNCHANGED}");
    let Some(profile) = profile else { return Err(format!("the run recorded no profile, {UNCHANGED}")) };
    match profile.write(&mut to) {
        Ok(()) => to.commit().map_err(not_saved),
        Err(source) => Err(not_saved(to.failed(source))),
    }
}

/// Writes a trace, and puts it in its place. A trace that is cut short is kept if it has at least one record.
///
/// # Errors
/// It is missing, cut short, or cannot be written. The message says what happened to the file.
fn write_trace(trace: Option<SavedTrace>, mut to: OutputFile) -> Result<(), String> {
    let not_saved = |error: &FileError| format!("{error}; the trace is not saved, {UNCHANGED}");
    let Some(trace) = trace else { return Err(format!("the run recorded no trace, {UNCHANGED}")) };
    match trace.write(&mut to) {
        Ok(_) => to.commit().map_err(|error| not_saved(&error)),
        Err(cut) => {
            let what = format!("the trace is {cut}");
            let error = to.failed(cut.source);
            if cut.records == 0 {
                return Err(not_saved(&error));
            }
            match to.commit() {
                Ok(()) => Err(format!("{error}; {what}")),
                Err(_) => Err(not_saved(&error)),
            }
        }
    }
}

/// The state of a result file that was not replaced.
const UNCHANGED: &str = "and an existing file is unchanged";
