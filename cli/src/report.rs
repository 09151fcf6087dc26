//! `vmm report`: what a run has left in a file, or the difference of two, for readers and for programs.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

use crate::say::complain;
use crate::status::{self, Failed, Failure};
use clap::{Args, ValueEnum};
use report::view::{self, Format, Source};
use report::{FileError, OutputFile};
use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::{TimeoutWriter, printable};

/// Shows a profile or a trace that a run has written, or the difference of two
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmm report run.json                              a profile as tables
  vmm report run.json --format html -o run.html    the same as a page for a browser
  vmm report run.trace --format csv -o exits.csv   a trace, a line for each exit
  vmm report before.json after.json                what has changed, site by site

Profiles and traces come from `vmm run --profile json=FILE` and `vmm run --trace FILE`;
so of `vmm boot`. Which of them a file is, its content says. Where a trace is
compared, it is summed up by site first.")]
pub struct ReportArgs {
    /// A profile or a trace; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Another one, to see what is different in it
    #[arg(value_name = "FILE2")]
    other: Option<PathBuf>,

    /// What to write: text for a terminal, JSON for programs, CSV for spreadsheets, HTML for a browser
    #[arg(long, value_enum, default_value_t)]
    format: FormatArg,

    /// Where to write it; a file that is there is replaced once the new one is whole [default: standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    #[default]
    Text,
    Json,
    Csv,
    Html,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Text => Self::Text,
            FormatArg::Json => Self::Json,
            FormatArg::Csv => Self::Csv,
            FormatArg::Html => Self::Html,
        }
    }
}

/// Reads, writes, and answers with the exit status.
pub fn main(arguments: &ReportArgs) -> u8 {
    match report(arguments) {
        Ok(()) => status::OK,
        Err(error) if vmm::host::interrupted() && error.status() != status::USAGE => status::INTERRUPTED,
        Err(error) => complain(&error),
    }
}

fn report(arguments: &ReportArgs) -> Result<(), Failure> {
    let output = arguments.output.as_deref().filter(|path| *path != Path::new("-"));
    if arguments.format == FormatArg::Html && output.is_none() && io::stdout().is_terminal() {
        let what = "a page is nothing for a terminal: give -o FILE, such as -o report.html, and open it in a browser";
        return Err(Error::Config(what.into()).into());
    }
    let same = |input: &Path| output.is_some_and(|output| is_one_file(input, output));
    if same(&arguments.file) || arguments.other.as_deref().is_some_and(same) {
        let what = "the report would replace the file that it is made of: give -o another name";
        return Err(Error::Config(what.into()).into());
    }
    let first = read(&arguments.file)?;
    let second = arguments.other.as_deref().map(read).transpose()?;
    // From now on an interruption leaves no half of a file behind.
    vmm::host::catch_interrupts();
    let Some(path) = output else {
        let mut to = BufWriter::with_capacity(1 << 16, Interruptible(TimeoutWriter::new(io::stdout(), None)));
        let written =
            view::write(&mut to, arguments.format.into(), &first, second.as_ref()).and_then(|()| to.flush());
        written.map_err(|source| Error::Host { operation: "writing standard output", source })?;
        return Ok(());
    };
    let mut target = OutputFile::open(path)?;
    let mut to = BufWriter::with_capacity(1 << 16, Interruptible(&mut target));
    let written =
        view::write(&mut to, arguments.format.into(), &first, second.as_ref()).and_then(|()| to.flush());
    // What is left in the buffer of a file that failed is not tried again.
    let _ = to.into_parts();
    written.map_err(|source| target.failed(source))?;
    Ok(target.commit()?)
}

/// Whether both names lead to one regular file.
fn is_one_file(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other && one.is_file(),
        _ => false,
    }
}

/// A writer that fails once the program is interrupted.
struct Interruptible<W>(W);

impl<W: Write> Write for Interruptible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match vmm::host::interrupted() {
            // Not `Interrupted`, after which the standard library would try again.
            true => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn read(path: &Path) -> Result<Source, FileError> {
    let stdin = path == Path::new("-");
    let saved = report::read(if stdin { Path::new("/dev/stdin") } else { path })?;
    Ok(Source::new(if stdin { "standard input".into() } else { printable(path) }, saved))
}
