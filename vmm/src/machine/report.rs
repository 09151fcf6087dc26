//! The report of a run: the reason why it ended, the verdict, the exits.

use crate::console::screen::Screen;
use crate::controller::bios;
use crate::controller::kev::{MmioPrinter, PRINTER, PRINTER_SIZE};
use crate::controller::msr::MsrPolicy;
use crate::controller::vcpu::Location;
use crate::controller::{Devices, OpenBus, hypercall};
use crate::device::Layout;
use crate::device::bus::DeviceName;
use crate::device::simvirtio::SimvirtioReport;
use crate::error::Error;
use crate::exit::{Reason, Site, Stop};
use crate::host::sort_by;
use crate::kvm::counters::KvmCounters;
use crate::machine::doubt::Doubt;
use crate::machine::explain::Explanation;
use crate::machine::linux::BootReport;
use crate::machine::processors::Processor;
use crate::machine::sample::SampleReport;
use crate::profile::Profile;
use crate::profile::clock::Clock;
use crate::profile::recorder::TracedExit;
use crate::profile::trace::Trace;
use crate::x86::modes::Mode;
use simvirtio::abi;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The result that a verified guest leaves: a register and the word at 0x400, both of which should be 42.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    mode: Mode,
    /// The value of the result register: AX, EAX or RAX, by the mode in which the guest started.
    pub register: u64,
    /// The value at 0x400: a word of 2 bytes in real mode, of 4 bytes in the other modes.
    pub memory: u64,
}

impl Verdict {
    pub(crate) fn new(mode: Mode, rax: u64, memory: u64) -> Self {
        let (register, memory) = match mode {
            Mode::Real => (rax & 0xffff, memory & 0xffff),
            Mode::Protected => (rax & 0xffff_ffff, memory & 0xffff_ffff),
            Mode::Long | Mode::User => (rax, memory & 0xffff_ffff),
        };
        Self { mode, register, memory }
    }

    /// True if both values are 42.
    pub fn passed(&self) -> bool {
        self.register == abi::RESULT_VALUE && self.memory == abi::RESULT_VALUE
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.mode {
            Mode::Real => "AX",
            Mode::Protected => "EAX",
            Mode::Long | Mode::User => "RAX",
        };
        write!(f, "{name} = {}, [0x400] = {}", self.register, self.memory)
    }
}

/// The report of one vCPU, in a machine with several vCPUs.
#[derive(Clone, Debug)]
pub struct VcpuReport {
    /// The number of the vCPU, as KVM and the guest (its APIC ID) see it.
    pub id: u32,
    /// The reason why this vCPU stopped. [`Stop::Interrupted`] if another vCPU, or another part of the machine, stopped
    /// the machine.
    pub stop: Stop,
    /// The location of the vCPU in its guest. `None` if the vCPU stopped by itself (see [`Stop::parks`]).
    pub location: Option<Location>,
    /// The exits of this vCPU. `None` if exits were not counted.
    pub profile: Option<Profile>,
    /// KVM's own counters for this vCPU. `None` if they were not requested, or if KVM does not have them (before
    /// Linux 5.14).
    pub kernel: Option<KvmCounters>,
}

/// The clock that timed the exits, and the cost of the measurement.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The clock.
    pub clock: Clock,
    /// The cost of counting, timing and recording the exits, in nanoseconds: the sum over all vCPUs.
    pub cost: u64,
    /// The number of times that the clock went backwards. The affected times count as 0.
    pub steps: u64,
}

