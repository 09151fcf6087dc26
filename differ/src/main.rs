//! The differential tester: runs random programs on the processor through KVM and on `softcpu`, and compares registers,
//! defined flags, memory and accesses.

mod culprit;
mod flags;
mod generate;
mod kvm;
mod layout;
mod minimize;
mod opcodes;
mod operands;
mod outcome;
mod program;
mod quirks;
mod ring_0;
mod runner;
mod soft;
mod stale;
mod values;

use clap::Parser;
use generate::Generator;
use program::{Config, Id};
use runner::{Runner, Verdict};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Error = Box<dyn std::error::Error>;

/// Runs random programs on the processor through KVM and on softcpu, and compares the results.
#[derive(Debug, Parser)]
struct Options {
    /// Seed of all programs [default: a new one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Time limit in seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// The number of programs
    #[arg(long)]
    programs: Option<u64>,
    /// Run only one configuration (user, real, protected, protected16, long), or one program, such as user:12
    #[arg(long, value_name = "CONFIG[:NUMBER]")]
    only: Option<String>,
    /// Stop after this number of differences
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// List the differences in undefined flags
    #[arg(long)]
    undefined: bool,
    /// Compare KVM with itself instead of softcpu
    #[arg(long)]
    self_check: bool,
    /// Print each program before it runs
    #[arg(long)]
    verbose: bool,
}

/// The order of the configurations. Programs in ring 3 are the larger part: they run on the processor itself.
const ROTATION: [Config; 8] = [
    Config::User,
    Config::Real,
    Config::User,
    Config::Protected,
    Config::User,
    Config::Long,
    Config::User,
    Config::Protected16,
];

/// The results of the programs of one configuration.
#[derive(Default)]
struct Tally {
    programs: u64,
    not_comparable: u64,
    unsupported: u64,
    undefined: u64,
    faults: u64,
    differences: u64,
}

/// The results of all programs.
#[derive(Default)]
struct Report {
    tallies: BTreeMap<Config, Tally>,
    reasons: BTreeMap<String, u64>,
    unsupported: BTreeMap<String, u64>,
    undefined: BTreeMap<String, u64>,
    /// Differences that are gone when the program runs again on new machines.
    unstable: u64,
    /// The differences by the names of their instructions, and the first program of each.
    kinds: BTreeMap<String, (Id, u64)>,
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("differ: error: {why}");
            ExitCode::from(2)
        }
    }
}

/// Interrupts endless programs: two interruptions of one program end it. The time is that of the processor, so that a busy
/// host ends no others.
fn start_timer() {
    extern "C" fn nothing(_: libc::c_int) {}
    let interval = libc::timeval { tv_sec: 0, tv_usec: 10_000 };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the handler does nothing. Without SA_RESTART, KVM_RUN returns EINTR.
    #[allow(unsafe_code)]
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut());
    }
}

/// The configurations to run, and the number of the only program.
fn selection(only: Option<&str>) -> Result<(Vec<Config>, Option<u64>), Error> {
    let Some(only) = only else { return Ok((Config::ALL.into(), None)) };
    let (name, number) = match only.split_once(':') {
        Some((name, number)) => (name, Some(number.parse()?)),
        None => (only, None),
    };
    let config = Config::ALL.into_iter().find(|config| config.name() == name);
    Ok((
        vec![config.ok_or("no such configuration: give user, real, protected, protected16 or long")?],
        number,
    ))
}

/// Runs the programs. Returns true if there is no difference.
fn run(options: &Options) -> Result<bool, Error> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..) >> 16);
    let (configs, number) = selection(options.only.as_deref())?;
    println!("differ: seed {seed}");
    start_timer();
    let generator = Generator::new(seed);
    let mut runner = Runner::new()?;
    runner.self_check = options.self_check;
    let mut report = Report { seed, ..Report::default() };
    let started = Instant::now();
    let mut shown = started;
    let limit = options.seconds.map(Duration::from_secs);
    let last = match number {
        Some(_) => 1,
        None => options.programs.unwrap_or(if limit.is_some() { u64::MAX } else { 100_000 }),
    };
    for count in 0..last {
        let config = match configs.len() {
            1 => configs[0],
            _ => ROTATION[(count / 512 % ROTATION.len() as u64) as usize],
        };
        let id = Id { config, number: number.unwrap_or(count) };
        step(&generator, &mut runner, &mut report, id, seed, options)?;
        if shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            eprintln!("differ: {}", report.line(started.elapsed()));
        }
        if limit.is_some_and(|limit| started.elapsed() > limit) || report.kinds.len() >= options.most {
            break;
        }
    }
    report.conclude(started.elapsed());
    Ok(report.kinds.is_empty() && report.unstable == 0)
}

