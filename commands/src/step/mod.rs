//! `--step` of `vmm run` and `vmm boot`: a trace of the guest's instructions. All vCPUs are traced, and share the limit.
//!
//! A line is written when its instruction is complete, with the registers that it has changed. The exits that it makes come
//! after it. The machine's own controllers answer them as always: this one only looks.

mod changes;
mod stores;

use crate::file_name::check_inputs;
use crate::names::Names;
use crate::status::Failure;
use crate::streams::print_stderr;
use changes::changes;
use clap::Args;
use debug::Symbols;
use report::OutputFile;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stores::stores;
use vmm::controller::{DebugControl, ExitController, VcpuState};
use vmm::exit::{DebugStop, Exit, Outcome, Stop};
use vmm::lab::{DebugFacilities, probe_debugging};
use vmm::machine::{NextInstruction, Processor, mode_of};
use vmm::x86::{Mode, Regs, Sregs};
use vmm::{Builder, Error, Machine};

/// The number of instructions without a limit of the user's.
const DEFAULT_LIMIT: &str = "10000";
/// The most exits of one instruction that are shown.
const MAX_EXITS: usize = 8;
/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Args)]
pub struct StepArgs {
    /// Write each instruction of the guest to stderr, with the registers and the memory that it changes, at most LIMIT of all
    /// vCPUs; it is slow with KVM [default LIMIT: 10000]
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_LIMIT, conflicts_with_all = ["gdb", "sample"], value_parser = parse_step)]
    step: Option<u64>,

    /// Write the instructions of --step to FILE
    #[arg(long, value_name = "FILE", requires = "step")]
    step_file: Option<PathBuf>,
}

impl StepArgs {
    /// True if the user wants a trace.
    pub fn is_given(&self) -> bool {
        self.step.is_some()
    }

    /// The file of the trace.
    pub fn file(&self) -> Option<&Path> {
        self.step_file.as_deref()
    }
}

/// Parses a number of instructions.
fn parse_step(text: &str) -> Result<u64, String> {
    let limit = crate::args::parse_number(text).ok().filter(|limit| *limit > 0);
    limit.ok_or_else(|| "give a number of instructions, such as --step=100".into())
}

/// A trace of a run.
pub struct Trace(Arc<Mutex<Shared>>);

/// The state of a trace, which the vCPUs share.
struct Shared {
    /// `None` for stderr.
    file: Option<OutputFile>,
    failure: Option<io::Error>,
    symbols: Option<Symbols>,
    /// The facilities of KVM. `None` for the software processor, and before the run.
    facilities: Option<DebugFacilities>,
    limit: u64,
    written: u64,
    /// The vCPU and the function of the last line.
    last: String,
    /// The vCPUs that are traced, with their numbers.
    vcpus: Vec<(u32, Traced)>,
    cpus: usize,
}

/// A vCPU in a trace.
struct Traced {
    next: NextInstruction,
    regs: Regs,
    sregs: Sregs,
    exits: Vec<String>,
    /// The number of exits that are not shown.
    more_exits: u64,
    /// The iterations of a string instruction. 0 for others.
    iterations: u64,
}

impl Traced {
    fn new(vcpu: &mut dyn VcpuState) -> Result<Self, Error> {
        let next = NextInstruction::of(vcpu)?;
        let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
        Ok(Self { next, regs, sregs, exits: Vec::new(), more_exits: 0, iterations: 0 })
    }
}

impl Trace {
    /// Opens the trace that the user asked for, if he did. `inputs` returns the files that the run reads.
    ///
    /// # Errors
    /// The file cannot be written, or is an input.
    pub fn open(
        arguments: &StepArgs,
        inputs: impl FnOnce() -> Vec<PathBuf>,
    ) -> Result<Option<Self>, Failure> {
        let Some(limit) = arguments.step else { return Ok(None) };
        let file = match &arguments.step_file {
            Some(path) => {
                check_inputs("--step-file", path, inputs().iter().map(PathBuf::as_path))?;
                Some(OutputFile::open_within(path, WAIT)?)
            }
            None => None,
        };
        Ok(Some(Self(Arc::new(Mutex::new(Shared {
            file,
            failure: None,
            symbols: None,
            facilities: None,
            limit,
            written: 0,
            last: String::new(),
            vcpus: Vec::new(),
            cpus: 1,
        })))))
    }

