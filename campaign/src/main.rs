//! The campaign: runs the program `vmm` many times under conditions that tests do not cover one by one, and lists every
//! run that ends in a way that no run may end in (`judge.rs`).
//!
//! | part | what runs |
//! |---|---|
//! | `injected` | small guests on a host whose system calls fail (`tests/support/failing-host.c`) |
//! | `images` | random bytes and damaged built-in guests, in all modes |
//! | `processor` | random images on the software processor, in this process |
//! | `queues` | a kernel that sets up queues of virtio devices against the rules |
//!
//! A run is one number of one part. The seed and this number decide everything that the campaign chooses, so
//! `--seed SEED --only PART:NUMBER` repeats a run. The time limit decides only how many runs there are.

mod compile;
mod images;
mod injected;
mod judge;
mod processor;
mod program;
mod queues;
mod schedule;

use clap::Parser;
use schedule::Tally;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs vmm on failing hosts, with random images and with hostile kernels, and lists what goes wrong.
#[derive(Debug, Parser)]
struct Options {
    /// Seed of all choices [default: a new one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Time limit in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Run only one part, `injected`, `images`, `processor` or `queues`, or one of its runs, such as `images:12`
    #[arg(long, value_name = "PART[:NUMBER]")]
    only: Option<String>,
    /// The program to run
    #[arg(long, default_value = "target/release/vmm")]
    program: PathBuf,
    /// Folder for the files of runs with findings
    #[arg(long, default_value = "target/campaign")]
    findings: PathBuf,
}

/// The resources that every part needs.
struct Setup {
    seed: u64,
    program: PathBuf,
    folder: tempfile::TempDir,
    findings: PathBuf,
}

impl Setup {
    /// The choices of run `number` of a part. Different runs have unrelated choices.
    fn choices(&self, part: &str, number: u64) -> fastrand::Rng {
        let mut mixed = self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in part.bytes() {
            mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        fastrand::Rng::with_seed(mixed)
    }

    /// A new folder for the files of one run.
    fn scratch(&self) -> Result<tempfile::TempDir, String> {
        tempfile::tempdir_in(self.folder.path()).map_err(|error| format!("cannot create a folder: {error}"))
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("campaign: error: {why}");
            ExitCode::from(2)
        }
    }
}

/// Runs the parts. Returns true if there is no finding.
fn run(options: &Options) -> Result<bool, String> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let (name, number) = match options.only.as_deref() {
        None => ("", None),
        Some(only) => match only.split_once(':') {
            None => (only, None),
            Some((part, number)) => {
                (part, Some(number.parse().map_err(|_| format!("{number:?} is not a number"))?))
            }
        },
    };
    let folder = tempfile::Builder::new().prefix("vmm-campaign-").tempdir();
    let setup = Setup {
        seed,
        program: absolute(&options.program)?,
        folder: folder.map_err(|error| format!("cannot create a temporary folder: {error}"))?,
        findings: options.findings.clone(),
    };
    println!("campaign: seed {seed}");
    // The share of the time that each part gets, of 10.
    let parts: [(&str, u64); 4] = [("injected", 4), ("images", 2), ("processor", 2), ("queues", 2)];
    if !name.is_empty() && parts.iter().all(|(part, _)| *part != name) {
        return Err(format!("no part has the name {name:?}: give injected, images, processor or queues"));
    }
    let mut tallies = Vec::new();
    for (part, share) in parts.into_iter().filter(|(part, _)| name.is_empty() || name == *part) {
        let share = if name.is_empty() { share } else { 10 };
        let limit = Duration::from_secs(options.seconds.saturating_mul(share) / 10);
        tallies.push(match part {
            "injected" => schedule::run(&setup, &injected::Injected::new(&setup)?, number, limit),
            "processor" => schedule::run(&setup, &processor::Random::new(), number, limit),
            "images" => schedule::run(&setup, &images::Images, number, limit),
            _ => schedule::run(&setup, &queues::Queues::new(&setup)?, number, limit),
        });
    }
    Ok(conclude(&tallies, seed))
}

fn absolute(program: &Path) -> Result<PathBuf, String> {
    let shown = program.display();
    program
        .canonicalize()
        .map_err(|error| format!("cannot run {shown}: {error}: build it with cargo build --release"))
}

/// Prints what ran and every finding. Returns true if there is none.
fn conclude(tallies: &[Tally], seed: u64) -> bool {
    println!("\n{:<10} {:>7} {:>9} {:>9}  exit statuses", "part", "runs", "findings", "seconds");
    for tally in tallies {
        let statuses: Vec<_> =
            tally.statuses.iter().map(|(status, runs)| format!("{status}: {runs}")).collect();
        println!(
            "{:<10} {:>7} {:>9} {:>9}  {}",
            tally.part,
            tally.runs,
            tally.findings.len(),
            tally.time.as_secs(),
            statuses.join(", ")
        );
    }
    for tally in tallies {
        for finding in &tally.findings {
            println!("\n{}:{}: {}", tally.part, finding.number, finding.what);
            println!("    {}", finding.command);
            println!("    repeat: make campaign SEED={seed} ONLY={}:{}", tally.part, finding.number);
        }
    }
    tallies.iter().all(|tally| tally.findings.is_empty())
}
