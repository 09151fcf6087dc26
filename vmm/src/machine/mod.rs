//! The machine: a virtual machine with its guest loaded, its runs, and their reports.

// | file | contents |
// |---|---|
// | `builder.rs` | the options of a machine |
// | `bare.rs`, `classic.rs`, `pc.rs`, `assembly.rs` | building a machine for an image, a classic PC, a PC for Linux, and the
// steps in common |
// | `kind.rs` | the kinds of machines for an image |
// | `processors.rs` | the vCPUs: of KVM, or software processors |
// | `session.rs`, `vcpu_run.rs` | one run of the machine, and of each vCPU with its controllers |
// | `turns.rs` | one run with software processors, which take turns |
// | `debug/` | one run under a debugger |
// | `sample/` | one run whose vCPUs are sampled |
// | `watched.rs` | a vCPU that a debugger or a sampler watches |
// | `background.rs`, `linux.rs` | the work that runs while the vCPUs run |
// | `ending.rs` | the decision between several reasons for the end of a run |
// | `doubt.rs` | reasons to doubt that a guest that ended in good order did its work |
// | `examine.rs`, `report.rs`, `totals.rs` | what a run left behind, and its report |
// | `explain.rs` | the explanation of a guest's death |
// | `screen.rs` | the text screen of a classic PC |
// | `restore.rs` | putting a guest back to its start |
// | `firmware.rs`, `trap_vectors.rs` | the BIOS of a boot disk; the vectors that tell a fault without one |
// | `standstill.rs` | the warning about a boot that stands still |
// | `time_sources.rs` | the time sources of the machine for Linux, and the tables that describe them |
// | `boot_progress.rs` | milestones and panics, found in the console text of Linux |
//
// Imports: all other layers except `lab/`.

mod assembly;
mod background;
mod bare;
mod boot_progress;
mod builder;
#[cfg_attr(not(has_kvm), path = "classic/absent.rs")]
mod classic;
#[cfg_attr(not(has_kvm), path = "classic_threads/absent.rs")]
mod classic_threads;
mod core;
pub mod debug;
mod doubt;
mod ending;
mod examine;
mod explain;
mod firmware;
mod kind;
mod linux;
mod missed_window;
#[cfg_attr(not(has_kvm), path = "absent.rs")]
mod pc;
mod processors;
mod report;
mod restore;
mod sample;
mod screen;
mod session;
#[cfg(has_kvm)]
mod standstill;
#[cfg(has_kvm)]
mod time_sources;
mod totals;
mod trap_vectors;
mod turns;
mod vcpu_run;
mod watched;

pub use builder::Builder;
pub use core::{CoreCause, CoreSummary, SparseWrite};
pub use doubt::{Doubt, HaltedVcpu};
pub use explain::{DeadVcpu, DeathKind, Explanation, Frame, NextInstruction, Store, mode_of};
pub use kind::{InputDevice, MachineKind};
pub use linux::{BootReport, ClockKind, ConsoleKind, Linux, MAX_DISKS, OnHalt};
pub use processors::Processor;
pub use report::{Report, Timing, VcpuReport, Verdict};
pub use sample::{MAX_SAMPLE_RATE, SampleBy, SampleReport, Sampling, Unwinder};

pub use crate::console::core_key::CoreKey;
pub use crate::console::screen::Screen;

use crate::boot::{Firmware, Image};
use crate::console::output::Output;
use crate::controller::bios::Bios;
use crate::controller::kev::MmioPrinter;
use crate::controller::msr::MsrPolicy;
use crate::controller::{Devices, ExitController, VcpuState};
use crate::error::Error;
use crate::host::KickTimer;
use crate::memory::GuestMemory;
use crate::profile::clock::Clock;
use crate::x86::modes::Mode;
use background::Background;
use processors::{MachineVcpu, Processors};
use restore::Restore;
use screen::{GuestScreen, RunningScreen};
use session::{Watch, run_machine};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vcpu_run::message;

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
    /// The BIOS of a machine that starts from a boot disk.
    bios: Option<Box<Bios>>,
}

/// A virtual machine with its guest loaded.
///
/// A machine can run more than once. [`run`](Self::run) goes on where the last run stopped: after a HLT, or after a
/// timeout. [`reset`](Self::reset) puts the guest back to its start, and [`load`](Self::load) loads another one; both
/// keep the virtual machine, which is much faster than a new one. Between and after runs the guest's
/// [`memory`](Self::memory) and [registers](Self::vcpu) can be read and changed.
pub struct Machine {
    // Dropped before the memory that they use.
    processors: Processors,
    /// The reason why the machine does not use KVM, if it would by default.
    kvm_error: Option<Error>,
    memory: GuestMemory,
    /// The mode in which the guest starts.
    mode: Mode,
    background: Background,
    /// The text screen of a classic PC.
    screen: Option<GuestScreen>,
    /// `None` for the PC of Linux.
    kind: Option<MachineKind>,
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
    /// The machine answers the calls of a BIOS.
    has_bios: bool,
    timeout: Option<Duration>,
    wall_timeout: Option<Duration>,
    /// The timer for the first vCPU, from the first run on.
    timer: Option<KickTimer>,
    /// The clock that times exits; `None` if they are not counted.
    clock: Option<Clock>,
    /// The number of exits that a trace keeps.
    trace: Option<usize>,
    /// Exits are also counted per address of the guest's code.
    by_address: bool,
    /// The request to sample runs.
    sampling: Option<Sampling>,
    verify: bool,
    /// The guest stores where nothing is, or makes hypercalls that fail, on purpose.
    loses_stores: bool,
    kernel_counters: bool,
    output: Output,
    output_limit: Option<u64>,
    /// The bytes that are at 0x400 before the first run, unless the image covers them.
    result_place: [u8; 8],
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("processors", &self.processors)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Runs the guest until it stops, and reports how. The first vCPU runs on the calling thread. A second run goes on
    /// where the first one stopped; Linux runs only once.
    ///
    /// # Errors
    /// The host failed before the guest ran. A mistake of the guest is not an error, and neither is a failure of the host
    /// after the guest has started ([`Stop::HostFailed`](crate::exit::Stop::HostFailed)): both are in the report.
    pub fn run(&mut self) -> Result<Report, Error> {
        self.run_with(None)
    }