    /// Adds the trace to a machine.
    pub fn apply(&self, builder: Builder) -> Builder {
        let shared = self.0.clone();
        builder.controller(move |_| Tracer(shared.clone()))
    }

    /// Prepares the trace of a machine, before it runs.
    ///
    /// # Errors
    /// KVM cannot step on this host in the mode in which the guest starts.
    pub fn begin(&self, machine: &mut Machine, names: Names, bases: &[u64]) -> Result<(), Error> {
        let mut shared = lock(&self.0);
        shared.cpus = machine.vcpu_count();
        if machine.processor() == Processor::Kvm {
            let facilities = probe_debugging(Processor::Kvm)?;
            let sregs = machine.vcpu(0).map(|vcpu| vcpu.sregs()).transpose()?;
            if let Some(mode) = sregs.map(|sregs| mode_of(&sregs)).filter(|mode| !facilities.steps_in(*mode))
            {
                return Err(Error::Config(format!(
                    "--step does not work with KVM on this host in {mode} mode: give --vcpu soft (`vmm doctor` shows what works)"
                )));
            }
            shared.facilities = Some(facilities);
        }
        let memory = machine.memory();
        let ram = memory.ranges().next().map_or(0, |(_, last)| last.0.saturating_add(1));
        shared.symbols = names.symbols(bases, ram, memory);
        Ok(())
    }

