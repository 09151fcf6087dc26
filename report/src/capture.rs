//! Builds a profile or a trace from the measurements of a run.

use crate::code::{MOST_ADDRESSES, SavedAddress, SavedName};
use crate::profile::{
    ClockSource, SavedClock, SavedLimits, SavedMark, SavedProcessor, SavedSite, SavedTimes, SavedVcpu,
};
use crate::stacks::Samples;
use crate::trace::{Record, SavedDevice};
use crate::{SavedOrigin, SavedProfile, SavedSetup, SavedTrace};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use vmm::exit::{Arrival, Exit, Reason, Site};
use vmm::host::sort_by_key;
use vmm::machine::{Processor, Timing};
use vmm::profile::{
    Addresses, DIGITS, Latency, MAX_SITES, MAX_TIMED_SITES, Mark, Profile, SiteProfile, Trace, TracedExit,
};
use vmm::{KvmCounters, Report};

/// The `program` member of the files.
const PROGRAM: &str = concat!("vmm ", env!("CARGO_PKG_VERSION"));

/// The measurements of a run, from which its files are made. The run is that of a machine of this program
/// ([`Measured::of`]), or that of another program's machines.
#[derive(Clone, Debug)]
pub struct Measured<'a> {
    /// The guest's name, or the name of the program.
    pub guest: &'a str,
    /// The end of the run in one line.
    pub ended: &'a str,
    /// The kind of processor.
    pub processor: SavedProcessor,
    /// The duration of the run.
    pub elapsed: Duration,
    /// The clock, and the cost of the measurement.
    pub timing: Timing,
    /// The exits of all vCPUs.
    pub profile: &'a Profile,
    /// KVM's own counters, added up over all vCPUs.
    pub kernel: Option<&'a KvmCounters>,
    /// The vCPUs, at least one.
    pub vcpus: Vec<MeasuredVcpu<'a>>,
    /// The marks of a boot.
    pub marks: &'a [Mark],
    /// The last exits of all vCPUs.
    pub trace: Option<&'a Trace>,
    /// The names of devices.
    pub devices: Devices<'a>,
    /// The setup of an observed program's machines.
    pub setup: Option<&'a SavedSetup>,
    /// The names of the addresses in the guest's code.
    pub names: &'a [SavedName],
    /// The samples of the vCPUs.
    pub samples: Option<&'a Samples>,
    /// The date, the host and the command, for files.
    pub origin: Option<&'a SavedOrigin>,
}

/// The measurements of one vCPU.
#[derive(Clone, Debug)]
pub struct MeasuredVcpu<'a> {
    /// The number of the vCPU.
    pub id: u32,
    /// The end of this vCPU in one line.
    pub ended: String,
    /// Its exits.
    pub profile: &'a Profile,
    /// KVM's own counters.
    pub kernel: Option<&'a KvmCounters>,
}

/// The names of the devices of a run.
#[derive(Clone, Copy, Debug)]
pub enum Devices<'a> {
    /// The devices of a machine of this program.
    Of(&'a Report),
    /// A function that names them.
    Named(fn(&Site) -> Option<&'static str>),
}

impl Devices<'_> {
    fn at(&self, site: &Site) -> Option<String> {
        match self {
            Self::Of(report) => report.device_at(site).map(Into::into),
            Self::Named(name) => name(site).map(Into::into),
        }
    }
}

impl<'a> Measured<'a> {
    /// Returns the measurements of the run of a machine. `guest` is the guest's name, and `ended` the end of the run in one
    /// line. Returns `None` if the run did not count its exits.
    pub fn of(guest: &'a str, ended: &'a str, report: &'a Report) -> Option<Self> {
        let profile = report.profile.as_ref()?;
        let vcpus = report.vcpus.iter().filter_map(|one| {
            let (profile, kernel) = (one.profile.as_ref()?, one.kernel.as_ref());
            Some(MeasuredVcpu { id: one.id, ended: one.stop.to_string(), profile, kernel })
        });
        let mut vcpus: Vec<_> = vcpus.collect();
        let kernel = report.kernel.as_ref();
        if vcpus.is_empty() {
            vcpus.push(MeasuredVcpu { id: 0, ended: report.stop.to_string(), profile, kernel });
        }
        Some(Self {
            guest,
            ended,
            processor: SavedProcessor::capture(report),
            elapsed: report.elapsed,
            timing: report.timing?,
            profile,
            kernel,
            vcpus,
            marks: report.boot.as_ref().map_or(&[], |boot| &boot.marks),
            trace: report.trace.as_ref(),
            devices: Devices::Of(report),
            setup: None,
            names: &[],
            samples: None,
            origin: None,
        })
    }

