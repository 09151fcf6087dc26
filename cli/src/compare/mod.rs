//! `vmm compare`: one workload over every transport, in ring 0 and ring 3, in one interleaved run. A table, bars and
//! sentences on stdout; JSON and a picture in files.

mod format;
mod json;
mod svg;
mod table;

use crate::args::{parse_number, parse_size};
use crate::say::{complain, print, say};
use crate::status;
use clap::{Args, ValueEnum};
use report::{FileError, OutputFile};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;
use vmm::Error;
use vmm::lab::{
    ComparisonError, MAX_BYTES, MAX_MESSAGES, MAX_ROUNDS, Ring, Row, Variant, Workload, run_comparison,
};

/// Options of `vmm compare`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmm compare                                     everything, in about 15 seconds
  vmm compare --transports byte,polling --ring 3  two of them, where this host runs code natively
  vmm compare --json result.json --svg picture.svg

Exit status: 0; 110 usage; 115 the host failed, or a transport changed what was sent; 117 interrupted,
with what there was by then. docs/compare.md says what the columns mean.")]
pub struct CompareArgs {
    /// Length of the message that the driver sends, such as 4096 or 16K, up to 16M
    #[arg(long, value_name = "N", default_value = "16K", value_parser = parse_size)]
    bytes: u64,

    /// How many short messages come back as echoes, each a round trip, up to 100000
    #[arg(long, value_name = "M", default_value = "1000", value_parser = parse_number)]
    messages: u64,

    /// How often everything is run, by turns, up to 1000; medians are shown
    #[arg(long, value_name = "R", default_value = "5", value_parser = parse_number)]
    rounds: u64,

    /// Length of SIMVIRTIO's queues in bytes, 2 to 4096
    #[arg(long, value_name = "BYTES", default_value_t = Workload::default().queue_len)]
    queue_len: u16,

    /// The ring that the driver runs in
    #[arg(long, value_enum, default_value_t)]
    ring: RingArg,

    /// Only these ways of talking to the device, such as byte,polling
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    transports: Vec<VariantArg>,

    /// Write the results here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw a picture of them here, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RingArg {
    /// as a kernel
    #[value(name = "0")]
    Zero,
    /// as a user's program
    #[value(name = "3")]
    Three,
    #[default]
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VariantArg {
    /// a store that is an exit, for each byte
    Byte,
    /// a store that is an exit, for as many bytes as the queue takes
    Batch,
    /// a store that the kernel queues, for each byte
    Coalesced,
    /// a store that wakes the device's thread, for as many bytes as the queue takes
    Doorbell,
    /// shared memory and a thread that watches it
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

/// What came of a comparison, for all that shows it.
struct Results<'a> {
    workload: Workload,
    /// Rounds that were asked for.
    rounds: u32,
    /// Those with at least one round.
    rows: Vec<&'a Row>,
    interrupted: bool,
}

/// Compares, prints, and answers with the exit status.
pub fn main(arguments: &CompareArgs) -> u8 {
    let (workload, rounds) = match workload(arguments) {
        Ok(checked) => checked,
        Err(error) => return complain(&error),
    };
    // What cannot be written is said before it is measured.
    let open = |path: &Option<PathBuf>| path.as_deref().map(OutputFile::open).transpose();
    let opened = open(&arguments.json).and_then(|json| Ok((json, open(&arguments.svg)?)));
    let (json, svg) = match opened {
        Ok(files) => files,
        Err(error) => return complain(&error),
    };
    vmm::host::catch_interrupts();
    let mut rows = rows(arguments);
    let started = Instant::now();
    let watched = io::stderr().is_terminal();
    let failure = run_comparison(&mut rows, workload, rounds, |round| {
        if watched {
            say(&format!("vmm: round {round} of {rounds}, after {:.1} s\n", started.elapsed().as_secs_f64()));
        }
    })
    .err();
    let interrupted = match failure {
        None => false,
        Some(ComparisonError::Interrupted) => true,
        Some(ComparisonError::Host(error)) => return complain(&error),
        Some(ComparisonError::Wrong(what)) => {
            say(&format!("vmm: error: {what}; there are no numbers to compare\n"));
            return status::HOST_ERROR;
        }
    };
    let rows: Vec<&Row> = rows.iter().filter(|row| row.rounds() > 0).collect();
    let results = Results { workload, rounds, rows, interrupted };
    report(&results, json, svg)
}

/// Shows the results everywhere, and gives the status.
fn report(results: &Results<'_>, json: Option<OutputFile>, svg: Option<OutputFile>) -> u8 {
    let printed = print(&table::text(results));
    let written = fill(json, &json::text(results)).and_then(|()| fill(svg, &svg::picture(results)));
    match written {
        Err(error) => complain(&error),
        Ok(()) if results.interrupted => {
            say("vmm: compare: interrupted; what was measured until then is above\n");
            status::INTERRUPTED
        }
        Ok(()) => printed,
    }
}

/// The numbers, checked: what is sent, and the rounds.
fn workload(arguments: &CompareArgs) -> Result<(Workload, u32), Error> {
    let within = |value: u64, most: u32, what: &str, option: &str, choose: &str| {
        let value = u32::try_from(value).ok().filter(|value| (1..=most).contains(value));
        value.ok_or_else(|| {
            Error::Config(format!("there is no comparison with {what}: choose {option} 1 to {choose}"))
        })
    };
    let CompareArgs { bytes, messages, rounds, queue_len, .. } = *arguments;
    let workload = Workload {
        bytes: within(bytes, MAX_BYTES, &format!("a message of {bytes} bytes"), "--bytes", "16M")?,
        messages: within(messages, MAX_MESSAGES, &format!("{messages} echoes"), "--messages", "100000")?,
        queue_len,
        ..Workload::default()
    };
    let rounds = within(rounds, MAX_ROUNDS, &format!("{rounds} rounds"), "--rounds", "1000")?;
    if !(simvirtio::abi::MIN_QUEUE_LEN..=simvirtio::abi::MAX_QUEUE_LEN).contains(&queue_len) {
        return Err(simvirtio::device::BadQueueLen(queue_len).into());
    }
    Ok((workload, rounds))
}

/// What was asked for, by ring and then in the order of [`Variant::ALL`].
fn rows(arguments: &CompareArgs) -> Vec<Row> {
    let rings: &[Ring] = match arguments.ring {
        RingArg::Zero => &[Ring::Zero],
        RingArg::Three => &[Ring::Three],
        RingArg::Both => &[Ring::Zero, Ring::Three],
    };
    let wanted = |variant: &Variant| {
        let listed = arguments.transports.iter().any(|listed| Variant::from(*listed) == *variant);
        arguments.transports.is_empty() || listed
    };
    let variants = || Variant::ALL.into_iter().filter(wanted);
    rings.iter().flat_map(|ring| variants().map(|variant| Row::new(variant, *ring))).collect()
}

/// Fills a file of results.
fn fill(to: Option<OutputFile>, text: &str) -> Result<(), FileError> {
    let Some(mut to) = to else { return Ok(()) };
    match to.write_all(text.as_bytes()) {
        Ok(()) => to.commit(),
        Err(source) => Err(to.failed(source)),
    }
}
