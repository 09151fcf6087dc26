//! `vmm bench scale`: many VMs in one process at the same time.
//!
//! Each measurement is made by a process of its own, this program started again, so that both sides begin alike. The two
//! sides take turns, and what counts is the median.

use crate::bench::bare;
use crate::bench::count::Holdings;
use crate::bench::pass::{self, Machines};
use crate::bench::sys::raise_descriptor_limit;
use crate::say::{complain, print, say};
use crate::status;
use clap::{Args, ValueEnum};
use guest::Guest;
use report::OutputFile;
use report::view::plural;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vmm::Error;

/// The guest of all VMs: it leaves 42 and halts.
const GUEST: &str = "real16-42";
/// The most VMs that can be asked for.
const MOST: usize = 10_000;
/// File descriptors of one VM: its own and its vCPU's.
const DESCRIPTORS: u64 = 2;
/// File descriptors that a process has besides, and some to spare.
const SPARE: u64 = 32;
/// So many VMs at least are made for one measurement, one after another where fewer are alive at once.
const ENOUGH: usize = 50;
/// How long one process may take, whatever happens, and how much longer for each VM.
const LIMIT: (Duration, Duration) = (Duration::from_secs(120), Duration::from_millis(100));

/// Options of `vmm bench scale`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmm bench scale                          1, 10, 100 and 1000 VMs
  vmm bench scale --vms 200 --rounds 11    200 VMs, measured eleven times
  vmm bench scale --json scale.json        the same figures for a program

Each VM has 1 MiB of memory, a vCPU and all devices of `vmm run`; its guest is real16-42. All are alive before the
first one runs. The bare program makes the same calls to KVM and nothing else. Times are per VM; memory is what the
process has more while all are alive (RSS); ratios are over the bare program, of the medians.

Exit status: 0 where all VMs left 42 and nothing was left over, 111 where one did not leave 42, 115 where
something was left over or the host cannot, 117 interrupted (what was measured is shown).")]
pub struct ScaleArgs {
    /// How many VMs are alive at the same time, as a list
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = parse_vms)]
    vms: Vec<usize>,

    /// How often each is measured, 1 to 1000
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// One measurement, in this process, for the one that asks: JSON on stdout
    #[arg(long, hide = true, value_enum)]
    only: Option<Side>,
}

/// Who makes the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// This VMM.
    Vmm,
    /// The bare program.
    Bare,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Bare => "bare",
        }
    }
}

fn parse_vms(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("give numbers of VMs, 1 to {MOST}, such as 1,10,100"))
}

/// Measures, prints, and answers with the exit status.
pub fn main(arguments: &ScaleArgs) -> u8 {
    vmm::host::catch_interrupts();
    let Some(guest) = guest::find(GUEST) else {
        return complain(&Error::Config(format!("the guest {GUEST} is missing from this build")));
    };
    if let Some(side) = arguments.only {
        if let Err(error) = does_not_fit(arguments.vms.first().copied().unwrap_or(1)) {
            return complain(&error);
        }
        return one(side, guest, arguments.vms.first().copied().unwrap_or(1));
    }
    let json = match arguments.json.as_deref().map(OutputFile::open).transpose() {
        Ok(json) => json,
        Err(error) => return complain(&error),
    };
    if let Some(error) = arguments.vms.iter().find_map(|vms| does_not_fit(*vms).err()) {
        return complain(&error);
    }
    let mut rows = Vec::new();
    let mut failed = status::OK;
    'all: for &vms in &arguments.vms {
        let mut row = Row::new(vms);
        for round in 1..=arguments.rounds {
            say(&format!(
                "vmm: {} at once, round {round} of {}\n",
                plural(vms as u64, "VM"),
                arguments.rounds
            ));
            if let Err(status) = row.measure(round) {
                failed = status;
            }
            if failed != status::OK {
                rows.extend(row.is_complete().then_some(row));
                break 'all;
            }
        }
        rows.push(row);
    }
    let mut answer = failed;
    if !rows.is_empty() {
        answer = answer.max(print(&table(&rows)));
    }
    if let Some(mut to) = json.filter(|_| !rows.is_empty()) {
        let text = format!("{:#}\n", as_json(&rows, arguments.rounds, failed == status::OK));
        let written = match to.write_all(text.as_bytes()) {
            Ok(()) => to.commit(),
            Err(source) => Err(to.failed(source)),
        };
        if let Err(error) = written {
            return complain(&error);
        }
    }
    if answer != status::OK {
        return answer;
    }
    for (row, side) in rows.iter().flat_map(|row| [(row, Side::Vmm), (row, Side::Bare)]) {
        let of_side = row.of(side);
        if of_side.iter().any(|sample| sample.verified != sample.made) {
            say(&format!("vmm: error: a guest among {} VMs ({}) did not leave 42\n", row.vms, side.name()));
            return status::WRONG_RESULT;
        }
        if let Some(sample) = of_side.iter().find(|sample| sample.left_over != json_of_nothing()) {
            let (vms, left_over) = (row.vms, &sample.left_over);
            say(&format!("vmm: error: left over after {vms} VMs ({}): {left_over}\n", side.name()));
            return status::HOST_ERROR;
        }
    }
    status::OK
}

