//! The machine: a virtual machine with its guest loaded, run and judged.

mod bare;
pub(crate) mod boot_progress;
pub(crate) mod builder;
pub(crate) mod explain;
pub(crate) mod linux;
mod pc;
pub(crate) mod report;

pub use builder::Builder;
pub use explain::Explanation;
pub use linux::{BootReport, ConsoleKind, Linux, MAX_DISKS};
pub use report::{Report, Timing, VcpuReport, Verdict};

use crate::console::output::Output;
use crate::controller::hypercall::Hypercalls;
use crate::controller::kev::MmioPrinter;
use crate::controller::msr::{MsrForwarder, MsrPolicy};
use crate::controller::{Devices, ExitController, OpenBus, TerminalExits, VcpuState, Watchdog};
use crate::device::simvirtio::doorbell::Doorbell;
use crate::device::simvirtio::poller::Poller;
use crate::device::simvirtio::{Simvirtio, SimvirtioReport, Transport, Window};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{self, KickTimer, Kicker};
use crate::kvm::counters::KvmCounters;
use crate::kvm::vcpu::KvmVcpu;
use crate::machine::linux::Pc;
use crate::memory::{Gpa, GuestMemory};
use crate::profile::Profile;
use crate::profile::clock::Clock;
use crate::profile::recorder::{LAST, Recorder, Recording};
use crate::profile::timeline::{Event, Timeline};
use crate::profile::trace::Trace;
use crate::run;
use crate::run::vcpu_threads::{VcpuResults, VcpuThreads};
use crate::shutdown::Deadline;
use crate::x86::modes::Mode;
use kvm_ioctls::VmFd;
use simvirtio::abi;
use std::any::Any;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// A controller of the caller's, for one vCPU.
pub(crate) type BoxedController = Box<dyn ExitController + Send>;

/// What a machine has beside its vCPUs and the devices of the buses.
pub(crate) enum Background {
    /// SIMVIRTIO's device behind the trapped window, shared with the bus.
    TrappedWindow(Transport, Arc<Mutex<Window>>),
    /// SIMVIRTIO's device over shared RAM, for a thread that polls, or sleeps until the driver rings.
    SharedWindow(Box<Simvirtio<GuestMemory>>, Option<Arc<Doorbell>>),
    /// The threads of a PC.
    Pc(Pc),
}

/// A virtual machine with its guest loaded.
pub struct Machine {
    // Dropped first, before the memory that they use.
    pub(crate) vcpus: Vec<KvmVcpu>,
    pub(crate) _vm: VmFd,
    pub(crate) memory: GuestMemory,
    pub(crate) mode: Mode,
    pub(crate) background: Option<Background>,
    pub(crate) ram: u64,
    pub(crate) image: Vec<Range<u64>>,
    pub(crate) devices: Devices,
    /// The caller's, for each vCPU.
    pub(crate) controllers: Vec<Vec<BoxedController>>,
    pub(crate) msrs: MsrPolicy,
    pub(crate) kev: bool,
    pub(crate) timeout: Option<Duration>,
    /// By what exits are timed, where they are counted.
    pub(crate) clock: Option<Clock>,
    /// How many of the last exits the report has.
    pub(crate) trace: Option<usize>,
    pub(crate) verify: bool,
    pub(crate) kernel_counters: bool,
    pub(crate) output: Output,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.vcpus)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What one vCPU has to show.
#[derive(Default)]
struct VcpuResult {
    recording: Option<Recording>,
    open_bus: OpenBus,
}

/// What came of a run: how it ended, what each vCPU has to show, and which one ended it.
struct RunResult {
    stop: Stop,
    vcpus: Vec<(Stop, VcpuResult)>,
    stopped_by: usize,
    beside: SideResult,
}

/// What came of what ran beside the vCPUs.
#[derive(Default)]
struct SideResult {
    /// Why the machine was ended from there, if it was.
    stop: Option<Stop>,
    simvirtio: Option<SimvirtioReport>,
    boot: Option<BootReport>,
}

