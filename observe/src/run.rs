//! Runs a program, and collects what its engine sees.

use crate::engine::{Engine, Event, StopCause, Stops};
use crate::error::Error;
use crate::hang;
use crate::isolation::{Isolation, Protection};
use crate::memory::ObservedMemory;
use crate::observation::{Ending, Observation};
use crate::process::{self, Process};
use crate::program::Program;
use crate::tally::Tally;
use jail::{Captive, Place};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmm::host::thread_cpu_time;
use vmm::profile::MAX_TRACED_EXITS;

/// The time between two looks at the rings while there are records. A ring of 4096 records is full after that only if a vCPU
/// exits 800,000 times a second.
const PERIOD: Duration = Duration::from_millis(5);
/// The same while there are none: the time grows to this.
const IDLE_PERIOD: Duration = Duration::from_millis(20);
/// The time from SIGTERM to SIGKILL at the end of the time limit.
const GRACE: Duration = Duration::from_secs(1);

/// A vCPU that made no exit for this time before the end of the time limit is told of.
const LONG: Duration = Duration::from_secs(1);
/// The time for vCPUs to leave KVM_RUN at the end of the time limit.
const LEAVE: Duration = Duration::from_millis(300);

/// The options of an observation.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The time limit; `None` for no limit.
    pub timeout: Option<Duration>,
    /// The number of last exits to keep; `None` for no trace.
    pub trace: Option<usize>,
    /// Exits are also counted per address of the guest's code. [`Stops::rip`] asks for these addresses.
    pub by_address: bool,
    /// The stops that the watcher needs.
    pub stops: Stops,
    /// The jail of the program, if it is to have one.
    pub jail: Option<Confinement>,
    /// The current folder of the program. `None` for that of this process.
    pub folder: Option<PathBuf>,
}

/// The jail of an observed program.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// If a part is missing, the program is not started.
    pub required: bool,
    /// The files and folders that it may use besides the programs and libraries of the system.
    pub places: Vec<Place>,
}

/// Takes part in an observation: sees each event before it is counted. While it handles [`Event::Stopped`], the vCPU waits.
pub type Watcher<'a> = dyn FnMut(&Event, &ObservedMemory) + 'a;

/// Hands events to the watcher and to the counts.
struct Receiver<'a> {
    tally: Tally,
    /// The sentence about a vCPU that is in its guest at the end of the time limit.
    running: Option<String>,
    memory: ObservedMemory,
    watcher: &'a mut Watcher<'a>,
}

impl Receiver<'_> {
    fn take(&mut self, mut event: Event) {
        if let Event::Stopped(stop) = &mut event
            && let StopCause::Running(time) = &mut stop.cause
        {
            *time = self.tally.time_without_exit(stop.vcpu);
            if *time < LONG {
                return;
            }
            let at = stop.registers.as_ref().map(|registers| format!(", at {:#x}", registers.0.rip));
            self.running = self.running.take().or(Some(format!(
                "had vCPU {} in its guest{}, without an exit for {:.1} s",
                stop.vcpu.vcpu,
                at.unwrap_or_default(),
                time.as_secs_f64()
            )));
        }
        if let Event::Called(call) = &event {
            self.memory.follow(call);
        }
        (self.watcher)(&event, &self.memory);
        self.tally.take(event);
    }
}

/// The standard streams of a program that this process keeps in its hands.
#[derive(Debug)]
pub struct Streams {
    /// The standard input.
    pub stdin: Stdio,
    /// The standard output.
    pub stdout: Stdio,
    /// The standard error.
    pub stderr: Stdio,
}

/// Runs a program to its end, and observes it with this engine. The program has the standard streams, the terminal, the
/// process group and the signals of this process.
///
/// # Errors
/// An option is out of range, or the program cannot be started.
pub fn observe(
    program: &Program,
    arguments: &[OsString],
    options: Options,
    engine: &mut dyn Engine,
    watcher: &mut Watcher<'_>,
) -> Result<Observation, Error> {
    run(program, arguments, options, None, engine, watcher)
}

/// Runs a program as [`observe`] does, but with these streams, and in a session of its own. Its children end with it. It gets a
/// PID namespace if the system permits that, and then cannot signal other processes. A signal that asks this process to end
/// ends the program, too, and arrives at this process after that.
///
/// # Errors
/// Those of [`observe`].
pub fn observe_captive(
    program: &Program,
    arguments: &[OsString],
    options: Options,
    streams: Streams,
    engine: &mut dyn Engine,
    watcher: &mut Watcher<'_>,
) -> Result<Observation, Error> {
    run(program, arguments, options, Some(streams), engine, watcher)
}