/// The report of a run: the reason why it ended, the exits, and the result.
#[derive(Debug)]
pub struct Report {
    /// The reason why the run ended.
    pub stop: Stop,
    /// The kind of processor that ran the guest.
    pub processor: Processor,
    /// The number of the vCPU that stopped the machine. [`location`](Self::location) and
    /// [`explanation`](Self::explanation) are about this vCPU. If each vCPU stopped by itself, it is the first one. `None`
    /// if the machine has one vCPU.
    pub stopped_by: Option<u32>,
    /// The location of the vCPU in its guest when the run ended. `None` after an orderly end (see
    /// [`Stop::is_orderly`]), a failure of the output or the input, or Ctrl-A x at the console.
    pub location: Option<Location>,
    /// The state of the guest when the run ended, and the probable cause of a fault. `None` if
    /// [`location`](Self::location) is `None`, [`Location::Reset`] or [`Location::NotStarted`], and after an interruption, a SIMVIRTIO protocol error,
    /// the output limit, a failed controller, or a failure of the host.
    pub explanation: Option<Explanation>,
    /// The vCPU was in a HLT with interrupts on, and waited for an interrupt. Only on machines with interrupt controllers.
    pub waits_for_interrupt: bool,
    /// The location is mapped to the image, whose addresses are physical ones.
    pub(crate) is_mapped_to_image: bool,
    /// The result that the guest left. `None` unless it was requested
    /// ([`Builder::verify`](crate::machine::Builder::verify)) and the guest halted or exited with code 0.
    pub verdict: Option<Verdict>,
    /// The reasons to doubt that the guest did its work, the most telling one first. Empty unless the guest halted or
    /// exited with code 0.
    pub doubts: Vec<Doubt>,
    /// The duration of the run: from the call of [`Machine::run`](crate::machine::Machine::run) until all its threads have
    /// ended.
    pub elapsed: Duration,
    /// The state and the history of the SIMVIRTIO device. `None` if the machine does not have one.
    pub simvirtio: Option<SimvirtioReport>,
    /// The milestones of the boot. `None` unless the guest is Linux.
    pub boot: Option<BootReport>,
    /// The exits of all vCPUs. `None` if exits were not counted.
    pub profile: Option<Profile>,
    /// The clock that timed the exits, and the cost of the measurement. `None` if exits were not counted.
    pub timing: Option<Timing>,
    /// The last exits of the vCPU that stopped the machine, oldest first: at most 6. Empty if exits were not counted.
    pub last_exits: Vec<TracedExit>,
    /// The last exits of all vCPUs, up to the requested number. `None` if no trace was requested.
    pub trace: Option<Trace>,
    /// The samples of the vCPUs. `None` if none were requested ([`Machine::sample`](crate::machine::Machine::sample)).
    pub samples: Option<SampleReport>,
    /// The accesses to addresses, ports and model-specific registers that no controller or device claimed.
    pub open_bus: OpenBus,
    /// The reports of the vCPUs, in their order. Empty if the machine has one vCPU.
    pub vcpus: Vec<VcpuReport>,
    /// KVM's own counters, added up over all vCPUs. They include the exits that the kernel handled itself. `None` if they
    /// were not requested, or if KVM does not have them for each vCPU (before Linux 5.14).
    pub kernel: Option<KvmCounters>,
    /// The text screen at the end of the run. `None` if the machine is not a classic PC, or the guest has not used its
    /// screen, or shows graphics there.
    pub screen: Option<Screen>,
    /// All text on the screen is also in the output: a BIOS has printed it.
    pub screen_is_printed: bool,
    /// The size of the guest's RAM, in bytes.
    pub ram: u64,
    /// The guest physical addresses of the image, one range for each segment. Empty for Linux, boot disks and
    /// ROMs, which load their own code.
    pub image: Arc<[Range<u64>]>,
    /// The machine has no SIMVIRTIO device, although the guest looked for it: it stored where the window would be, waited
    /// there until a timeout, or did not end well and knows the magic. Always false for Linux.
    pub missed_simvirtio: bool,
    /// The modes, such as ":64", that the code of a flat binary seems to be for. `None` unless the guest ended without a right
    /// result, or without any effect, in a mode that is not among them.
    pub other_mode: Option<&'static str>,
    /// The probable cause of a death after which the host has reset the vCPU, which leaves no explanation.
    pub(crate) lost_suspicion: Option<String>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) kev: bool,
    pub(crate) has_bios: bool,
    pub(crate) msrs: Arc<MsrPolicy>,
}