/// What a process without anything left over says of that.
fn json_of_nothing() -> Value {
    Holdings::default().as_json()
}

/// Whether so many VMs can have their file descriptors.
fn does_not_fit(vms: usize) -> Result<(), Error> {
    let limit = raise_descriptor_limit()
        .map_err(|source| Error::Host { operation: "asking for the limit of open files", source })?;
    let needed = DESCRIPTORS.saturating_mul(vms as u64).saturating_add(SPARE);
    if needed <= limit {
        return Ok(());
    }
    let fit = limit.saturating_sub(SPARE) / DESCRIPTORS;
    Err(Error::Host {
        operation: "making room for the VMs",
        source: io::Error::other(format!(
            "{vms} VMs need {needed} file descriptors, and {limit} are allowed, with which {fit} VMs fit: choose fewer \
             (--vms), or allow more (ulimit -n)"
        )),
    })
}

/// One measurement, in this process.
fn one(side: Side, guest: &'static Guest, vms: usize) -> u8 {
    let passes = ENOUGH.div_ceil(vms.max(1));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let measured = match side {
        Side::Vmm => pass::measure(&Machines(guest), vms, passes, threads),
        Side::Bare => bare::Host::new(guest)
            .map_err(pass::of_bare)
            .and_then(|host| pass::measure(&host, vms, passes, threads)),
    };
    match measured {
        Ok(measured) => print(&format!("{}\n", measured.as_json())),
        Err(Error::Interrupted) => status::INTERRUPTED,
        Err(_) if vmm::host::interrupted() => status::INTERRUPTED,
        Err(error) => complain(&error),
    }
}

/// What one process has measured; times in microseconds for each VM.
#[derive(Clone, Debug, Default)]
struct Sample {
    made: u64,
    verified: u64,
    create: f64,
    run: f64,
    create_cpu: f64,
    run_cpu: f64,
    memory: f64,
    descriptors: f64,
    left_over: Value,
}

impl Sample {
    fn parse(text: &[u8], vms: usize) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let made = value.get("made")?.as_u64().filter(|made| *made > 0)?;
        let each =
            |phase: &str, clock: &str| Some(value.get(phase)?.get(clock)?.as_f64()? * 1e6 / made as f64);
        Some(Self {
            made,
            verified: value.get("verified")?.as_u64()?,
            create: each("create", "wall")?,
            run: each("run", "wall")?,
            create_cpu: each("create", "cpu")?,
            run_cpu: each("run", "cpu")?,
            memory: value.get("memory")?.as_f64()? / vms as f64,
            descriptors: value.get("descriptors")?.as_f64()? / vms as f64,
            left_over: value.get("left_over")?.clone(),
        })
    }

    fn wall(&self) -> f64 {
        self.create + self.run
    }

    fn cpu(&self) -> f64 {
        self.create_cpu + self.run_cpu
    }
}

/// A process that measures, until it has ended. `Err` is the exit status that its failure leads to.
fn ask(side: Side, vms: usize) -> Result<Sample, u8> {
    let refused = |source| complain(&Error::Host { operation: "starting this program again", source });
    let mut child = Command::new("/proc/self/exe")
        .args(["bench", "scale", "--only", side.name(), "--vms", &vms.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(refused)?;
    let limit = LIMIT.0 + LIMIT.1 * u32::try_from(vms).unwrap_or(u32::MAX);
    let started = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(ended)) => break ended,
            Ok(None) if vmm::host::interrupted() || started.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                if vmm::host::interrupted() {
                    return Err(status::INTERRUPTED);
                }
                return Err(refused(io::ErrorKind::TimedOut.into()));
            }
            // What it prints fits into the pipe.
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(refused(error)),
        }
    };
    if vmm::host::interrupted() {
        return Err(status::INTERRUPTED);
    }
    let mut text = Vec::new();
    let mut stdout = child.stdout.take();
    stdout.iter_mut().try_for_each(|stdout| stdout.read_to_end(&mut text).map(drop)).map_err(refused)?;
    let sample = Sample::parse(&text, vms).filter(|_| ended.success());
    sample.ok_or_else(|| match ended.code().and_then(|code| u8::try_from(code).ok()) {
        // It has said why.
        Some(code @ 110..120) => code,
        _ => refused(io::Error::other(format!("it ended with {ended}"))),
    })
}

/// What was measured with so many VMs.
#[derive(Debug)]
struct Row {
    vms: usize,
    vmm: Vec<Sample>,
    bare: Vec<Sample>,
}

impl Row {
    fn new(vms: usize) -> Self {
        Self { vms, vmm: Vec::new(), bare: Vec::new() }
    }