    /// Samples the runs of this machine from now on, except those under a debugger. `None` stops it. The samples are in
    /// the report of a run ([`Report::samples`]).
    pub fn sample(&mut self, sampling: Option<Sampling>) {
        self.sampling = sampling;
    }

    /// Runs the guest like [`run`](Self::run), under a debugger.
    ///
    /// # Errors
    /// As for [`run`](Self::run), or the host has no thread for the debugger.
    pub fn run_debugged(&mut self, debugger: &mut dyn debug::Debugger) -> Result<Report, Error> {
        self.run_with(Some(debugger))
    }

    fn run_with(&mut self, debugger: Option<&mut dyn debug::Debugger>) -> Result<Report, Error> {
        let started = Instant::now();
        let screen = self.screen.as_ref().map(|screen| screen.start(&self.output)).transpose()?;
        let mut sampling = self.sampling.take();
        let watch = match (debugger, &mut sampling) {
            (Some(debugger), _) => Watch::Debugger(debugger),
            (None, Some(sampling)) => Watch::Sampling(sampling),
            (None, None) => Watch::Nothing,
        };
        let result = run_machine(self, watch);
        self.sampling = sampling;
        let screen = screen.and_then(RunningScreen::finish);
        let elapsed = started.elapsed();
        Ok(self.report(result?, screen, elapsed))
    }

    /// The guest's memory, by guest physical address.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The vCPU at `index`, counted from 0: its registers, and the guest's memory as it sees it. `None` past the last vCPU.
    pub fn vcpu(&mut self, index: usize) -> Option<&mut dyn VcpuState> {
        self.processors.get_mut(index).map(|vcpu| vcpu as &mut dyn VcpuState)
    }

    /// The kind of the machine. `None` for the PC of Linux.
    pub fn kind(&self) -> Option<MachineKind> {
        self.kind
    }

    /// The kind of processor that runs the guest.
    pub fn processor(&self) -> Processor {
        self.processors.kind()
    }

    /// The reason why KVM does not run the guest, if it is not usable on this host and no kind of processor was requested
    /// ([`Builder::processor`]).
    pub fn kvm_error(&self) -> Option<&Error> {
        self.kvm_error.as_ref()
    }

    /// The number of vCPUs.
    pub fn vcpu_count(&self) -> usize {
        self.processors.len()
    }

    /// The frequency of the guest's time-stamp counter, in kHz; `None` if KVM does not know it, and without KVM.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        self.processors.tsc_khz()
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
    /// The guest is Linux, or the machine is a classic PC, neither of which can be reset; or the host failed.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.background.check_reset()?;
        let restore = self.restore.as_mut().ok_or_else(linux_is_not_reset)?;
        // An instruction that is completed may write to memory.
        self.processors.iter_mut().try_for_each(MachineVcpu::complete_access)?;
        let vm = self.processors.vm();
        restore.memory(vm, &self.memory)?;
        vm.map_or(Ok(()), |vm| restore.irqchip(vm))?;
        self.background.reset();
        self.devices.reset();
        let printers = self.controllers.iter_mut().filter_map(|controllers| controllers.printer.as_mut());
        printers.for_each(MmioPrinter::reset);
        self.processors.iter_mut().try_for_each(MachineVcpu::restore)
    }

    /// Loads another guest into the machine, and puts the machine back to its start.
    ///
    /// # Errors
    /// The image does not fit into the memory of this machine, needs the page tables that a machine for a real-mode guest
    /// does not have, or covers the result that is verified. The guest is then as it was. Or: the guest is Linux, or the
    /// machine is a classic PC, or the host failed.
    pub fn load(&mut self, image: Image) -> Result<(), Error> {
        self.background.check_reset()?;
        let restore = self.restore.as_mut().ok_or_else(linux_is_not_reset)?;
        if image.loads_itself() {
            return Err(Error::Config(
                "a boot disk or a ROM has a machine of its own: build a new one for it".into(),
            ));
        }
        let image = bare::prepared(image, self.ram, self.verify, &Firmware::NONE)?;
        let tables = bare::tables(&image);
        if let Some((start, _)) = tables.iter().find(|(start, _)| !self.memory.contains(*start, 1)) {
            return Err(Error::Config(format!(
                "the machine was built for a real-mode guest, and has no tables at {:#x} for a guest that starts in {} mode: \
                 build a new machine for it",
                start.0,
                image.mode()
            )));
        }
        // An instruction that is completed later would use the registers of the new guest.
        self.processors.iter_mut().try_for_each(MachineVcpu::complete_access)?;
        bare::set_registers(&mut self.processors, &image)?;
        self.mode = image.mode();
        self.image = image.ranges().into();
        restore.load(image, tables);
        self.reset()
    }
}

fn linux_is_not_reset() -> Error {
    Error::Config("a Linux machine cannot be reset: build a new machine".into())
}