impl Report {
    /// True if the guest left the right result, and there is no doubt about it. `None` without a
    /// [`verdict`](Self::verdict).
    pub fn verified(&self) -> Option<bool> {
        self.verdict.map(|verdict| verdict.passed() && self.doubts.is_empty())
    }

    /// True if the vCPU was outside its image, for example after a jump to a wrong address or past the last instruction.
    /// False if [`location`](Self::location) is not known, or if the vCPU waited for an interrupt. Always false for Linux, whose image is not recorded.
    pub fn left_its_image(&self) -> bool {
        let is_known = self.waits_for_interrupt || self.is_mapped_to_image;
        !is_known && self.location.is_some_and(|location| location.is_outside(&self.image))
    }

    /// The failure of the host that ended the run ([`Stop::HostFailed`]), for a caller to whom the report of such a run is of
    /// no use. `None` if the run ended in another way.
    pub fn host_failure(&self) -> Option<Error> {
        let Stop::HostFailed(error) = &self.stop else { return None };
        Some(Error::Host { operation: "running the guest", source: io::Error::other(error.to_string()) })
    }

    /// The probable cause of the guest's death, or of its timeout, as a phrase that follows "probably". `None` if none is
    /// known.
    pub fn suspicion(&self) -> Option<&str> {
        let explained = self.explanation.as_ref().and_then(Explanation::suspicion);
        explained.or(self.lost_suspicion.as_deref())
    }

    /// The cause of the guest's death, or the loop of a timeout, as a fact: see [`Explanation::cause`].
    pub fn cause(&self) -> Option<&str> {
        self.explanation.as_ref().and_then(Explanation::cause)
    }

    /// The layout that the driver of SIMVIRTIO seems to use, if the window has the other one: the driver stored its status
    /// where that layout has it, or waited for the device's there, and never finished the handshake (`docs/abi.md`, section
    /// 4.1).
    pub fn foreign_layout(&self) -> Option<Layout> {
        /// Loads of one field. A driver that does not wait for it reads it a few times.
        const WAITS: u64 = 16;
        let device = self.simvirtio.as_ref()?;
        let history = device.history;
        let waits = self.explanation.as_ref().and_then(Explanation::window_access);
        let is_foreign = history.misplaced_statuses > 0
            || history.misplaced_waits > WAITS
            || waits == Some(abi::WINDOW + device.layout.other().device_status());
        (is_foreign && history.readies == 0).then_some(device.layout.other())
    }

    /// The names of the machine's devices, in the order of the alphabet.
    pub fn device_names(&self) -> Vec<&'static str> {
        let buses = [&self.devices.ports, &self.devices.mmio, &self.devices.msrs];
        let on_buses = buses.into_iter().flat_map(|bus| bus.ranges().map(|(_, _, name)| name));
        // In shared memory its window is on no bus.
        let simvirtio = self.simvirtio.is_some().then_some("simvirtio");
        let mut names: Vec<_> = on_buses.chain(simvirtio).collect();
        sort_by(&mut names, Ord::cmp);
        names.dedup();
        names
    }

    /// The name of the device and the register at a site of the profile. `None` if no device is there.
    pub fn device_at(&self, site: &Site) -> Option<DeviceName> {
        let (address, _) = site.place?;
        match site.reason {
            Reason::PioOut if self.has_bios && address == u64::from(bios::PORT) => {
                Some(DeviceName::device("BIOS call"))
            }
            Reason::PioIn | Reason::PioOut => self.devices.ports.name(address),
            Reason::RdMsr | Reason::WrMsr => {
                let rule = u32::try_from(address).ok().and_then(|index| self.msrs.name(index));
                rule.map(DeviceName::device).or_else(|| self.devices.msrs.name(address))
            }
            Reason::Hypercall => {
                u32::try_from(address).ok().and_then(hypercall::name).map(DeviceName::device)
            }
            _ if self.kev && (PRINTER..PRINTER + PRINTER_SIZE).contains(&address) => {
                Some(MmioPrinter::name(address - PRINTER))
            }
            _ => self.devices.mmio.name(address),
        }
    }
}