    /// Builds the sums over all vCPUs, without KVM's own counters: the part of the profile that the summary of a run
    /// shows.
    pub fn sums(&self) -> SavedVcpu {
        self.vcpu(None, String::new(), self.profile, None)
    }

    /// Builds the profile.
    pub fn profile(&self) -> SavedProfile {
        let each = self.vcpus.iter();
        let each = each.map(|one| self.vcpu(Some(one.id), one.ended.clone(), one.profile, one.kernel));
        let marks = self.marks.iter().zip(self.profile.phases().iter().chain(std::iter::repeat(&0)));
        let marks = marks.map(|(mark, exits)| SavedMark {
            event: mark.event.to_string(),
            at_ns: nanos(mark.at),
            exits: *exits,
        });
        let steps = self.timing.steps;
        SavedProfile {
            program: PROGRAM.into(),
            processor: self.processor,
            guest: self.guest.into(),
            ended: self.ended.into(),
            origin: self.origin(),
            elapsed_ns: nanos(self.elapsed),
            clock: match self.timing.clock.tsc_khz() {
                Some(khz) => SavedClock { source: ClockSource::Tsc, khz: khz.into(), steps },
                None => SavedClock { source: ClockSource::Monotonic, khz: 1_000_000, steps },
            },
            limits: SavedLimits {
                sites: MAX_SITES as u64,
                timed_sites: MAX_TIMED_SITES as u64,
                digits: DIGITS.into(),
            },
            profiling_ns: self.timing.cost,
            marks: marks.collect(),
            machine: self.vcpu(None, self.ended.into(), self.profile, self.kernel),
            vcpus: each.collect(),
            setup: self.setup.cloned(),
            addresses: self.addresses(),
            names: self.names.to_vec(),
            samples: self.samples.map(Into::into),
        }
    }

    /// Builds the exits per address of the guest's code, most exits first. Empty if they were not recorded.
    pub fn addresses(&self) -> Vec<SavedAddress> {
        addresses(self.profile)
    }

    /// Builds the trace. Returns `None` if the run recorded no trace. The vCPUs are numbered from 0 in their order.
    pub fn trace(&self) -> Option<SavedTrace> {
        let trace = self.trace?;
        let number = |id: u32| self.vcpus.iter().position(|vcpu| vcpu.id == id).unwrap_or(0);
        let records = trace.exits().iter().map(|(id, traced)| record(number(*id), traced)).collect();
        let mut seen = HashSet::new();
        let sites = trace.exits().iter().filter_map(|(_, traced)| Site::of(&traced.exit));
        let devices = sites.filter(|site| seen.insert(*site)).filter_map(|site| {
            let ((place, width), device) = (site.place?, self.devices.at(&site)?);
            Some(SavedDevice { reason: site.reason, place, width, device })
        });
        Some(SavedTrace {
            vcpus: u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX).max(1),
            seen: trace.seen(),
            elapsed_ns: nanos(self.elapsed),
            khz: self.timing.clock.tsc_khz().map_or(0, u64::from),
            records,
            program: PROGRAM.into(),
            processor: self.processor,
            guest: self.guest.into(),
            ended: self.ended.into(),
            devices: devices.take(MAX_SITES).collect(),
            names: self.names.to_vec(),
            origin: self.origin(),
        })
    }

    /// The origin with the transport of the guest.
    fn origin(&self) -> Option<Box<SavedOrigin>> {
        let transport = match self.devices {
            Devices::Of(report) => report.simvirtio.as_ref().filter(|device| device.history.resets > 0),
            Devices::Named(_) => None,
        };
        let transport = transport.map(|device| device.transport.to_string()).unwrap_or_default();
        self.origin.map(|origin| Box::new(SavedOrigin { transport, ..origin.clone() }))
    }

    fn vcpu(
        &self,
        id: Option<u32>,
        ended: String,
        profile: &Profile,
        kernel: Option<&KvmCounters>,
    ) -> SavedVcpu {
        let total = profile.total();
        let (in_kvm, in_vmm) = profile.total_times();
        SavedVcpu {
            id,
            ended,
            exits: total.exits,
            elements: total.elements,
            kernel: kernel.map(counters),
            in_kvm: times(&in_kvm),
            in_vmm: times(&in_vmm),
            sites: profile.details().into_iter().map(|site| self.site(site)).collect(),
        }
    }

    fn site(&self, from: &SiteProfile) -> SavedSite {
        SavedSite {
            reason: from.site.reason,
            place: from.site.place.map(|(place, _)| place),
            width: from.site.place.map(|(_, width)| width),
            device: self.devices.at(&from.site),
            exits: from.count.exits,
            elements: from.count.elements,
            in_kvm: times(&from.in_kvm),
            in_vmm: times(&from.in_vmm),
        }
    }
}

