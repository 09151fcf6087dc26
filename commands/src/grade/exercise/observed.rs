//! A run of a VMM for a task: a program of the submission, which is observed.

use super::image_file::ImageFile;
use super::run::{Failed, Recorded, mistake};
use crate::grade::student::capture::{Capture, Captured};
use crate::grade::{Settings, check_host};
use crate::jail::JailArgs;
use ::jail::{Place, Use};
use exercise::expect::kvm_feature;
use exercise::file::Task;
use exercise::template::Values;
use exercise::{Check, Facts, Memory, RunEnd, SiteExits};
use observe::{
    Choice, Death, Deaths, Ending, Event, Observation, ObservedMemory, Options, Program, Setup, Stop,
    StopCause, Stops, Streams,
};
use std::io::{self, Write};
use std::path::{Path, absolute};
use std::process::Stdio;
use vmm::Error;
use vmm::device::Layout;
use vmm::host::{printable, printable_text};
use vmm::machine::{DeathKind, Processor};
use vmm::memory::Gpa;
use vmm::x86::{Regs, Sregs};

/// The longest input, in bytes: as much as a pipe holds before the program reads.
const MAX_INPUT: usize = 64 << 10;
/// The parts of stderr that are kept: of its beginning and of its end, in bytes.
const MOST_ERRORS: usize = 4 << 10;
/// The number of exits that are recorded. The check of a limit names the first exit that is too many.
const RECORDED: usize = 4096;
/// KVM_EXIT_HLT.
const EXIT_HLT: u32 = 5;

/// A run that has ended.
pub struct ObservedRun {
    observation: Observation,
    seen: Seen,
    output: Vec<u8>,
    output_len: u64,
    errors: String,
    output_limit: u64,
}

/// The facts that are seen during a run.
#[derive(Default)]
struct Seen {
    /// The ranges of memory to copy.
    wanted: Vec<(u64, usize)>,
    /// The registers of the first vCPU that halted, at its last HLT that was looked at.
    registers: Option<Box<(Regs, Sregs)>>,
    copies: Vec<(u64, Vec<u8>)>,
    features: Vec<&'static str>,
    /// The calls that built the machines, if checks need them.
    setup: Option<Setup>,
    deaths: Deaths,
}

impl Seen {
    fn see(&mut self, event: &Event, memory: &ObservedMemory) {
        self.setup.iter_mut().for_each(|setup| setup.take(event, memory));
        self.deaths.see(event, memory);
        match event {
            Event::Called(call) if call.result >= 0 => {
                let feature = kvm_feature(call.request, &call.data);
                self.features.extend(feature.filter(|feature| !self.features.contains(feature)));
            }
            Event::Stopped(stop) if is_halt(stop) => {
                self.registers.clone_from(&stop.registers);
                let copy = |(at, size): &(u64, usize)| {
                    let mut bytes = vec![0; *size];
                    memory.read(stop.vcpu.vm, stop.process, Gpa(*at), &mut bytes).then_some((*at, bytes))
                };
                self.copies = self.wanted.iter().filter_map(copy).collect();
            }
            _ => {}
        }
    }

    /// The sentence about the death of the guest, or about the registers that KVM refused.
    fn died(&self) -> String {
        // A guest that did not end in its time has not died.
        let has_ended = |death: &&Death| death.kind != DeathKind::Running;
        match self.deaths.iter().find(has_ended) {
            None => String::new(),
            Some(death) if death.is_refusal() => format!("; {}", printable_text(&death.to_string())),
            Some(death) => format!("; its guest died: {}", printable_text(&death.to_string())),
        }
    }
}

fn is_halt(stop: &Stop) -> bool {
    matches!(&stop.cause, StopCause::Exit(record) if record.result >= 0 && record.reason == EXIT_HLT)
}

/// Runs a program. `memory` are the ranges of the guest's memory that checks need.
///
/// # Errors
/// The program cannot be run, the host failed, or the exercise has a mistake.
pub fn run(
    task: &Task,
    file: &Path,
    values: &Values,
    (processor, jail): (Option<Processor>, JailArgs),
    recorded: Recorded,
    memory: &[(u64, usize)],
) -> Result<ObservedRun, Failed> {
    if processor == Some(Processor::Soft) {
        let what = "a VMM of a submission runs on KVM: leave --vcpu out";
        return Err(Failed::Grade(Error::Config(what.into())));
    }
    let settings = &task.settings;
    check_host(Settings {
        processor: Some(Processor::Kvm),
        layout: Layout::default(),
        timeout: Some(settings.timeout),
        wall: None,
    })?;
    let image = image(task, values)?;
    let path = image.as_ref().map(ImageFile::path);
    let args = task.args(values, path).map_err(|error| mistake(task, &error))?.into_iter();
    let args: Vec<_> = args.map(Into::into).collect();
    let input = task.input(values).map_err(|error| mistake(task, &error))?;
    let name = absolute(file).map_err(host("finding the program"))?;
    let of_submission = |error: observe::Error| {
        Failed::Submission(error.to_string().replace(&printable(&name), &printable(file)))
    };
    let program = Program::find(name.as_os_str()).map_err(of_submission)?;
    Choice::Ptrace.check(&program).map_err(of_submission)?;
    let mut engine = Choice::Ptrace.engine(&program).map_err(of_program)?;
    let limit = usize::try_from(settings.output_limit).unwrap_or(usize::MAX);
    let (stdout, out) = Capture::start(limit).map_err(host("capturing the output of the program"))?;
    let (stderr, err) = Capture::start(MOST_ERRORS).map_err(host("capturing the output of the program"))?;
    let stdin = stdin(&input).map_err(|error| mistake(task, &format!("the input of a VMM: {error}")))?;
    let streams = Streams { stdin, stdout: out, stderr: err };
    let options = Options {
        timeout: Some(settings.timeout),
        trace: recorded.trace.then_some(RECORDED),
        stops: Stops { halts: true, first_entry: recorded.setup, ..Stops::default() },
        jail: jail.confinement(true, &program, &[], path.map(|path| Place::new(path, Use::Read))),
        folder: name.parent().map(Path::to_owned),
        ..Options::default()
    };
    let setup = recorded.setup.then(Setup::default);
    let mut seen = Seen { wanted: memory.to_vec(), setup, ..Seen::default() };
    let see = &mut |event: &_, memory: &_| seen.see(event, memory);
    // Without a jail, it has the rights of this process, but cannot read the seed from its memory.
    observe::hide_this_process();
    let observation = observe::observe_captive(&program, &args, options, streams, engine.as_mut(), see);
    let observation = observation.map_err(of_program)?;
    if vmm::host::interrupted() {
        return Err(Error::Interrupted.into());
    }
    let Captured { head, tail, dropped } = stdout.finish();
    let output_len = (head.len() as u64).saturating_add(tail.len() as u64).saturating_add(dropped);
    let (errors, output_limit) = (stderr.finish().text(), settings.output_limit);
    Ok(ObservedRun { observation, seen, output: head, output_len, errors, output_limit })
}

