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
mod report;
mod ring_0;
mod runner;
mod soft;
mod stale;
mod values;

use clap::Parser;
use generate::Generator;
use program::{Config, Id};
use report::Report;
use runner::{Runner, Verdict};
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
    /// Stop after this number of differences; list this number of programs
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// List the first programs that are not compared for a reason with this text
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
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
    if runner.lacks_rf {
        println!("differ: this host leaves RF out of the frames of faults, so it is not compared");
    }
    let mut report = Report::new(seed);
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
        step(&generator, &mut runner, &mut report, id, options)?;
        if shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            eprintln!("differ: {}", report.line(started.elapsed()));
        }
        if limit.is_some_and(|limit| started.elapsed() > limit) || report.kinds.len() >= options.most {
            break;
        }
    }
    report.conclude(started.elapsed());
    Ok(report.kinds.is_empty())
}

/// Runs one program.
fn step(
    generator: &Generator,
    runner: &mut Runner,
    report: &mut Report,
    id: Id,
    options: &Options,
) -> Result<(), Error> {
    let program = generator.program(id);
    if options.verbose {
        println!("{id}\n  {}\n  {}", minimize::start(&program), minimize::disassembly(&program).join("\n  "));
    }
    let faults = runner.faults;
    let mut verdict = runner.judge(&program)?;
    if matches!(verdict, Verdict::Different(_)) {
        verdict = runner.confirm(&program)?;
    }
    if options.verbose {
        println!("  {verdict:x?}");
    }
    report.count(id.config, &verdict, runner.faults - faults);
    if let (Verdict::NotComparable(_, reason), Some(text)) = (&verdict, &options.why)
        && reason.contains(text)
        && report.total(reason) <= options.most as u64
    {
        explain(runner, &program, reason)?;
    }
    match verdict {
        Verdict::UndefinedFlags(cause, lines) if options.undefined && report.is_rare(id.config, &cause) => {
            let code = minimize::disassembly(&program).join("\n  ");
            println!("undefined flags of {id}:\n  {code}\n  {}", lines.join("\n  "));
        }
        Verdict::Different(lines) => show(runner, report, &program, lines)?,
        _ => {}
    }
    Ok(())
}

/// Prints a program that is not compared, and the first instruction that differs.
fn explain(runner: &mut Runner, program: &program::Program, reason: &str) -> Result<(), Error> {
    println!("\n{}: {reason}", program.id);
    println!("    {}", minimize::disassembly(program).join("\n    "));
    if let Ok(culprit) = runner.culprit(program)? {
        let lines = outcome::compare(program.id.config, &culprit.kvm, &culprit.soft, culprit.undefined.flags);
        println!("  {}", quirks::name(program.id.config, &culprit));
        println!("    at {}", quirks::describe(&culprit).join("\n      "));
        println!("    kvm against soft:\n      {}", lines.join("\n      "));
    }
    Ok(())
}

/// Prints a difference, if it is of a new kind.
fn show(
    runner: &mut Runner,
    report: &mut Report,
    program: &program::Program,
    lines: Vec<String>,
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
    if let Ok(culprit) = runner.culprit(&small)? {
        println!("    at {}", quirks::describe(&culprit).join("\n      "));
    }
    println!("    repeat: target/release/differ --seed {} --only {}", report.seed, program.id);
    Ok(())
}

/// The names of the instructions that are left.
fn kind(program: &program::Program) -> String {
    let lines = minimize::disassembly(program);
    let names: Vec<_> = lines.iter().filter_map(|line| line.split_whitespace().nth(2)).collect();
    format!("{} {}", program.id.config.name(), names.join(" "))
}