    /// One round: both sides, in an order that changes.
    fn measure(&mut self, round: u32) -> Result<(), u8> {
        let order = if round.is_multiple_of(2) { [Side::Vmm, Side::Bare] } else { [Side::Bare, Side::Vmm] };
        for side in order {
            let sample = ask(side, self.vms)?;
            match side {
                Side::Vmm => self.vmm.push(sample),
                Side::Bare => self.bare.push(sample),
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        !self.vmm.is_empty() && !self.bare.is_empty()
    }

    fn of(&self, side: Side) -> &[Sample] {
        match side {
            Side::Vmm => &self.vmm,
            Side::Bare => &self.bare,
        }
    }

    /// The median of something.
    fn median(&self, side: Side, what: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<f64> = self.of(side).iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }

    fn ratio(&self, what: impl Fn(&Sample) -> f64 + Copy) -> f64 {
        self.median(Side::Vmm, what) / self.median(Side::Bare, what)
    }

    fn side_as_json(&self, side: Side) -> Value {
        let median = |what: fn(&Sample) -> f64| self.median(side, what);
        let total = |what: fn(&Sample) -> u64| self.of(side).iter().map(what).sum::<u64>();
        let left_over = self.of(side).iter().find(|sample| sample.left_over != json_of_nothing());
        json!({
            "vms_per_second": 1e6 / median(Sample::wall),
            "wall_us": { "create": median(|one| one.create), "run": median(|one| one.run), "all": median(Sample::wall) },
            "cpu_us": {
                "create": median(|one| one.create_cpu),
                "run": median(|one| one.run_cpu),
                "all": median(Sample::cpu),
            },
            "memory_bytes": median(|one| one.memory),
            "descriptors": median(|one| one.descriptors),
            "made": total(|one| one.made),
            "verified": total(|one| one.verified),
            "left_over": left_over.map_or_else(json_of_nothing, |sample| sample.left_over.clone()),
        })
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:>6}  {:<4} {:>8} {:>10} {:>8} {:>8} {:>8} {:>8}  {:>9} {:>10}\n",
        "VMs", "side", "VMs/s", "create us", "run us", "CPU us", "KiB", "files", "CPU ratio", "wall ratio"
    );
    for row in rows {
        for side in [Side::Vmm, Side::Bare] {
            let median = |what: fn(&Sample) -> f64| row.median(side, what);
            let ratios = match side {
                Side::Vmm => format!("{:>9.3} {:>10.3}", row.ratio(Sample::cpu), row.ratio(Sample::wall)),
                Side::Bare => String::new(),
            };
            let line = format!(
                "{:>6}  {:<4} {:>8.0} {:>10.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}  {ratios}",
                row.vms,
                side.name(),
                1e6 / median(Sample::wall),
                median(|one| one.create),
                median(|one| one.run),
                median(Sample::cpu),
                median(|one| one.memory) / 1024.0,
                median(|one| one.descriptors),
            );
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

fn as_json(rows: &[Row], rounds: u32, complete: bool) -> Value {
    let rows_as_json: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "vms": row.vms,
                "rounds": row.vmm.len().min(row.bare.len()),
                "vmm": row.side_as_json(Side::Vmm),
                "bare": row.side_as_json(Side::Bare),
                "ratio": { "cpu": row.ratio(Sample::cpu), "wall": row.ratio(Sample::wall) },
            })
        })
        .collect();
    json!({
        "bench": "scale",
        "version": 1,
        "guest": GUEST,
        "rounds": rounds,
        "threads": thread::available_parallelism().map_or(1, usize::from),
        "complete": complete,
        "rows": rows_as_json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cpu: f64) -> Sample {
        Sample {
            made: 1,
            verified: 1,
            run_cpu: cpu,
            run: cpu,
            left_over: json_of_nothing(),
            ..Default::default()
        }
    }

    #[test]
    fn a_list_of_numbers() {
        assert_eq!(["1", "10000"].map(parse_vms), [Ok(1), Ok(10_000)]);
        for wrong in ["0", "10001", "", "x", "-1", "1e3"] {
            assert!(parse_vms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let of = |values: [f64; 3]| values.map(sample).to_vec();
        let row = Row { vms: 1, vmm: of([9.0, 3.0, 6.0]), bare: of([100.0, 1.0, 4.0]) };
        assert_eq!((row.ratio(Sample::cpu), row.ratio(Sample::wall)), (1.5, 1.5));
        let json = as_json(&[row], 3, true);
        assert_eq!(json["rows"][0]["vmm"]["verified"], 3);
        assert_eq!(json["rows"][0]["ratio"]["cpu"], 1.5);
    }

    #[test]
    fn what_is_no_measurement_is_refused() {
        for text in ["", "{}", "[]", "{\"made\":0}", "{\"made\":1,\"verified\":1}"] {
            assert!(Sample::parse(text.as_bytes(), 1).is_none(), "{text}");
        }
    }
}
