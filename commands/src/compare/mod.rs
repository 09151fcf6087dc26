//! `vmm compare`: runs one workload over each transport, in ring 0 and in ring 3. Prints a table, bars and sentences on
//! stdout, and writes JSON and a picture to files.

mod format;
mod json;
mod svg;
mod table;

use crate::args::{check_queue_len, in_range, parse_number, parse_size, size_in_range};
use crate::file_name::{ResultFormat, check_extension};
use crate::processor::{VcpuArg, check_kvm};
use crate::progress::{self, Progress};
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout, report_error};
use clap::{Args, ValueEnum};
use report::{FileError, OutputFile};
use std::io::Write;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::printable;
use vmm::lab::{
    ComparisonError, MAX_BYTES, MAX_MESSAGES, MAX_ROUNDS, Ring, Row, Variant, Workload, run_comparison,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm compare                                        all rows, about 20 seconds
  vmm compare --transports byte,polling --ring 3     two rows
  vmm compare --bytes 4K --messages 200 --rounds 3   a shorter comparison
  vmm compare --json result.json --svg picture.svg   results also in files

The comparison needs KVM. docs/compare.md explains the columns.

Exit status: 0 if all rounds are complete; 110 for a usage error; 115 if the host failed or a transport changed the \
data; 117 if interrupted (the table then has the rounds so far).")]
pub struct CompareArgs {
    /// Length of the message that the driver sends, in bytes, 1 to 16M
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = parse_size)]
    bytes: u64,

    /// Number of round trips: short messages that the device sends back, 1 to 100000
    #[arg(long, value_name = "M", default_value = "1000", value_parser = parse_number)]
    messages: u64,

    /// Number of rounds, 1 to 1000; each round runs every row once, and the table shows medians
    #[arg(long, value_name = "R", default_value = "5", value_parser = parse_number)]
    rounds: u64,

    /// Length of the SIMVIRTIO queues in bytes, 2 to 4096
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_number)]
    queue_len: u64,

    /// Ring in which the driver runs
    #[arg(long, value_enum, default_value_t)]
    ring: RingArg,

    /// Rows to run, as a list such as byte,polling [default: all]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    transports: Vec<VariantArg>,

    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Kind of processor: only KVM can be measured
    #[arg(long, value_enum, hide = true)]
    vcpu: Option<VcpuArg>,

    /// Write a picture of the results to FILE as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RingArg {
    /// like a kernel
    #[value(name = "0")]
    Zero,
    /// like a user program
    #[value(name = "3")]
    Three,
    /// first ring 0, then ring 3
    #[default]
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VariantArg {
    /// a store for each byte, which is an exit
    Byte,
    /// a store for as many bytes as fit into the queue, which is an exit
    Batch,
    /// a store for each byte, which KVM queues
    Coalesced,
    /// a store for as many bytes as fit into the queue, which wakes the device's thread
    Doorbell,
    /// shared memory, which the device's thread polls
    Polling,
}

impl From<VariantArg> for Variant {
    fn from(variant: VariantArg) -> Self {
        match variant {
            VariantArg::Byte => Self::Byte,
            VariantArg::Batch => Self::Batch,
            VariantArg::Coalesced => Self::Coalesced,
            VariantArg::Doorbell => Self::Doorbell,
            VariantArg::Polling => Self::Polling,
        }
    }
}

/// The results of a comparison.
struct Results<'a> {
    workload: Workload,
    /// The number of rounds that were requested.
    rounds: u32,
    /// The rows with at least one complete round.
    rows: Vec<&'a Row>,
    /// True if a signal came before the last round was complete.
    interrupted: bool,
}

/// The files that the results are written to.
struct ResultFiles {
    json: Option<OutputFile>,
    svg: Option<OutputFile>,
}

impl ResultFiles {
    /// Opens the files before the measurement, so that a wrong path is reported at once.
    ///
    /// # Errors
    /// One of them cannot be written or has the extension of another format, or both are the same file.
    fn open(arguments: &CompareArgs) -> Result<Self, Failure> {
        let named =
            [("--json", &arguments.json, ResultFormat::Json), ("--svg", &arguments.svg, ResultFormat::Svg)];
        for (option, path, format) in named {
            path.iter().try_for_each(|path| check_extension(option, path, format))?;
        }
        let open = |path: &Option<PathBuf>| path.as_deref().map(OutputFile::open).transpose();
        let (json, svg) = (open(&arguments.json)?, open(&arguments.svg)?);
        if let (Some(one), Some(other)) = (&json, &svg)
            && one.takes_the_place_of(other)
        {
            let path = printable(arguments.svg.as_deref().unwrap_or(Path::new("")));
            let what = format!("--json and --svg write the same file, {path}: give two different files");
            return Err(Error::Config(what).into());
        }
        Ok(Self { json, svg })
    }