/// What the vCPUs of a machine have to show together.
#[derive(Default)]
struct Totals {
    profile: Option<Profile>,
    cost: u64,
    steps: u64,
    trace: Option<Trace>,
    open_bus: OpenBus,
    kernel: Option<KvmCounters>,
    /// KVM did not tell of one of them.
    uncounted: bool,
}

impl Totals {
    fn add(&mut self, id: u32, done: VcpuResult, kernel: Option<KvmCounters>) {
        self.open_bus.absorb(&done.open_bus);
        match kernel {
            Some(counters) => self.kernel.get_or_insert_default().absorb(&counters),
            None => self.uncounted = true,
        }
        let Some(recording) = done.recording else { return };
        self.cost = self.cost.saturating_add(recording.cost);
        self.steps = self.steps.saturating_add(recording.steps);
        self.trace.iter_mut().for_each(|trace| trace.add(id, &recording));
        match &mut self.profile {
            Some(all) => all.absorb(&recording.profile),
            all => *all = Some(recording.profile),
        }
    }
}

/// What the vCPUs of a machine share.
struct RunContext<'a> {
    devices: &'a Devices,
    msrs: &'a MsrPolicy,
    output: &'a Output,
    kev: bool,
    timeout: Option<Duration>,
    deadline: Deadline,
    timeline: Option<Arc<Timeline>>,
    /// By what exits are timed, and its reading when the run began.
    clock: Option<(Clock, u64)>,
    /// How many of the last exits somebody wants.
    trace: Option<usize>,
}

impl RunContext<'_> {
    /// Kicks the calling thread when the time is up.
    fn timer(&self) -> Result<Option<KickTimer>, Error> {
        self.timeout.map(KickTimer::start).transpose().map_err(Error::host("starting the watchdog"))
    }

    /// Runs one vCPU to its end, on the calling thread, whose kicks are handled.
    fn run(
        &self,
        vcpu: &mut KvmVcpu,
        controllers: Vec<BoxedController>,
    ) -> Result<(Stop, VcpuResult), Error> {
        let recorder = |(clock, origin)| Recorder::new(clock, origin, self.trace, self.timeline.clone());
        let mut recorder = self.clock.map(recorder);
        let mut open_bus = OpenBus::default();
        let run = || {
            let watchdog = Watchdog { deadline: self.deadline.clone() };
            // A PC has none: its kernel would not know of them.
            let hypercalls = self.timeline.is_none().then(|| Hypercalls::new(self.output.clone()));
            let printer = self.kev.then(|| MmioPrinter::new(self.output.clone()));
            let last = (self.devices, (MsrForwarder(self.msrs), (TerminalExits, &mut open_bus)));
            let mut chain = (watchdog, (controllers, (hypercalls, (self.msrs, (printer, last)))));
            run::run(vcpu, &mut chain, recorder.as_mut())
        };
        // What a controller leaves behind when it panics is not looked at again: the machine ends. Nor may one
        // panic when it is dropped.
        let stop = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(stop) => stop?,
            Err(panic) => Stop::failed(format!("it panicked: {}", message(&*panic))),
        };
        Ok((stop, VcpuResult { recording: recorder.map(Recorder::finish), open_bus }))
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("nothing")
}

/// How a machine ended whose vCPUs all have parked: with the first code that is not zero.
fn parked(vcpus: &[(Stop, VcpuResult)]) -> Stop {
    let code = vcpus.iter().find_map(|(stop, _)| match stop {
        Stop::CpuExited(code) if *code != 0 => Some(Stop::Exited(*code)),
        _ => None,
    });
    code.unwrap_or(match vcpus.first() {
        Some((Stop::CpuExited(code), _)) => Stop::Exited(*code),
        _ => Stop::Halted,
    })
}

