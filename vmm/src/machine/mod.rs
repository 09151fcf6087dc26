//! The machine: a virtual machine with its guest loaded, its runs, and their reports.
//!
//! | file | contents |
//! |---|---|
//! | `builder.rs` | the options of a machine |
//! | `bare.rs`, `pc.rs`, `assembly.rs` | building a machine for an image, for Linux, and the steps in common |
//! | `session.rs` | one run: the vCPUs with their controllers |
//! | `background.rs`, `linux.rs` | the work that runs while the vCPUs run |
//! | `ending.rs` | the decision between several reasons for the end of a run |
//! | `doubt.rs` | reasons to doubt that a guest that ended in good order did its work |
//! | `report.rs`, `totals.rs`, `explain.rs` | the report of a run, and the explanation of a guest's death |
//! | `restore.rs` | putting a guest back to its start |
//! | `boot_progress.rs` | milestones and panics, found in the console text of Linux |
//!
//! Imports: all other layers except `lab/`.

mod assembly;
mod background;
mod bare;
mod boot_progress;
mod builder;
mod doubt;
mod ending;
mod explain;
mod linux;
mod pc;
mod report;
mod restore;
mod session;
mod totals;

pub use builder::Builder;
pub use doubt::Doubt;
pub use explain::Explanation;
pub use linux::{BootReport, ConsoleKind, Linux, MAX_DISKS};
pub use report::{Report, Timing, VcpuReport, Verdict};

use crate::boot::Image;
use crate::console::output::Output;
use crate::controller::kev::MmioPrinter;
use crate::controller::msr::MsrPolicy;
use crate::controller::vcpu::Location;
use crate::controller::{Devices, ExitController, VcpuState};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::KickTimer;
use crate::kvm::vcpu::KvmVcpu;
use crate::kvm::vm::Vm;
use crate::memory::{Gpa, GuestMemory};
use crate::profile::clock::Clock;
use crate::profile::recorder::LAST;
use crate::profile::trace::Trace;
use crate::x86::modes::Mode;
use background::Background;
use explain::{Scene, suspicion_without_state};
use restore::Restore;
use session::{RunResult, message, run_machine};
use simvirtio::abi;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use totals::Totals;

/// A controller that the caller added, for one vCPU.
type BoxedController = Box<dyn ExitController + Send>;

/// The caller's controllers for one vCPU.
#[derive(Default)]
struct CallersControllers(Vec<BoxedController>);

/// A controller that panics when it is dropped does not take the program with it.
impl Drop for CallersControllers {
    fn drop(&mut self) {
        for controller in self.0.drain(..) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(controller))) {
                log::error!("an exit controller panicked when it was dropped: {}", message(&*panic));
            }
        }
    }
}

/// The controllers of one vCPU that keep their state from run to run.
struct VcpuControllers {
    callers: CallersControllers,
    /// `None` without KeV's devices.
    printer: Option<MmioPrinter>,
}