fn run(
    program: &Program,
    arguments: &[OsString],
    options: Options,
    streams: Option<Streams>,
    engine: &mut dyn Engine,
    watcher: &mut Watcher<'_>,
) -> Result<Observation, Error> {
    let capacity = options.trace.unwrap_or(0);
    if options.trace.is_some() && !(1..=MAX_TRACED_EXITS).contains(&capacity) {
        let what = format!("--trace-exits must be 1 to {MAX_TRACED_EXITS}, not {capacity}");
        return Err(Error::Option(what));
    }
    let mut command = Command::new(&program.path);
    command.arg0(&program.name).args(arguments);
    if let Some(folder) = &options.folder {
        command.current_dir(folder);
    }
    let is_captive = streams.is_some();
    if let Some(Streams { stdin, stdout, stderr }) = streams {
        command.stdin(stdin).stdout(stdout).stderr(stderr);
    }
    // Before the engine's own function runs in the child.
    let is_isolated = is_captive || options.jail.is_some();
    let start = || Isolation::prepare(&mut command, is_captive, options.jail.is_some());
    let isolation = is_isolated.then(start).transpose().map_err(Error::host("creating a pipe"))?;
    engine.prepare(&mut command, options.stops, is_isolated)?;
    let jail = options.jail.map(|jail| captive(jail, engine, options.timeout, &mut command)).transpose()?;
    let tally = Tally::new(capacity, options.by_address);
    let mut receiver = Receiver { tally, running: None, memory: ObservedMemory::default(), watcher };
    let mut process = Process::start(&mut command, engine, isolation, jail)?;
    // The other ends of pipes must close with the program.
    drop(command);
    let (ending, hang, mut cost) = watch(&mut process, engine, &mut receiver, options.timeout, is_captive);
    let elapsed = receiver.tally.elapsed();
    let has_left_children = process.has_children(engine, &mut |event| receiver.take(event));
    if process.protection() == Protection::Namespace || is_captive && has_left_children {
        process.kill_all(engine, &mut |event| receiver.take(event));
    }
    // Children of a captive program have ended by now.
    let still_run = has_left_children && process.has_children(engine, &mut |event| receiver.take(event));
    let began = Instant::now();
    engine.finish(&mut |event| receiver.take(event));
    if still_run {
        engine.leave();
    }
    cost = cost.saturating_add(began.elapsed());
    let signal = process.asked_to_end().filter(|_| is_captive);
    let (protection, missing) = (process.protection(), process.missing().to_vec());
    drop(process);
    if let Some(signal) = signal {
        process::raise(signal);
    }
    let observation = Observation::of(receiver.tally, ending, elapsed, cost, has_left_children);
    Ok(Observation { protection, missing, hang, ..observation })
}

/// The variables of the environment that a program in a jail keeps, besides those that begin with LC_. The others can be secrets,
/// such as the tokens of a CI job.
const KEPT: [&str; 17] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "USER",
    "LOGNAME",
    "SHELL",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "RUST_BACKTRACE",
];

/// Takes all variables away except those of [`KEPT`] and those that the command sets itself.
fn clear_environment(command: &mut Command) {
    let set: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    let is_kept = |name: &str| name.starts_with("LC_") || KEPT.contains(&name);
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept));
    command.env_clear().envs(inherited).envs(set);
}

/// Prepares the jail of a program, which gets its scratch folder as the place for temporary files.
fn captive(
    Confinement { required, mut places }: Confinement,
    engine: &dyn Engine,
    timeout: Option<Duration>,
    command: &mut Command,
) -> Result<Captive, Error> {
    places.extend(engine.places());
    let captive = Captive::prepare(&places, timeout, required).map_err(Error::host("preparing the jail"))?;
    clear_environment(command);
    command.env("TMPDIR", captive.scratch()).env("HOME", captive.scratch());
    Ok(captive)
}

/// Hands over what the engine sees until the program ends, or its time does. Returns its ending, the place
/// where it stood at the end of its time, and the time for that.
fn watch(
    process: &mut Process,
    engine: &mut dyn Engine,
    receiver: &mut Receiver<'_>,
    timeout: Option<Duration>,
    is_captive: bool,
) -> (Ending, Option<String>, Duration) {
    let (mut cost, mut period) = (Duration::ZERO, PERIOD);
    loop {
        let now = receiver.tally.elapsed();
        let left = timeout.map(|limit| limit.saturating_sub(now));
        if left == Some(Duration::ZERO) {
            let place = hang::place(&process.family());
            inspect(process, engine, receiver);
            end(process, engine, receiver);
            return (Ending::Timeout(timeout.unwrap_or_default()), receiver.running.take().or(place), cost);
        }
        let before = thread_cpu_time();
        process.wait(engine, left.unwrap_or(period).min(period), &mut |event| receiver.take(event));
        if engine.traces() {
            // The states of the program's threads were handled meanwhile.
            cost = cost.saturating_add(thread_cpu_time().saturating_sub(before));
        }
        // Another thread of this process may have taken the signal.
        if is_captive && (process.asked_to_end().is_some() || vmm::host::interrupted()) {
            end(process, engine, receiver);
        }
        if let Some(status) = process.ended() {
            return (Ending::Ended(status), None, cost);
        }
        let began = Instant::now();
        let mut is_idle = true;
        engine.collect(&mut |event| {
            is_idle = false;
            receiver.take(event);
        });
        period = if is_idle { period.saturating_add(PERIOD).min(IDLE_PERIOD) } else { PERIOD };
        cost = cost.saturating_add(began.elapsed());
    }
}

/// Looks at the vCPUs that are in KVM_RUN at the end of the time limit.
fn inspect(process: &mut Process, engine: &mut dyn Engine, receiver: &mut Receiver<'_>) {
    engine.collect(&mut |event| receiver.take(event));
    engine.inspect(&mut |event| receiver.take(event));
    let began = Instant::now();
    while engine.traces() && process.ended().is_none() && began.elapsed() < LEAVE {
        process.wait(engine, PERIOD, &mut |event| receiver.take(event));
    }
}

/// Asks the program to end, and then ends it with all of its children.
fn end(process: &mut Process, engine: &mut dyn Engine, receiver: &mut Receiver<'_>) {
    let began = Instant::now();
    process.send(libc::SIGTERM);
    while process.ended().is_none() && began.elapsed() < GRACE {
        process.wait(engine, PERIOD, &mut |event| receiver.take(event));
        engine.collect(&mut |event| receiver.take(event));
    }
    process.kill_all(engine, &mut |event| receiver.take(event));
}
