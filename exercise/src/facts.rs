//! The facts of a run that has ended.

use simvirtio::device::State;
use vmm::controller::Location;
use vmm::exit::{Reason, Stop};
use vmm::memory::GuestMemory;
use vmm::x86::{Mode, Regs, Sregs};
use vmm::{Error, Machine, Report};

/// The facts of a run.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The reason why the run ended.
    pub stop: &'a Stop,
    /// The beginning of the output.
    pub output: &'a [u8],
    /// The length of the whole output, in bytes.
    pub output_len: u64,
    /// The registers of the first vCPU. `None` if the host has lost them.
    pub registers: Option<(Regs, Sregs)>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The exits of all vCPUs by site. `None` if they were not counted.
    pub exits: Option<Vec<SiteExits>>,
    /// The names of the machine's devices.
    pub devices: Vec<&'static str>,
    /// The state of the SIMVIRTIO device. `None` without the device.
    pub simvirtio: Option<State>,
    /// The modes in which the vCPUs were at their exits. `None` if they were not recorded.
    pub modes: Option<Vec<Mode>>,
}

impl<'a> Facts<'a> {
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
            let one = |(site, count): (vmm::exit::Site, vmm::profile::Count)| SiteExits {
                reason: site.reason,
                place: site.place.map(|(place, _)| place),
                device: report.device_at(&site).map(Into::into),
                exits: count.exits,
            };
            sites.map(one).collect()
        });
        Ok(Self {
            stop: &report.stop,
            output,
            output_len,
            registers,
            memory: machine.memory().clone(),
            exits,
            devices: report.device_names(),
            simvirtio: report.simvirtio.as_ref().map(|device| device.state),
            modes: None,
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
    /// The reason.
    pub reason: Reason,
    /// The port, address, MSR or hypercall number. `None` for a reason without one.
    pub place: Option<u64>,
    /// The device and its register, such as "simvirtio TX head". `None` if no device is there.
    pub device: Option<String>,
    /// The number of exits.
    pub exits: u64,
}
