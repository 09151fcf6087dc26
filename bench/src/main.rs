//! `bench` measures the cost of vmm as a whole, and compares it with a lower bound and with QEMU.
//!
//! Each measurement is a module and an entry in [`MEASUREMENTS`]. `docs/benchmarks.md` describes the measurements and
//! the results. `make bench-parts` measures the steps of an exit separately.

mod again;
mod bare;
mod batch;
mod cold;
mod echo;
mod exits;
mod host;
mod latch;
mod loops;
mod memory;
mod observe;
mod plot;
mod qemu;
mod results;
mod row;
mod scale;
mod scratch;
mod size;
mod soft;
mod sys;
mod table;

use clap::Parser;
use host::Host;
use qemu::Qemu;
use results::Results;
use row::Row;
use std::cell::OnceCell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vmm::boot::Image;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

/// Exit statuses, the same as those of `vmm`.
const USAGE: u8 = 110;
const HOST_ERROR: u8 = 115;
const INTERRUPTED: u8 = 117;

/// The programs that a measurement uses.
struct Context {
    /// The `vmm` program to measure.
    vmm: PathBuf,
    /// QEMU, once a measurement has asked for it, or the reason why it does not run here.
    qemu: OnceCell<Result<Qemu, String>>,
}

impl Context {
    /// Returns the program to measure.
    ///
    /// # Errors
    /// The file does not exist.
    fn vmm(&self) -> Result<&Path, String> {
        let here = self.vmm.is_file().then_some(self.vmm.as_path());
        here.ok_or_else(|| {
            format!("{} does not exist: run cargo build --release, or use --vmm FILE", self.vmm.display())
        })
    }

    /// Runs a measurement that compares with QEMU. If QEMU does not run here, or fails, it runs without QEMU, and the result
    /// says so.
    ///
    /// # Errors
    /// The measurement fails without QEMU, too.
    fn beside_qemu(
        &self,
        run: impl Fn(&Path, Option<&Qemu>) -> Result<Vec<Row>, String>,
    ) -> Result<Measured, String> {
        let vmm = self.vmm()?;
        let why = match self.qemu.get_or_init(Qemu::find) {
            Err(why) => why.clone(),
            Ok(qemu) => match run(vmm, Some(qemu)) {
                Ok(rows) => return Ok(rows.into()),
                Err(why) => why,
            },
        };
        if vmm::host::interrupted() {
            return Err(why);
        }
        Ok(Measured { rows: run(vmm, None)?, without_qemu: Some(why) })
    }
}

/// The result of a measurement.
struct Measured {
    rows: Vec<Row>,
    /// The reason why the rows lack the side of QEMU.
    without_qemu: Option<String>,
}

impl From<Vec<Row>> for Measured {
    fn from(rows: Vec<Row>) -> Self {
        Self { rows, without_qemu: None }
    }
}

/// One measurement: a name for `--only`, and the function that runs it.
struct Measurement {
    name: &'static str,
    about: &'static str,
    /// The number of rounds without `--rounds`.
    rounds: usize,
    run: fn(&Context, usize) -> Result<Measured, String>,
}

/// All measurements, in the order of the results table.
const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "exits",
        about: "the cost of an exit, including the device access, compared with a bare KVM_RUN loop",
        rounds: 120,
        run: |_, rounds| exits::run(rounds).map(Measured::from),
    },
    Measurement {
        name: "cold",
        about: "a whole run of vmm with a tiny guest, compared with a bare program",
        rounds: 150,
        run: |context, rounds| cold::run(rounds, context.vmm()?).map(Measured::from),
    },
    Measurement {
        name: "again",
        about: "a tiny guest that runs again and again in one VM, compared with a bare loop",
        rounds: 30,
        run: |_, rounds| again::run(rounds).map(Measured::from),
    },
    Measurement {
        name: "echo",
        about: "one byte to the device and back by polling, from ring 3, compared with a bare poller",
        rounds: 20,
        run: |_, rounds| echo::run(rounds).map(Measured::from),
    },
    Measurement {
        name: "scale",
        about: "1 to 1000 VMs alive in one process, compared with a bare program",
        rounds: 5,
        run: |context, rounds| scale::run(rounds, context.vmm()?).map(Measured::from),
    },
    Measurement {
        name: "soft",
        about: "the software processor: an instruction, a cold start and the SIMVIRTIO guest, compared with KVM",
        rounds: 60,
        run: |context, rounds| soft::run(rounds, context.vmm()?).map(Measured::from),
    },
    Measurement {
        name: "observe",
        about: "an exit of a program that `vmm observe` observes, compared with the program alone",
        rounds: 60,
        run: |context, rounds| observe::run(rounds, context.vmm()?).map(Measured::from),
    },
    Measurement {
        name: "batch",
        about: "submissions of `vmm grade`, each in its own process, compared with a bare loop over new VMs",
        rounds: 10,
        run: |context, rounds| batch::run(rounds, context.vmm()?).map(Measured::from),
    },
    Measurement {
        name: "size",
        about: "the peak RSS of a run and the size of the program, compared with QEMU",
        rounds: 5,
        run: |context, rounds| context.beside_qemu(|vmm, qemu| size::run(rounds, vmm, qemu)),
    },
    Measurement {
        name: "qemu",
        about: "the same guests under QEMU's microvm: a whole run, and the cost per exit",
        rounds: 15,
        run: |context, rounds| context.beside_qemu(|vmm, qemu| qemu::run(rounds, vmm, qemu)),
    },
];

