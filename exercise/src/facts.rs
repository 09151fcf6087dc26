//! The facts of a run that has ended.

use simvirtio::device::State;
use vmm::controller::Location;
use vmm::exit::{Site, Stop};
use vmm::memory::{Gpa, GuestMemory};
use vmm::profile::Trace;
use vmm::x86::{Mode, Regs, Sregs};
use vmm::{Error, Machine, Report};

/// The facts of a run.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The end of the run.
    pub end: RunEnd<'a>,
    /// The beginning of the output.
    pub output: &'a [u8],
    /// The length of the whole output, in bytes.
    pub output_len: u64,
    /// The registers of the first vCPU. `None` if the host has lost them, or if they were not read.
    pub registers: Option<(Regs, Sregs)>,
    /// The guest's memory.
    pub memory: Memory,
    /// The exits of all vCPUs by site. `None` if they were not counted.
    pub exits: Option<Vec<SiteExits>>,
    /// The names of the machine's devices.
    pub devices: Vec<&'static str>,
    /// The state of the SIMVIRTIO device. `None` without the device.
    pub simvirtio: Option<State>,
    /// The modes in which the vCPUs were at their exits. `None` if they were not recorded.
    pub modes: Option<Vec<Mode>>,
    /// The last exits, which may be all exits. `None` if they were not recorded.
    pub trace: Option<&'a Trace>,
    /// The features of KVM that an observed VMM used. `None` for a machine of this program.
    pub features: Option<Vec<&'static str>>,
    /// The calls that built the machines of an observed VMM, a line for each. `None` for a machine of this program.
    pub setup: Option<String>,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub enum RunEnd<'a> {
    /// A guest stopped.
    Guest(&'a Stop),
    /// An observed VMM ended with this status.
    Status(i32),
    /// An observed VMM was ended by a signal, or did not end in its time.
    Failed {
        /// True if it did not end in its time.
        timed_out: bool,
        /// A description.
        text: String,
    },
}

/// Memory of a guest.
#[derive(Clone, Debug)]
pub enum Memory {
    /// All of it.
    Whole(GuestMemory),
    /// Copies of ranges: address and content.
    Copies(Vec<(u64, Vec<u8>)>),
}

impl Memory {
    /// Fills a buffer from an address on. Returns false if there is no memory.
    pub fn read(&self, address: u64, to: &mut [u8]) -> bool {
        match self {
            Self::Whole(memory) => memory.read(Gpa(address), to),
            Self::Copies(copies) => {
                let copy = copies.iter().find(|(at, bytes)| *at == address && bytes.len() == to.len());
                copy.map(|(_, bytes)| to.copy_from_slice(bytes)).is_some()
            }
        }
    }
}

impl<'a> Facts<'a> {
    /// True for the run of a VMM that was observed.
    pub fn is_observed(&self) -> bool {
        self.features.is_some()
    }

    /// The facts of a machine after the run that `report` is about. `output` is the beginning of its output, of
    /// `output_len` bytes.
    ///
    /// # Errors
    /// The host failed.
    pub fn of(
        machine: &mut Machine,
        report: &'a Report,
        output: &'a [u8],
        output_len: u64,
    ) -> Result<Self, Error> {
        let registers = match machine.vcpu(0) {
            Some(vcpu) if !is_reset(report) => Some((vcpu.regs()?, vcpu.sregs()?)),
            _ => None,
        };
        let exits = report.profile.as_ref().map(|profile| {
            let sites = profile.sites().into_iter();
            let one = |(site, count): (Site, vmm::profile::Count)| SiteExits {
                site,
                device: report.device_at(&site).map(Into::into),
                exits: count.exits,
            };
            sites.map(one).collect()
        });
        Ok(Self {
            end: RunEnd::Guest(&report.stop),
            output,
            output_len,
            registers,
            memory: Memory::Whole(machine.memory().clone()),
            exits,
            devices: report.device_names(),
            simvirtio: report.simvirtio.as_ref().map(|device| device.state),
            modes: None,
            trace: report.trace.as_ref(),
            features: None,
            setup: None,
        })
    }
}

/// True if the host has reset the first vCPU.
fn is_reset(report: &Report) -> bool {
    report.stopped_by.is_none_or(|id| id == 0) && report.location == Some(Location::Reset)
}

/// The number of exits at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteExits {
    /// The site.
    pub site: Site,
    /// The device and its register, such as "simvirtio TX head". `None` if no device is there.
    pub device: Option<String>,
    /// The number of exits.
    pub exits: u64,
}