impl Machine {
    /// Runs the guest to its end, and judges it. The first vCPU runs on the calling thread.
    ///
    /// # Errors
    /// The host failed. What the guest does wrong is in the report.
    pub fn run(mut self) -> Result<Report, Error> {
        let started = Instant::now();
        let RunResult { stop, vcpus, stopped_by, beside } = self.run_vcpus()?;
        let elapsed = started.elapsed();
        let verdict = match stop {
            Stop::Halted | Stop::Exited(0) if self.verify => Some(self.verdict()?),
            _ => None,
        };
        let (location, explanation) = self.explain(&stop, stopped_by)?;
        let several = vcpus.len() > 1;
        let last = vcpus.get(stopped_by).and_then(|(_, done)| done.recording.as_ref());
        let last = last.map(|recording| recording.last.iter().rev().take(LAST).rev().copied().collect());
        let mut all = Totals { trace: self.trace.map(Trace::new), ..Default::default() };
        let mut reports = Vec::new();
        for (vcpu, (stop, done)) in self.vcpus.iter_mut().zip(vcpus) {
            let kernel = self.kernel_counters.then(|| vcpu.counters().ok()).flatten();
            if several {
                let location = if stop.parks() { None } else { Some(vcpu.location(is_shutdown(&stop))?) };
                let profile = done.recording.as_ref().map(|recording| recording.profile.clone());
                reports.push(VcpuReport { id: vcpu.id(), stop, location, profile, kernel: kernel.clone() });
            }
            all.add(vcpu.id(), done, kernel);
        }
        let stopped_by = self.vcpus.get(stopped_by).filter(|_| several).map(VcpuState::id);
        Ok(Report {
            stop,
            stopped_by,
            location,
            explanation,
            verdict,
            elapsed,
            simvirtio: beside.simvirtio,
            boot: beside.boot,
            profile: all.profile,
            measured: self.clock.map(|clock| Timing { clock, cost: all.cost, steps: all.steps }),
            last: last.unwrap_or_default(),
            trace: all.trace,
            open_bus: all.open_bus,
            vcpus: reports,
            kernel: all.kernel.filter(|_| !all.uncounted),
            ram: self.ram,
            image: self.image,
            devices: self.devices,
            kev: self.kev,
            msrs: self.msrs,
        })
    }