    /// Ends the trace, after the run.
    ///
    /// # Errors
    /// It could not be written.
    pub fn finish(self) -> Result<(), Failure> {
        let mut shared = lock(&self.0);
        let mut left = std::mem::take(&mut shared.vcpus);
        vmm::host::sort_by_key(&mut left, |(id, _)| *id);
        for (id, vcpu) in left {
            if !vcpu.exits.is_empty() {
                shared.instruction(id, &vcpu, "");
                shared.exits(&vcpu);
            }
        }
        let count = shared.written;
        shared.line(&format!("{count} instruction{}", if count == 1 { "" } else { "s" }));
        let (file, failure) = (shared.file.take(), shared.failure.take());
        match (file, failure) {
            (Some(file), Some(failure)) => Err(file.failed(failure).into()),
            (Some(file), None) => Ok(file.commit()?),
            (None, _) => Ok(()),
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Writes a line. The first failure is kept, and ends the writing.
    fn line(&mut self, line: &str) {
        let line = format!("{}\n", line.trim_end());
        match &mut self.file {
            None => print_stderr(&line),
            Some(file) if self.failure.is_none() => self.failure = file.write_all(line.as_bytes()).err(),
            Some(_) => {}
        }
    }

    /// Writes an instruction of a vCPU, with what it has changed.
    fn instruction(&mut self, id: u32, vcpu: &Traced, changed: &str) {
        let function = self.symbols.as_ref().and_then(|symbols| symbols.place(vcpu.next.linear));
        let mut heading = function.map_or_else(String::new, |place| place.function().to_string());
        if self.cpus > 1 {
            let separator = if heading.is_empty() { "" } else { ", " };
            heading = format!("vCPU {id}{separator}{heading}");
        }
        if heading != self.last {
            self.line(&format!("{}:", if heading.is_empty() { "no function" } else { &heading }));
            self.last = heading;
        }
        let text = vcpu.next.text.as_deref().unwrap_or("cannot be read");
        let (bytes, text) = text.split_once("  ").unwrap_or(("", text));
        let times = match vcpu.iterations {
            0 => String::new(),
            1 => "once  ".into(),
            times => format!("{times} times  "),
        };
        self.line(&format!("{:>#10x}  {bytes:<23} {text:<32} {times}{changed}", vcpu.next.linear));
        self.written = self.written.saturating_add(1);
    }

    /// Writes the exits of the last instruction.
    fn exits(&mut self, vcpu: &Traced) {
        for exit in &vcpu.exits {
            self.line(&format!("{:>10}  exit: {exit}", ""));
        }
        if vcpu.more_exits > 0 {
            self.line(&format!("{:>10}  and {} more exits", "", vcpu.more_exits));
        }
    }

    /// A vCPU has stopped after an instruction, or halted: writes the instruction, and goes on to the next one.
    ///
    /// # Errors
    /// The kernel refused.
    fn completed(&mut self, id: u32, vcpu: &mut dyn VcpuState) -> Result<(), Error> {
        let now = Traced::new(vcpu)?;
        let Some(mut before) = self.take(id) else { return Ok(()) };
        if before.next.repeats && now.next.linear == before.next.linear && now.regs.rcx != before.regs.rcx {
            self.vcpus.push((id, before));
            return Ok(());
        }
        if before.next.repeats {
            // CX, ECX or RCX.
            let mask = if mode_of(&now.sregs) == Mode::Real { 0xffff } else { u64::MAX };
            before.iterations = before.regs.rcx.wrapping_sub(now.regs.rcx) & mask;
        }
        let mut changed = changes((&before.regs, &before.sregs), (&now.regs, &now.sregs));
        // After an exception, the instruction has stored nothing.
        if !before.next.goes_on || now.next.linear == before.next.following {
            changed += &stores(&before, &vcpu.probe()?);
        }
        self.instruction(id, &before, changed.trim_start());
        self.exits(&before);
        if before.next.goes_on && now.next.linear != before.next.following {
            let what = match before.next.shadows {
                true => "the processor also executed the instruction after it, which is not shown",
                false => "an exception or interrupt",
            };
            self.line(&format!("{:>10}  {what}: it continues at {:#x}", "", now.next.linear));
        }
        self.vcpus.push((id, now));
        Ok(())
    }

    /// A traced vCPU.
    fn vcpu(&mut self, id: u32) -> Option<&mut Traced> {
        self.vcpus.iter_mut().find(|(number, _)| *number == id).map(|(_, vcpu)| vcpu)
    }

    /// Ends the trace of a vCPU.
    fn take(&mut self, id: u32) -> Option<Traced> {
        let place = self.vcpus.iter().position(|(number, _)| *number == id)?;
        Some(self.vcpus.swap_remove(place).1)
    }

    /// The reason why a vCPU is not traced any further, if there is one.
    fn end(&mut self, id: u32) -> Option<String> {
        if self.written >= self.limit {
            let limit = self.limit;
            return Some(format!(
                "the limit of {limit} instructions is reached: the guest goes on without a trace (--step=LIMIT)"
            ));
        }
        let mode = mode_of(&self.vcpu(id)?.sregs);
        self.facilities.filter(|facilities| !facilities.steps_in(mode))?;
        Some(format!(
            "KVM on this host does not step in {mode} mode: the guest goes on without a trace (--vcpu soft shows all of it)"
        ))
    }

    /// Handles a stop or an exit of a traced vCPU.
    ///
    /// # Errors
    /// The kernel refused.
    fn see(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        let id = vcpu.id();
        let is_step = *exit == Exit::Debug(DebugStop::Step);
        let Some(traced) = self.vcpu(id) else {
            return Ok(if is_step { Outcome::Resume } else { Outcome::Unclaimed });
        };
        if !is_step {
            match traced.exits.len() < MAX_EXITS {
                true => traced.exits.push(exit.to_string()),
                false => traced.more_exits = traced.more_exits.saturating_add(1),
            }
        }
        // A HLT is complete at its exit.
        if is_step || *exit == Exit::Hlt {
            self.completed(id, vcpu)?;
        }
        if let Some(end) = self.end(id) {
            self.line(&end);
            self.take(id);
            vcpu.set_debug(&DebugControl::default())?;
        }
        // The guest goes on without a trace, and the end of the run tells of the failure.
        if self.failure.is_some() && self.take(id).is_some() {
            vcpu.set_debug(&DebugControl::default())?;
        }
        Ok(if is_step { Outcome::Resume } else { Outcome::Unclaimed })
    }
}

/// The controller of a traced vCPU.
struct Tracer(Arc<Mutex<Shared>>);

impl ExitController for Tracer {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        lock(&self.0).see(exit, vcpu).unwrap_or_else(Outcome::failed)
    }

    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        let begun = vcpu.set_debug(&DebugControl::step()).and_then(|()| Traced::new(vcpu));
        match begun {
            Ok(traced) => {
                let mut shared = lock(&self.0);
                shared.take(vcpu.id());
                shared.vcpus.push((vcpu.id(), traced));
                ControlFlow::Continue(())
            }
            Err(error) => match Outcome::failed(error) {
                Outcome::Stop(stop) => ControlFlow::Break(stop),
                _ => ControlFlow::Continue(()),
            },
        }
    }
}
