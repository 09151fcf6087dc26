//! `vmm report`: shows a profile or a trace, or the difference between two of them.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

use crate::file_name::{ResultFormat, check_extension, check_inputs, promised_format};
use crate::measure::ByArg;
use crate::names;
use crate::progress::{self, Progress};
use crate::status::{self, Failure, HasStatus};
use crate::streams::{print_stderr, report_error};
use clap::{Args, ValueEnum};
use report::view::{self, Format, Source};
use report::{FileError, OutputFile, Saved};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::{TimeoutWriter, printable};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm report run.json                       a profile as tables
  vmm report run.json -o run.html           a page for a browser
  vmm report run.trace -o exits.csv         a line for each exit
  vmm report run.trace --format csv | less  the same, on standard output
  vmm report before.json after.json         the difference by site
  vmm report run.trace --by function        which functions cause the exits

`vmm run` and `vmm boot` write profiles (--profile json=FILE) and traces (--trace FILE). vmm recognises both by \
their content. In a comparison, a trace is first summed up by site.")]
pub struct ReportArgs {
    /// Profile or trace to show; - means standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Second profile or trace, to show what changed from FILE to FILE2
    #[arg(value_name = "FILE2")]
    other: Option<PathBuf>,

    /// Format of the report: text for a terminal, JSON for programs, CSV for spreadsheets, HTML for a browser
    /// [default: by the extension of OUT: .txt, .json, .csv or .html; text without an extension]
    #[arg(long, value_enum)]
    format: Option<FormatArg>,

    /// Show which functions or source lines of the guest cause the exits; FILE is a trace, or a profile of a run with --by
    #[arg(long, value_enum, value_name = "PART", conflicts_with = "other")]
    by: Option<ByArg>,

    /// Name functions and source lines from this ELF file or System.map; OFFSET is the distance of the guest's code from
    /// its addresses
    /// [default: the names in FILE]
    #[arg(long, value_name = "FILE[@OFFSET]", conflicts_with = "other")]
    symbols: Option<PathBuf>,

    /// File to write the report to; an existing file is replaced when the new one is complete
    /// [default: standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Text,
    Json,
    Csv,
    Html,
}

impl FormatArg {
    fn view(self) -> Format {
        match self {
            Self::Text => Format::Text,
            Self::Json => Format::Json,
            Self::Csv => Format::Csv,
            Self::Html => Format::Html,
        }
    }

    fn file(self) -> ResultFormat {
        match self {
            Self::Text => ResultFormat::Text,
            Self::Json => ResultFormat::Json,
            Self::Csv => ResultFormat::Csv,
            Self::Html => ResultFormat::Html,
        }
    }
}

/// Chooses the format: the one of `--format`, or the one that the extension of the output file promises.
///
/// # Errors
/// The extension is unknown, or contradicts `--format`.
fn choose_format(given: Option<FormatArg>, output: Option<&Path>) -> Result<FormatArg, Error> {
    match (given, output) {
        (Some(given), Some(path)) => {
            let option = given.to_possible_value().map_or_else(String::new, |value| value.get_name().into());
            check_extension(&format!("--format {option}"), path, given.file()).map(|()| given)
        }
        (Some(given), None) => Ok(given),
        (None, None) => Ok(FormatArg::Text),
        (None, Some(path)) => match promised_format("-o", path)? {
            None => Ok(FormatArg::Text),
            Some(promised) => {
                let known = FormatArg::value_variants().iter().find(|one| one.file() == promised);
                known.copied().ok_or_else(|| {
                    let path = printable(path);
                    Error::Config(format!(
                        "-o {path} is a name for {promised}, but a report has no such format: use .txt, .json, .csv or .html"
                    ))
                })
            }
        },
    }
}

/// Writes the report. Returns the exit status.
pub fn main(arguments: &ReportArgs) -> u8 {
    match report(arguments) {
        Ok(()) => status::OK,
        // The reader has closed the pipe, so it wants no more.
        Err(error) if is_closed_pipe(&error) => status::BROKEN_PIPE,
        Err(error) if vmm::host::interrupted() && error.status() != status::USAGE => {
            print_stderr("vmm: interrupted: the report is incomplete\n");
            status::INTERRUPTED
        }
        Err(error) => report_error(&error),
    }
}