/// The file with the image of the task, if it has one.
///
/// # Errors
/// It cannot be written, or the exercise has a mistake.
fn image(task: &Task, values: &Values) -> Result<Option<ImageFile>, Failed> {
    let Some(image) = &task.image else { return Ok(None) };
    let bytes = image.filled(values).map_err(|error| mistake(task, &error))?;
    ImageFile::write(&bytes).map(Some).map_err(host("writing the image for the program (TMPDIR)"))
}

fn host(operation: &'static str) -> impl Fn(io::Error) -> Failed {
    move |source| Failed::Grade(Error::Host { operation, source })
}

/// The reason why a program cannot be observed: it is wrong, or the host failed.
fn of_program(error: observe::Error) -> Failed {
    match error.program_fault() {
        Some(fault) => Failed::Submission(format!("the program cannot be started: {fault}")),
        None => Failed::Grade(Error::Host {
            operation: "observing the program",
            source: io::Error::other(error.to_string()),
        }),
    }
}

/// The standard input of the program: a pipe that holds all of it.
///
/// # Errors
/// It is too long, or there is no pipe.
fn stdin(input: &[u8]) -> io::Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    if input.len() > MAX_INPUT {
        return Err(io::Error::other(format!("it has {} bytes, and may have at most 64K", input.len())));
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(input)?;
    Ok(reader.into())
}

impl ObservedRun {
    /// The end of the program.
    fn ending(&self) -> RunEnd<'static> {
        let ending = &self.observation.ending;
        let text = ending.to_string();
        match ending {
            _ if self.output_len > self.output_limit => RunEnd::Failed {
                timed_out: false,
                text: format!("it printed {} bytes, which is more than output_limit", self.output_len),
            },
            Ending::Timeout(limit) => RunEnd::Failed {
                timed_out: true,
                text: format!(
                    "timeout: the program did not end within {} s{}",
                    limit.as_secs_f64(),
                    self.observation
                        .hang
                        .as_ref()
                        .map_or_else(String::new, |hang| format!("; at the end it {hang}"))
                ),
            },
            Ending::Ended(status) => match status.code() {
                Some(code) => RunEnd::Status(code),
                None => RunEnd::Failed { timed_out: false, text },
            },
        }
    }

    /// The check that the program has ended by itself.
    pub fn end(&self) -> Check {
        let end = self.ending();
        let text = match &end {
            RunEnd::Failed { text, .. } => text.clone(),
            _ => self.observation.ending.to_string(),
        };
        let errors = match printable_text(&self.errors.trim().replace('\n', "; ")) {
            errors if errors.is_empty() => String::new(),
            errors => format!("; stderr: {errors}"),
        };
        let passed = matches!(end, RunEnd::Status(0));
        let died = if passed { String::new() } else { self.seen.died() };
        let machines = if self.observation.machines == 0 { "; it made no VM (KVM_CREATE_VM)" } else { "" };
        Check {
            passed,
            subject: "the program".into(),
            expected: "must end by itself, with status 0".into(),
            seen: format!("{text}{machines}{died}{errors}"),
            possible: true,
        }
    }

    /// The facts for checks.
    pub fn facts(&self) -> Facts<'_> {
        let sites = self.observation.profile.sites().into_iter();
        let exits = sites.map(|(site, count)| SiteExits { site, device: None, exits: count.exits });
        Facts {
            end: self.ending(),
            output: &self.output,
            output_len: self.output_len,
            registers: self.seen.registers.as_ref().map(|registers| **registers),
            memory: Memory::Copies(self.seen.copies.clone()),
            exits: (self.observation.lost == 0).then(|| exits.collect()),
            devices: Vec::new(),
            simvirtio: None,
            modes: None,
            trace: self.observation.trace.as_ref(),
            features: Some(self.seen.features.clone()),
            setup: self.seen.setup.as_ref().map(Setup::text),
        }
    }
}