/// Runs one program.
fn step(
    generator: &Generator,
    runner: &mut Runner,
    report: &mut Report,
    id: Id,
    seed: u64,
    options: &Options,
) -> Result<(), Error> {
    let program = generator.program(id);
    if options.verbose {
        println!("{id}\n  {}\n  {}", minimize::start(&program), minimize::disassembly(&program).join("\n  "));
    }
    let faults = runner.faults;
    let verdict = runner.judge(&program)?;
    if options.verbose {
        println!("  {verdict:x?}");
    }
    let tally = report.tallies.entry(id.config).or_default();
    tally.programs += 1;
    tally.faults += runner.faults - faults;
    match verdict {
        Verdict::Same => {}
        Verdict::NotComparable(why) => {
            tally.not_comparable += 1;
            *report.reasons.entry(why).or_default() += 1;
        }
        Verdict::Unsupported(name) => {
            tally.unsupported += 1;
            *report.unsupported.entry(name).or_default() += 1;
        }
        Verdict::UndefinedFlags(cause, lines) => {
            tally.undefined += 1;
            let count = report.undefined.entry(cause).or_default();
            *count += 1;
            if options.undefined && *count <= 2 {
                println!(
                    "undefined flags of {id}:\n  {}\n  {}",
                    minimize::disassembly(&program).join("\n  "),
                    lines.join("\n  ")
                );
            }
        }
        Verdict::Different(first) => {
            runner.fresh()?;
            match runner.judge(&program)? {
                Verdict::Different(lines) => {
                    report.tallies.entry(id.config).or_default().differences += 1;
                    show(runner, report, &program, lines, seed)?;
                }
                _ => {
                    report.unstable += 1;
                    println!(
                        "\n{id}: only after other programs\n    {}",
                        minimize::disassembly(&program).join("\n    ")
                    );
                    println!("      {}", first.join("\n      "));
                }
            }
        }
    }
    Ok(())
}

/// Prints a difference, if it is of a new kind.
fn show(
    runner: &mut Runner,
    report: &mut Report,
    program: &program::Program,
    lines: Vec<String>,
    seed: u64,
) -> Result<(), Error> {
    let kind = match runner.culprit(program)? {
        Ok(culprit) => quirks::name(program.id.config, &culprit),
        Err(_) => kind(program),
    };
    let (_, count) = report.kinds.entry(kind.clone()).or_insert((program.id, 0));
    *count += 1;
    if *count > 1 {
        return Ok(());
    }
    let (small, small_lines) = minimize::Minimizer::run(runner, program, lines);
    println!("\n{}: {kind}", program.id);
    println!("    {}", minimize::disassembly(&small).join("\n    "));
    println!("    start: {}", minimize::start(&small));
    println!("    kvm against soft:\n      {}", small_lines.join("\n      "));
    println!("    repeat: target/release/differ --seed {seed} --only {}", program.id);
    Ok(())
}

/// The names of the instructions that are left.
fn kind(program: &program::Program) -> String {
    let lines = minimize::disassembly(program);
    let names: Vec<_> = lines.iter().filter_map(|line| line.split_whitespace().nth(2)).collect();
    format!("{} {}", program.id.config.name(), names.join(" "))
}

impl Report {
    fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.tallies.values() {
            total.programs += tally.programs;
            total.not_comparable += tally.not_comparable;
            total.unsupported += tally.unsupported;
            total.undefined += tally.undefined;
            total.faults += tally.faults;
            total.differences += tally.differences;
        }
        total
    }

    fn line(&self, time: Duration) -> String {
        let total = self.total();
        let mut line = format!("{:.0} programs/s", total.programs as f64 / time.as_secs_f64());
        for (config, tally) in &self.tallies {
            line += &format!(
                "; {} {} ({}% fault, {} not comparable, {} unsupported, {} undefined flags, {} different)",
                config.name(),
                tally.programs,
                tally.faults * 100 / tally.programs.max(1),
                tally.not_comparable,
                tally.unsupported,
                tally.undefined,
                tally.differences
            );
        }
        line
    }

    fn conclude(&self, time: Duration) {
        for (title, counts) in [
            ("not comparable", &self.reasons),
            ("not implemented by softcpu", &self.unsupported),
            ("undefined flags that differ", &self.undefined),
        ] {
            let mut sorted: Vec<_> = counts.iter().collect();
            sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let list: Vec<_> =
                sorted.iter().take(60).map(|(name, count)| format!("{name} {count}")).collect();
            if !list.is_empty() {
                println!("{title} ({}): {}", counts.len(), list.join(", "));
            }
        }
        // Last, so that a log that keeps only its end has them.
        for (kind, (id, count)) in &self.kinds {
            println!("difference: {count} of {kind}: repeat with make differ SEED={} ONLY={id}", self.seed);
        }
        println!("differ: {}", self.line(time));
        let total = self.total();
        println!(
            "differ: {} programs, {} compared, {} differences of {} kinds, {} unstable, {} s",
            total.programs,
            total.programs - total.not_comparable - total.unsupported,
            total.differences,
            self.kinds.len(),
            self.unstable,
            time.as_secs()
        );
    }
}