/// The exits of a profile per address, most exits first.
pub fn addresses(profile: &Profile) -> Vec<SavedAddress> {
    let entries = profile.addresses().map_or(&[][..], Addresses::entries);
    let saved = entries.iter().map(|entry| SavedAddress {
        rip: entry.rip,
        reason: entry.site.reason,
        place: entry.site.place.map(|(place, _)| place),
        width: entry.site.place.map(|(_, width)| width),
        exits: entry.count.exits,
        elements: entry.count.elements,
        in_kvm_ns: entry.in_kvm,
        in_vmm_ns: entry.in_vmm,
    });
    let mut saved: Vec<_> = saved.take(MOST_ADDRESSES).collect();
    sort_by_key(&mut saved, |address| (Reverse(address.exits), address.rip, address.reason));
    saved
}

impl SavedProcessor {
    /// Returns the kind of processor that ran the guest.
    pub fn capture(report: &Report) -> Self {
        match report.processor {
            Processor::Kvm => Self::Kvm,
            Processor::Soft => Self::Soft,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the counters that are not zero, and always `exits`.
fn counters(from: &KvmCounters) -> BTreeMap<String, u64> {
    let kept = from.iter().filter(|(name, value)| *value > 0 || *name == "exits");
    // To collect a map sorts first, and the sort is a copy of its own in the program.
    let mut counters = BTreeMap::new();
    counters.extend(kept.map(|(name, value)| (name.into(), value)));
    counters
}

fn times(latency: &Latency) -> SavedTimes {
    SavedTimes {
        count: latency.count(),
        sum: latency.sum(),
        min: latency.min(),
        max: latency.max(),
        p50: latency.percentile(50.0),
        p99: latency.percentile(99.0),
        bins: latency.bins(),
    }
}

fn record(vcpu: usize, traced: &TracedExit) -> Record {
    let site = Site::of(&traced.exit);
    let place = site.and_then(|site| site.place);
    let saturating = |nanos: u64| u32::try_from(nanos).unwrap_or(u32::MAX);
    Record {
        when: traced.at,
        place: place.map(|(place, _)| place),
        value: match traced.exit {
            Exit::Hypercall { number } => Some(number.into()),
            _ => traced.value,
        },
        rip: traced.rip,
        in_kvm: saturating(traced.times.in_kvm),
        in_vmm: saturating(traced.times.in_vmm),
        vcpu: u16::try_from(vcpu).unwrap_or(u16::MAX),
        reason: site.map_or(Reason::Other(0), |site| site.reason),
        width: place.map_or(0, |(_, width)| width),
        next_element: traced.arrival != Arrival::FromGuest,
        fault: traced.fault,
    }
}