    /// The run itself. Whatever ends it, the text that still waits is handed on, also within the time.
    fn run_vcpus(&mut self) -> Result<RunResult, Error> {
        let Self { vcpus, controllers, devices, msrs, timeout, background, output, .. } = self;
        let output = &*output;
        let deadline = Deadline::after(*timeout);
        output.set_deadline(deadline.clone());
        let shared = RunContext {
            devices,
            msrs,
            output,
            kev: self.kev,
            timeout: *timeout,
            deadline: deadline.clone(),
            clock: self.clock.map(|clock| (clock, clock.now())),
            trace: self.trace,
            timeline: match background {
                Some(Background::Pc(pc)) => Some(pc.timeline.clone()),
                _ => None,
            },
        };
        let team = Arc::new(VcpuThreads::new(vcpus.len(), deadline.clone()));
        let Some((first, others)) = vcpus.split_first_mut() else {
            return Err(Error::Config("a machine without a vCPU cannot run".into()));
        };
        let mut controllers = std::mem::take(controllers).into_iter();
        let for_first = controllers.next().unwrap_or_default();
        first.with_kicks(|first, kicker: Kicker| {
            let _timer = shared.timer()?;
            team.enter(0, kicker);
            let run = || {
                let others = others.iter_mut().zip(controllers.chain(std::iter::repeat_with(Vec::new)));
                team.run(
                    others,
                    || shared.run(first, for_first),
                    |vcpu, own| {
                        let _timer = shared.timer()?;
                        shared.run(vcpu, own)
                    },
                )
            };
            let mark = |event| shared.timeline.iter().for_each(|timeline| timeline.mark(event));
            let (VcpuResults { vcpus, stopped_by }, beside) = match background.take() {
                None => (run()?, SideResult::default()),
                // The device has acted on each store: nothing is left in the queue.
                Some(Background::TrappedWindow(transport, window)) => {
                    let lock = || window.lock().unwrap_or_else(PoisonError::into_inner);
                    lock().set_deadline(deadline);
                    let ran = run()?;
                    let report = lock().simvirtio().report(transport);
                    (ran, SideResult { simvirtio: Some(report), ..Default::default() })
                }
                // Here something may be, and a protocol error in it outranks what the vCPUs stopped for.
                Some(Background::SharedWindow(simvirtio, doorbell)) => {
                    let transport = doorbell.as_ref().map_or(Transport::Polling, |_| Transport::Doorbell);
                    let poller = Poller::start(*simvirtio, doorbell, team.clone(), deadline.clone())?;
                    let ran = run()?;
                    let ended = poller.finish(&deadline)?;
                    let report = ended.simvirtio.report(transport);
                    let (rings, thread_time) = (ended.rings, Some(ended.thread_time));
                    let simvirtio = Some(SimvirtioReport { rings, thread_time, ..report });
                    (ran, SideResult { stop: ended.stop, simvirtio, boot: None })
                }
                Some(Background::Pc(pc)) => {
                    let running = pc.start(deadline.clone(), team.clone())?;
                    mark(Event::FirstInstruction);
                    let ran = run()?;
                    mark(Event::End);
                    let (stop, boot) = running.finish(&deadline);
                    (ran, SideResult { stop, simvirtio: None, boot: Some(boot) })
                }
            };
            let stop = stopped_by.and_then(|stopped_by| vcpus.get(stopped_by)).map(|(stop, _)| stop.clone());
            let stop = match (&beside.stop, stop) {
                // That one was stopped with the other is no reason of its own.
                (Some(Stop::Interrupted), Some(stop)) => stop,
                (Some(Stop::Timeout), Some(stop)) if !matches!(stop, Stop::Interrupted) => stop,
                (Some(beside), _) => beside.clone(),
                (None, Some(stop)) => stop,
                (None, None) => parked(&vcpus),
            };
            // A kernel that panics resets the machine.
            let stop = match (stop, beside.boot.as_ref().and_then(|boot| boot.panic.clone())) {
                (Stop::Rebooted, Some(reason)) => Stop::Panicked(reason),
                (stop, _) => stop,
            };
            let stop = match (output.clone().finish(), stop) {
                // The guest ended in time: it is the reader who did not.
                (ControlFlow::Break(Stop::Timeout | Stop::Interrupted), stop)
                    if stop.is_orderly() && !host::interrupted() =>
                {
                    let why = "nobody took it before the time was up";
                    Stop::OutputFailed(Arc::new(io::Error::new(io::ErrorKind::TimedOut, why)))
                }
                (ControlFlow::Break(failed), stop) if stop.is_orderly() => failed,
                (_, stop) => stop,
            };
            Ok(RunResult { stop, vcpus, stopped_by: stopped_by.unwrap_or(0), beside })
        })?
    }

    /// Where the vCPU that ended the machine was, and why it died, where it did.
    fn explain(
        &mut self,
        stop: &Stop,
        stopped_by: usize,
    ) -> Result<(Option<crate::controller::vcpu::Location>, Option<Explanation>), Error> {
        let orderly =
            stop.is_orderly() || matches!(stop, Stop::OutputFailed(_) | Stop::InputFailed(_) | Stop::Quit);
        let Some(vcpu) = self.vcpus.get_mut(stopped_by).filter(|_| !orderly) else { return Ok((None, None)) };
        let location = vcpu.location(is_shutdown(stop))?;
        let explanation = match stop {
            Stop::Interrupted | Stop::ProtocolError(_) | Stop::OutputLimit(_) | Stop::ControllerFailed(_) => {
                None
            }
            _ => Explanation::new(location, vcpu.regs()?, vcpu.sregs()?, &self.memory),
        };
        Ok((Some(location), explanation))
    }

    fn verdict(&mut self) -> Result<Verdict, Error> {
        let mut memory = [0; 8];
        self.memory.read(Gpa(abi::RESULT), &mut memory);
        let rax = match self.vcpus.first_mut() {
            Some(vcpu) => vcpu.regs()?.rax,
            None => 0,
        };
        Ok(Verdict::new(self.mode, rax, u64::from_le_bytes(memory)))
    }
}

/// Whether the CPU shut down, after which some hosts reset it.
fn is_shutdown(stop: &Stop) -> bool {
    matches!(stop, Stop::TripleFault)
}