/// Returns true if the error is that the reader of the output has closed it.
fn is_closed_pipe(error: &Failure) -> bool {
    match error {
        Failure::Vmm(Error::Host { source, .. }) | Failure::File(FileError::Write { source, .. }) => {
            source.kind() == io::ErrorKind::BrokenPipe
        }
        _ => false,
    }
}

fn report(arguments: &ReportArgs) -> Result<(), Failure> {
    let output = arguments.output.as_deref().filter(|path| *path != Path::new("-"));
    let format = choose_format(arguments.format, output)?;
    if format == FormatArg::Html && output.is_none() && io::stdout().is_terminal() {
        let what = "--format html is not for a terminal: give -o FILE, such as -o report.html, and open it in a browser";
        return Err(Error::Config(what.into()).into());
    }
    let inputs =
        || [Some(&arguments.file), arguments.other.as_ref()].into_iter().flatten().map(|path| source(path));
    if inputs().filter(|path| *path == Path::new(STDIN)).count() > 1 {
        let what = "standard input can be only one of the two files: give the name of the other one";
        return Err(Error::Config(what.into()).into());
    }
    let symbols = arguments.symbols.as_deref().map(|argument| names::symbol_file(argument).0);
    if let Some(path) = output {
        check_inputs("-o", path, inputs().chain(symbols.as_deref()))?;
    }
    let shown = Progress::begin(false, || format!("reading {}", shown_name(&arguments.file)));
    let (name, mut saved) = read(&arguments.file)?;
    if let Some(argument) = &arguments.symbols {
        names::add(&mut saved, argument, &name)?;
    }
    let first = Source::new(name.clone(), saved).by(arguments.by.map(Into::into));
    if arguments.by.is_some() && !first.has_addresses() {
        return Err(names::without_addresses(&name, "--by"));
    }
    let second = arguments.other.as_deref().map(|path| {
        progress::say(|| format!("reading {}", shown_name(path)));
        read(path)
    });
    let second = second.transpose()?;
    let second = second.map(|(name, saved)| Source::new(name, saved));
    // From here on a signal makes the writers fail, so that no half-written file is left.
    vmm::host::catch_interrupts();
    let Some(path) = output else {
        drop(shown);
        let mut to = BufWriter::with_capacity(1 << 16, Interruptible(TimeoutWriter::new(io::stdout(), None)));
        let written = view::write(&mut to, format.view(), &first, second.as_ref()).and_then(|()| to.flush());
        written.map_err(|source| Error::Host { operation: "writing standard output", source })?;
        return Ok(());
    };
    progress::say(|| format!("writing {}", printable(path)));
    let mut target = OutputFile::open(path)?;
    let mut to = BufWriter::with_capacity(1 << 16, Interruptible(&mut target));
    let written = view::write(&mut to, format.view(), &first, second.as_ref()).and_then(|()| to.flush());
    // Dropping a BufWriter writes its buffer again, which could block on a file that already failed.
    let _ = to.into_parts();
    written.map_err(|source| target.failed(source))?;
    Ok(target.commit()?)
}

/// A writer that fails after a signal has interrupted the program.
struct Interruptible<W>(W);

impl<W: Write> Write for Interruptible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match vmm::host::interrupted() {
            // ECANCELED instead of EINTR, because the standard library retries after EINTR.
            true => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The file that `-` stands for.
const STDIN: &str = "/dev/stdin";

/// Returns the path to read for an argument.
fn source(argument: &Path) -> &Path {
    if argument == Path::new("-") { Path::new(STDIN) } else { argument }
}

/// The name of the file of an argument, to print.
fn shown_name(argument: &Path) -> String {
    if source(argument) == argument { printable(argument) } else { "standard input".into() }
}

/// Reads a profile or a trace; `-` is standard input. Also returns the name of the file, to print.
fn read(argument: &Path) -> Result<(String, Saved), FileError> {
    let path = source(argument);
    let name = shown_name(argument);
    match report::read(path) {
        Ok(saved) => Ok((name, saved)),
        Err(FileError::Read { source, .. }) => Err(FileError::Read { path: name, source }),
        Err(FileError::Content { source, .. }) => Err(FileError::Content { path: name, source }),
        Err(error) => Err(error),
    }
}