    /// Writes the results. Prints each error. Returns the exit status.
    fn write(self, results: &Results<'_>) -> u8 {
        let written = [(self.json, json::text(results)), (self.svg, svg::picture(results))];
        let statuses =
            written.into_iter().map(|(file, text)| match file.map(|file| write_file(file, &text)) {
                Some(Err(error)) => report_error(&error),
                Some(Ok(())) | None => status::OK,
            });
        statuses.max().unwrap_or(status::OK)
    }
}

fn write_file(mut to: OutputFile, text: &str) -> Result<(), FileError> {
    match to.write_all(text.as_bytes()) {
        Ok(()) => to.commit(),
        Err(source) => Err(to.failed(source)),
    }
}

/// Runs the comparison and prints the results. Returns the exit status.
pub fn main(arguments: &CompareArgs) -> u8 {
    let checked =
        check_kvm("compare", arguments.vcpu).and_then(|()| workload(arguments)).map_err(Failure::from);
    let (workload, rounds, files) =
        match checked.and_then(|(workload, rounds)| Ok((workload, rounds, ResultFiles::open(arguments)?))) {
            Ok(checked) => checked,
            Err(error) => return report_error(&error),
        };
    vmm::host::catch_interrupts();
    let mut rows = rows(arguments);
    let progress = Progress::begin(false, || "comparing".into());
    let result = run_comparison(&mut rows, workload, rounds, |round| {
        progress::say(|| format!("comparing, round {round} of {rounds}"));
    });
    drop(progress);
    let interrupted = match result {
        Ok(()) => false,
        Err(ComparisonError::Interrupted) => true,
        Err(ComparisonError::Host(error)) => return report_error(&error),
        Err(ComparisonError::Wrong(what)) => {
            print_stderr(&format!("vmm: error: {what}; the comparison has no results\n"));
            return status::HOST_ERROR;
        }
    };
    let rows: Vec<&Row> = rows.iter().filter(|row| row.rounds() > 0).collect();
    print_results(&Results { workload, rounds, rows, interrupted }, files)
}

/// Prints the table and writes the files. Returns the exit status.
fn print_results(results: &Results<'_>, files: ResultFiles) -> u8 {
    let printed = print_stdout(&table::text(results));
    let written = files.write(results);
    if results.interrupted {
        print_stderr("vmm: interrupted: the results have only the rounds before the interruption\n");
    }
    match (written, results.interrupted) {
        (status::OK, true) => status::INTERRUPTED,
        (status::OK, false) => printed,
        (failed, _) => failed,
    }
}

/// Checks the numbers. Returns the workload and the number of rounds.
///
/// # Errors
/// A number is out of range.
fn workload(arguments: &CompareArgs) -> Result<(Workload, u32), Error> {
    let workload = Workload {
        bytes: size_in_range("--bytes", arguments.bytes, MAX_BYTES)?,
        messages: in_range("--messages", arguments.messages, 1, MAX_MESSAGES)?,
        queue_len: check_queue_len(arguments.queue_len)?,
        ..Workload::default()
    };
    Ok((workload, in_range("--rounds", arguments.rounds, 1, MAX_ROUNDS)?))
}

/// Returns the requested rows, by ring, and then in the order of [`Variant::ALL`].
fn rows(arguments: &CompareArgs) -> Vec<Row> {
    let rings: &[Ring] = match arguments.ring {
        RingArg::Zero => &[Ring::Zero],
        RingArg::Three => &[Ring::Three],
        RingArg::Both => &[Ring::Zero, Ring::Three],
    };
    let is_requested = |variant: &Variant| {
        let listed = arguments.transports.iter().any(|listed| Variant::from(*listed) == *variant);
        arguments.transports.is_empty() || listed
    };
    let variants = || Variant::ALL.into_iter().filter(is_requested);
    rings.iter().flat_map(|ring| variants().map(|variant| Row::new(variant, *ring))).collect()
}