/// Measures the cost of vmm, compared with bare loops, bare programs and QEMU's microvm.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Prints Markdown tables on stdout and progress on stderr. Ctrl-C stops early and prints the results so far.\n\n\
                  Exit status: 0 if the run is complete, even if a goal is missed; 110 for a usage error; 114 if a step \
                  takes more than 60 s; 115 if guests cannot run on this host or output cannot be written; 117 if interrupted."
)]
struct Arguments {
    /// Number of rounds for each measurement, 1 to 10000 [default: see --list]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,

    /// Run only this measurement (see --list); repeat the option for several
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(MEASUREMENTS.iter().map(|one| one.name)))]
    only: Vec<String>,

    /// List the measurements and their numbers of rounds
    #[arg(long)]
    list: bool,

    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a plot of the ratios to FILE as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Program to measure [default: vmm in the folder of this program]
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
    match print(&text) {
        // The reader has closed the pipe, so it wants no more.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            report_error(&format!("cannot write standard output: {error}")).into()
        }
        _ => status.into(),
    }
}

/// Prints a text on stdout.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Prints a line on stderr. An error is ignored: the exit status still reports a failure.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "bench: {line}");
}

fn list() -> String {
    let line = |one: &Measurement| format!("{:<8} {:>4} rounds  {}\n", one.name, one.rounds, one.about);
    MEASUREMENTS.iter().map(line).collect()
}

/// Checks the names of the result files, before the measurements take their time.
///
/// # Errors
/// One of them is a directory, or both are the same.
fn check_files(arguments: &Arguments) -> Result<(), String> {
    let mut paths = [&arguments.json, &arguments.svg].into_iter().flatten();
    if let Some(path) = paths.find(|path| path.is_dir()) {
        let path = vmm::host::printable(path);
        return Err(format!("cannot write {path}: it is a directory: give the name of a file"));
    }
    match (&arguments.json, &arguments.svg) {
        (Some(json), Some(svg)) if json == svg => {
            let path = vmm::host::printable(json);
            Err(format!("--json and --svg write the same file, {path}: give two different files"))
        }
        _ => Ok(()),
    }
}

/// Prints an error and returns its exit status.
fn report_error(message: &str) -> u8 {
    note(&format!("error: {message}"));
    HOST_ERROR
}

/// Runs a guest that halts at once, to check that guests can run on this host.
fn try_guest() -> Result<(), vmm::Error> {
    let image = Image::flat(&[0xf4][..], Mode::Real, Gpa(0))?;
    Machine::builder(image)
        .processor(Some(Processor::Kvm))
        .output(Output::captured().0)
        .build()?
        .run()
        .map(drop)
}

/// Runs the measurements that the user asked for. Returns the tables and the exit status.
fn measure(arguments: &Arguments) -> (String, u8) {
    if let Err(error) = check_files(arguments) {
        report_error(&error);
        return (String::new(), USAGE);
    }
    if let Err(error) = try_guest() {
        return (String::new(), report_error(&error.to_string()));
    }
    vmm::host::catch_interrupts();
    let results = Arc::new(Mutex::new(Results { host: Host::this(), ..Default::default() }));
    sys::start_watchdog({
        let results = results.clone();
        move || {
            let _ = print(&table::markdown(&lock(&results)));
        }
    });
    run_measurements(arguments, &results);
    let results = lock(&results).clone();
    let status = match write_files(arguments, &results) {
        Some(status) => status,
        None if results.interrupted => INTERRUPTED,
        None => 0,
    };
    (table::markdown(&results), status)
}

fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the measurements, and adds each one's rows to `results` at its end.
fn run_measurements(arguments: &Arguments, results: &Mutex<Results>) {
    let default_vmm = std::env::current_exe().unwrap_or_default().with_file_name("vmm");
    let context = Context { vmm: arguments.vmm.clone().unwrap_or(default_vmm), qemu: OnceCell::new() };
    let wanted =
        |one: &&Measurement| arguments.only.is_empty() || arguments.only.iter().any(|name| name == one.name);
    for one in MEASUREMENTS.iter().filter(wanted) {
        let rounds = arguments.rounds.map_or(one.rounds, |rounds| rounds as usize);
        note(&format!("{}: {} ({rounds} rounds)", one.name, one.about));
        let start = Instant::now();
        let outcome = (one.run)(&context, rounds);
        let mut results = lock(results);
        match outcome {
            Ok(Measured { rows, without_qemu }) => {
                results.add(rows);
                results.skip(without_qemu.map(|why| (format!("QEMU's side of {}", one.name), why)));
            }
            Err(_) if vmm::host::interrupted() => {}
            Err(why) => results.skip(Some((one.name.into(), why))),
        }
        if vmm::host::interrupted() {
            results.interrupted = true;
            break;
        }
        note(&format!("{}: done in {:.0} s", one.name, start.elapsed().as_secs_f64()));
    }
}

/// Writes the JSON and the plot, if the user asked for them. Prints an error for each file that it cannot write, and
/// returns the exit status then.
fn write_files(arguments: &Arguments, results: &Results) -> Option<u8> {
    let files =
        [(&arguments.json, Some(format!("{:#}\n", results.json()))), (&arguments.svg, plot::svg(results))];
    let mut status = None;
    for (path, content) in
        files.iter().filter_map(|(path, content)| Some((path.as_ref()?, content.as_ref()?)))
    {
        if let Err(error) = save(path, content) {
            status = Some(report_error(&format!("cannot write {}: {error}", vmm::host::printable(path))));
        }
    }
    status
}

/// Writes a file, and creates its folders if they are missing.
fn save(path: &Path, content: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}
