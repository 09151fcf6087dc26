//! What comes of a run: how it ended, the verdict, the exits.

use crate::controller::kev::{MmioPrinter, PRINTER, PRINTER_SIZE};
use crate::controller::msr::MsrPolicy;
use crate::controller::vcpu::Location;
use crate::controller::{Devices, OpenBus, hypercall};
use crate::device::simvirtio::SimvirtioReport;
use crate::exit::{Reason, Site, Stop};
use crate::kvm::counters::KvmCounters;
use crate::machine::explain::Explanation;
use crate::machine::linux::BootReport;
use crate::profile::Profile;
use crate::profile::clock::Clock;
use crate::profile::recorder::TracedExit;
use crate::profile::trace::Trace;
use crate::x86::modes::Mode;
use simvirtio::abi;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Whether the guest left what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    mode: Mode,
    /// RAX, EAX or AX, by the mode that the guest was entered in.
    pub register: u64,
    /// What is at 0x400: a word of 2 bytes in real mode, of 4 in the others.
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

    /// Whether both are 42.
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

/// How one of several vCPUs went.
#[derive(Clone, Debug)]
pub struct VcpuReport {
    /// Its number.
    pub id: u32,
    /// Why it ended.
    pub stop: Stop,
    /// Where it was, if it did not end by itself.
    pub location: Option<Location>,
    /// Its exits, where they were counted.
    pub profile: Option<Profile>,
    /// KVM's own counters of it, where they were asked for and the host has them.
    pub kernel: Option<KvmCounters>,
}

/// How exits were timed.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The clock.
    pub clock: Clock,
    /// What counting, timing and remembering cost, of all vCPUs, in nanoseconds.
    pub cost: u64,
    /// How often the clock went backwards.
    pub steps: u64,
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// Why it ended.
    pub stop: Stop,
    /// Which of several vCPUs ended the machine, and is the one that is located and explained.
    pub stopped_by: Option<u32>,
    /// Where the vCPU was, if it did not end in an orderly way.
    pub location: Option<Location>,
    /// What the guest died of, or was doing when its time was up, where that can be seen.
    pub explanation: Option<Explanation>,
    /// The verdict, where one was asked for and the guest came to its end.
    pub verdict: Option<Verdict>,
    /// From the first entry to the last exit.
    pub elapsed: Duration,
    /// What became of SIMVIRTIO's device, where there was one.
    pub simvirtio: Option<SimvirtioReport>,
    /// How far the boot got, of Linux.
    pub boot: Option<BootReport>,
    /// The exits of all vCPUs, where they were counted.
    pub profile: Option<Profile>,
    /// How the exits were timed, where they were.
    pub measured: Option<Timing>,
    /// The last few exits of the vCPU that ended the machine, the last one last.
    pub last: Vec<TracedExit>,
    /// The last exits of all vCPUs, where they were asked for.
    pub trace: Option<Trace>,
    /// What was looked for and is not there.
    pub open_bus: OpenBus,
    /// Each vCPU, where there are several.
    pub vcpus: Vec<VcpuReport>,
    /// KVM's own counters of all vCPUs, where they were asked for and the host has them. It also counts the
    /// exits that the kernel handled by itself.
    pub kernel: Option<KvmCounters>,
    /// Size of the guest's memory, in bytes.
    pub ram: u64,
    /// Where the image was loaded, a range for each segment.
    pub image: Arc<[Range<u64>]>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) kev: bool,
    pub(crate) msrs: Arc<MsrPolicy>,
}

impl Report {
    /// Whether the vCPU was outside of all that was loaded, as after a jump to a wrong address or past the
    /// last instruction. Of Linux nobody knows.
    pub fn left_its_image(&self) -> bool {
        match self.location.filter(|_| !self.image.is_empty()) {
            Some(Location::At { mode, cs, rip }) => {
                let base = if mode == Mode::Real { u64::from(cs) << 4 } else { 0 };
                let place = base.saturating_add(rip);
                !self.image.iter().any(|range| range.contains(&place))
            }
            Some(Location::Reset) | None => false,
        }
    }

    /// The name of what is at a site of the profile, where a device is there.
    pub fn device_at(&self, site: &Site) -> Option<&'static str> {
        let (address, _) = site.place?;
        match site.reason {
            Reason::PioIn | Reason::PioOut => self.devices.ports.name(address),
            Reason::RdMsr | Reason::WrMsr => {
                let rule = u32::try_from(address).ok().and_then(|index| self.msrs.name(index));
                rule.or_else(|| self.devices.msrs.name(address))
            }
            Reason::Hypercall => u32::try_from(address).ok().and_then(hypercall::name),
            _ if self.kev && (PRINTER..PRINTER + PRINTER_SIZE).contains(&address) => {
                Some(MmioPrinter::name(address - PRINTER))
            }
            _ => self.devices.mmio.name(address),
        }
    }
}