/// A virtual machine with its guest loaded.
///
/// A machine can run more than once. [`run`](Self::run) goes on where the last run stopped: after a HLT, or after a
/// timeout. [`reset`](Self::reset) puts the guest back to its start, and [`load`](Self::load) loads another one; both
/// keep the virtual machine, which is much faster than a new one. Between and after runs the guest's
/// [`memory`](Self::memory) and [registers](Self::vcpu) can be read and changed.
pub struct Machine {
    // The vCPUs and the VM are dropped before the memory that they use.
    vcpus: Vec<KvmVcpu>,
    vm: Vm,
    memory: GuestMemory,
    /// The mode in which the guest starts.
    mode: Mode,
    background: Background,
    /// The size of RAM, in bytes.
    ram: u64,
    /// The addresses of the image, a range for each segment.
    image: Arc<[Range<u64>]>,
    /// `None` for Linux, which cannot be reset.
    restore: Option<Restore>,
    devices: Arc<Devices>,
    /// For each vCPU.
    controllers: Vec<VcpuControllers>,
    msrs: Arc<MsrPolicy>,
    kev: bool,
    timeout: Option<Duration>,
    /// The timer for the first vCPU, from the first run on.
    timer: Option<KickTimer>,
    /// The clock that times exits; `None` if they are not counted.
    clock: Option<Clock>,
    /// The number of exits that a trace keeps.
    trace: Option<usize>,
    verify: bool,
    /// The guest stores where nothing is, on purpose.
    loses_stores: bool,
    kernel_counters: bool,
    output: Output,
    output_limit: Option<u64>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.vcpus)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Runs the guest until it stops, and reports how. The first vCPU runs on the calling thread. A second run goes on
    /// where the first one stopped; Linux runs only once.
    ///
    /// # Errors
    /// The host failed. A mistake of the guest is not an error: it is in the report.
    pub fn run(&mut self) -> Result<Report, Error> {
        let started = Instant::now();
        let result = run_machine(self)?;
        let elapsed = started.elapsed();
        self.report(result, elapsed)
    }

    /// The guest's memory, by guest physical address.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The vCPU at `index`, counted from 0: its registers, and the guest's memory as it sees it. `None` past the last vCPU.
    pub fn vcpu(&mut self, index: usize) -> Option<&mut dyn VcpuState> {
        self.vcpus.get_mut(index).map(|vcpu| vcpu as &mut dyn VcpuState)
    }

    /// The number of vCPUs.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// The frequency of the guest's time-stamp counter, in kHz; `None` if KVM does not know it.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        self.vcpus.first().and_then(KvmVcpu::tsc_khz)
    }

    /// Puts the guest back to its start: its memory, the registers of its vCPUs and the machine's devices are as they
    /// were before the first run. Only memory that has changed is restored.
    ///
    /// Input that was read is not read again, and text that was written stays. The caller's own devices are reset by
    /// [`Device::reset`](crate::device::Device::reset); controllers keep their state. Model-specific registers
    /// without a reset value that holds on every host, such as IA32_MISC_ENABLE and performance counters, keep the value
    /// that the guest has set. So does the time-stamp counter; without [`Builder::cpuid`], so does IA32_TSC_ADJUST.
    ///
    /// # Errors
    /// The guest is Linux, which cannot be reset, or the host failed.
    pub fn reset(&mut self) -> Result<(), Error> {
        let restore = self.restore.as_mut().ok_or_else(linux_is_not_reset)?;
        // An instruction that is completed may write to memory.
        self.vcpus.iter_mut().try_for_each(KvmVcpu::complete_access)?;
        restore.memory(&self.vm, &self.memory)?;
        restore.irqchip(&self.vm)?;
        self.background.reset();
        self.devices.reset();
        let printers = self.controllers.iter_mut().filter_map(|controllers| controllers.printer.as_mut());
        printers.for_each(MmioPrinter::reset);
        self.vcpus.iter_mut().try_for_each(KvmVcpu::restore)
    }

    /// Loads another guest into the machine, and puts the machine back to its start.
    ///
    /// # Errors
    /// The image does not fit into the memory of this machine, needs the page tables that a machine for a real-mode guest
    /// does not have, or covers the result that is verified. The guest is then as it was. Or: the guest is Linux, or the
    /// host failed.
    pub fn load(&mut self, image: Image) -> Result<(), Error> {
        let restore = self.restore.as_mut().ok_or_else(linux_is_not_reset)?;
        bare::check_image(&image, self.ram, self.verify)?;
        let tables = bare::tables(image.mode());
        if let Some((start, _)) = tables.iter().find(|(start, _)| !self.memory.contains(*start, 1)) {
            return Err(Error::Config(format!(
                "the machine was built for a real-mode guest, and has no tables at {:#x} for a guest that starts in {} mode: \
                 build a new machine for it",
                start.0,
                image.mode()
            )));
        }
        // An instruction that is completed later would use the registers of the new guest.
        self.vcpus.iter_mut().try_for_each(KvmVcpu::complete_access)?;
        bare::set_registers(&mut self.vcpus, &image)?;
        self.mode = image.mode();
        self.image = image.ranges().into();
        restore.load(image, tables);
        self.reset()
    }

    fn report(&mut self, result: RunResult, elapsed: Duration) -> Result<Report, Error> {
        let RunResult { stop, vcpus, stopped_by, side } = result;
        let verdict = match stop {
            Stop::Halted | Stop::Exited(0) if self.verify => Some(self.verdict()?),
            _ => None,
        };
        let (location, explanation) = self.explain(&stop, stopped_by)?;
        let several = vcpus.len() > 1;
        let last = vcpus.get(stopped_by).and_then(|(_, result)| result.recording.as_ref());
        let last: Vec<_> =
            last.iter().flat_map(|recording| recording.last.iter().rev().take(LAST).rev().copied()).collect();
        let is_lost = location == Some(Location::Reset);
        let image = self.restore.as_ref().map(Restore::image).filter(|_| is_lost);
        let lost_suspicion = image.and_then(|image| suspicion_without_state(image, &last));
        let mut totals = Totals::new(self.trace.map(Trace::new));
        let stops: Vec<_> = vcpus.iter().map(|(stop, _)| stop.clone()).collect();
        let mut reports = Vec::new();
        for (vcpu, (stop, result)) in self.vcpus.iter_mut().zip(vcpus) {
            let kernel = self.kernel_counters.then(|| vcpu.counters().ok()).flatten();
            if several {
                let location = if stop.parks() { None } else { Some(vcpu.location(has_shut_down(&stop))?) };
                let profile = result.recording.as_ref().map(|recording| recording.profile.clone());
                reports.push(VcpuReport {
                    id: vcpu.number(),
                    stop,
                    location,
                    profile,
                    kernel: kernel.clone(),
                });
            }
            totals.add(vcpu.number(), result, kernel);
        }
        let stopped_by = self.vcpus.get(stopped_by).filter(|_| several).map(KvmVcpu::number);
        let doubts =
            self.doubts(&stop, &stops, &totals.open_bus, totals.profile.as_ref(), side.simvirtio.as_ref())?;
        Ok(Report {
            stop,
            stopped_by,
            location,
            explanation,
            verdict,
            doubts,
            elapsed,
            simvirtio: side.simvirtio,
            boot: side.boot,
            timing: self.clock.map(|clock| totals.timing(clock)),
            last_exits: last,
            lost_suspicion,
            kernel: totals.kernel(),
            profile: totals.profile,
            trace: totals.trace,
            open_bus: totals.open_bus,
            vcpus: reports,
            ram: self.ram,
            image: self.image.clone(),
            devices: self.devices.clone(),
            kev: self.kev,
            msrs: self.msrs.clone(),
        })
    }

    /// The location of the vCPU that stopped the machine, and the explanation of its death.
    fn explain(
        &mut self,
        stop: &Stop,
        stopped_by: usize,
    ) -> Result<(Option<Location>, Option<Explanation>), Error> {
        let orderly =
            stop.is_orderly() || matches!(stop, Stop::OutputFailed(_) | Stop::InputFailed(_) | Stop::Quit);
        let Some(vcpu) = self.vcpus.get_mut(stopped_by).filter(|_| !orderly) else { return Ok((None, None)) };
        let location = vcpu.location(has_shut_down(stop))?;
        let start = vcpu.start_of_stack().filter(|_| self.restore.is_some());
        let scene = Scene {
            image: self.restore.as_ref().map(Restore::image),
            stack_top: start.map(|(_, pointer)| pointer),
            stack_base: start.map(|(base, _)| base),
            has_window: matches!(
                self.background,
                Background::TrappedWindow(..) | Background::SharedWindow(_)
            ),
            died: matches!(stop, Stop::TripleFault | Stop::EmulationFailure(_)),
        };
        let explanation = match stop {
            Stop::Interrupted | Stop::ProtocolError(_) | Stop::OutputLimit(_) | Stop::ControllerFailed(_) => {
                None
            }
            _ => Explanation::new(location, vcpu.regs()?, vcpu.sregs()?, &self.memory, &scene),
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

/// True if the processor has shut down. Some hosts reset it then.
fn has_shut_down(stop: &Stop) -> bool {
    matches!(stop, Stop::TripleFault)
}

fn linux_is_not_reset() -> Error {
    Error::Config("a Linux machine cannot be reset: build a new machine".into())
}
