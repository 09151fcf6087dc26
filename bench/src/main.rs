//! `bench`: what vmm costs, as a whole, next to the least that it can cost and next to others.
//!
//! Each measurement is a file, and a line in [`MEASUREMENTS`]. `docs/benchmarks.md` says what they do and how to read what
//! comes of them; the parts of an exit's way are measured by `make bench-parts`.

mod bare;
mod cold;
mod echo;
mod exits;
mod host;
mod loops;
mod memory;
mod plot;
mod qemu;
mod results;
mod row;
mod scale;
mod scratch;
mod size;
mod sys;
mod table;

use clap::Parser;
use host::Host;
use results::Results;
use row::Row;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vmm::boot::Image;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

/// Exit statuses, as those of `vmm`.
const USAGE: u8 = 110;
const HOST_ERROR: u8 = 115;
const INTERRUPTED: u8 = 117;

/// What a measurement is given.
struct Context {
    /// The program `vmm` to measure.
    vmm: PathBuf,
    /// QEMU, where it is.
    qemu: Option<PathBuf>,
}

impl Context {
    /// The program to measure, if it is there.
    fn vmm(&self) -> Result<&Path, String> {
        let here = self.vmm.is_file().then_some(self.vmm.as_path());
        here.ok_or_else(|| {
            format!("{} is not there: build it (cargo build --release), or give --vmm", self.vmm.display())
        })
    }

    fn qemu(&self) -> Result<&Path, String> {
        let missing =
            || format!("{} is not on the path: install it (apt-get install qemu-system-x86)", qemu::PROGRAM);
        self.qemu.as_deref().ok_or_else(missing)
    }
}

/// Something to measure.
struct Measurement {
    name: &'static str,
    about: &'static str,
    /// How often, unless the user says otherwise.
    rounds: usize,
    run: fn(&Context, usize) -> Result<Vec<Row>, String>,
}

/// All measurements, in the order of the table.
const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "exits",
        about: "an exit and its way to a device and back, over a bare KVM_RUN loop",
        rounds: 120,
        run: |_, rounds| exits::run(rounds),
    },
    Measurement {
        name: "cold",
        about: "the start of vmm to its end with a tiny guest, over a bare program",
        rounds: 150,
        run: |context, rounds| cold::run(rounds, context.vmm()?),
    },
    Measurement {
        name: "echo",
        about: "a byte to the device and back by polling, from ring 3, over a bare poller",
        rounds: 20,
        run: |_, rounds| echo::run(rounds),
    },
    Measurement {
        name: "scale",
        about: "1 to 1000 VMs alive in one process, over a bare program",
        rounds: 5,
        run: |context, rounds| scale::run(rounds, context.vmm()?),
    },
    Measurement {
        name: "size",
        about: "peak RSS of a run, and the program's size, next to QEMU's",
        rounds: 5,
        run: |context, rounds| size::run(rounds, context.vmm()?, context.qemu.as_deref()),
    },
    Measurement {
        name: "qemu",
        about: "the same guests under QEMU's microvm: start to end, and per exit",
        rounds: 15,
        run: |context, rounds| qemu::run(rounds, context.vmm()?, context.qemu()?),
    },
];

/// Measures what vmm costs next to bare loops and programs, and next to QEMU's microvm.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Tables in Markdown on stdout, progress on stderr. Ctrl-C ends it with what there is.\n\n\
                  Exit status: 0 measured, whether goals were reached or not; 110 usage; 115 guests cannot run here; 117 interrupted."
)]
struct Arguments {
    /// How many rounds of each measurement [default: see --list]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,

    /// Measure only this, by its name in --list; may be given several times
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(MEASUREMENTS.iter().map(|one| one.name)))]
    only: Vec<String>,

    /// List the measurements, and how many rounds each has
    #[arg(long)]
    list: bool,

    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw the ratios into FILE, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// The program to measure [default: vmm, beside this program]
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { 0 }.into();
        }
    };
    let (text, status) = if arguments.list { (list(), 0) } else { measure(&arguments) };
    let written = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    if let Err(error) = written {
        return complain(&format!("cannot write standard output: {error}")).into();
    }
    status.into()
}

fn list() -> String {
    let line = |one: &Measurement| format!("{:<8} {:>4} rounds  {}\n", one.name, one.rounds, one.about);
    MEASUREMENTS.iter().map(line).collect()
}

fn complain(what: &str) -> u8 {
    eprintln!("bench: error: {what}");
    HOST_ERROR
}

/// Whether a guest can run here: one that halts.
fn try_guest() -> Result<(), vmm::Error> {
    let image = Image::flat(&[0xf4][..], Mode::Real, Gpa(0))?;
    Machine::builder(image).output(Output::captured().0).build()?.run().map(drop)
}

/// Measures what was asked for. Returns the tables and the exit status.
fn measure(arguments: &Arguments) -> (String, u8) {
    if let Err(error) = try_guest() {
        return (String::new(), complain(&error.to_string()));
    }
    vmm::host::catch_interrupts();
    let beside = std::env::current_exe().unwrap_or_default().with_file_name("vmm");
    let context = Context { vmm: arguments.vmm.clone().unwrap_or(beside), qemu: qemu::find() };
    let results = Arc::new(Mutex::new(Results { host: Host::this(), ..Default::default() }));
    let lock = |results: &Mutex<Results>| results.lock().unwrap_or_else(PoisonError::into_inner).clone();
    sys::watch({
        let results = results.clone();
        move || print!("{}", table::markdown(&lock(&results)))
    });
    let wanted =
        |one: &&Measurement| arguments.only.is_empty() || arguments.only.iter().any(|name| name == one.name);
    for one in MEASUREMENTS.iter().filter(wanted) {
        let rounds = arguments.rounds.map_or(one.rounds, |rounds| rounds as usize);
        eprintln!("bench: {}: {} ({rounds} rounds)", one.name, one.about);
        let start = Instant::now();
        let outcome = (one.run)(&context, rounds);
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(rows) => results.add(rows),
            Err(_) if vmm::host::interrupted() => {}
            Err(why) => {
                eprintln!("bench: {} cannot be measured: {why}", one.name);
                results.skipped.push((one.name.into(), why));
            }
        }
        if vmm::host::interrupted() {
            results.interrupted = true;
            break;
        }
        eprintln!("bench: {}: done in {:.0} s", one.name, start.elapsed().as_secs_f64());
    }
    let results = lock(&results);
    let mut status = if results.interrupted { INTERRUPTED } else { 0 };
    let files =
        [(&arguments.json, Some(format!("{:#}\n", results.json()))), (&arguments.svg, plot::svg(&results))];
    for (path, content) in
        files.iter().filter_map(|(path, content)| Some((path.as_ref()?, content.as_ref()?)))
    {
        if let Err(error) = save(path, content) {
            status = complain(&format!("cannot write {}: {error}", vmm::host::printable(path)));
        }
    }
    (table::markdown(&results), status)
}

/// Writes a file, in folders that are made where they are missing.
fn save(path: &Path, content: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}
