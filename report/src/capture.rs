//! Builds a profile or a trace from the report of a run.

use crate::profile::{
    ClockSource, SavedClock, SavedLimits, SavedMark, SavedProcessor, SavedSite, SavedTimes, SavedVcpu,
};
use crate::trace::{Record, SavedDevice};
use crate::{SavedProfile, SavedTrace};
use std::collections::{BTreeMap, HashSet};
use vmm::exit::{Arrival, Exit, Reason};
use vmm::machine::Processor;
use vmm::profile::{self, DIGITS, Latency, MAX_SITES, MAX_TIMED_SITES, TracedExit};
use vmm::{KvmCounters, Report};

/// The `program` member of the files.
const PROGRAM: &str = concat!("vmm ", env!("CARGO_PKG_VERSION"));

impl SavedVcpu {
    /// Builds the sums over all vCPUs, without KVM's own counters: the part of the profile that the summary of a run
    /// shows. Returns `None` if the run did not count its exits.
    pub fn capture_sums(report: &Report) -> Option<Self> {
        Some(Self::capture(report, None, String::new(), report.profile.as_ref()?))
    }

    fn capture(report: &Report, id: Option<u32>, ended: String, profile: &profile::Profile) -> Self {
        let total = profile.total();
        let (in_kvm, in_vmm) = profile.total_times();
        Self {
            id,
            ended,
            exits: total.exits,
            elements: total.elements,
            kernel: None,
            in_kvm: times(&in_kvm),
            in_vmm: times(&in_vmm),
            sites: profile.details().into_iter().map(|site| self::site(report, site)).collect(),
        }
    }
}

impl SavedProfile {
    /// Builds the profile of a run. `guest` is the guest's name, and `ended` the end of the run in one line. Returns
    /// `None` if the run did not count its exits.
    pub fn capture(guest: &str, ended: &str, report: &Report) -> Option<Self> {
        let (profile, measured) = (report.profile.as_ref()?, report.timing.as_ref()?);
        let vcpu = |id, ended, profile, kernel: Option<&KvmCounters>| SavedVcpu {
            kernel: kernel.map(counters),
            ..SavedVcpu::capture(report, id, ended, profile)
        };
        let machine = vcpu(None, ended.into(), profile, report.kernel.as_ref());
        let each = report.vcpus.iter().filter_map(|one| {
            Some(vcpu(Some(one.id), one.stop.to_string(), one.profile.as_ref()?, one.kernel.as_ref()))
        });
        let mut vcpus: Vec<_> = each.collect();
        if vcpus.is_empty() {
            vcpus.push(SavedVcpu { id: Some(0), ended: report.stop.to_string(), ..machine.clone() });
        }
        let marks = report.boot.iter().flat_map(|boot| boot.marks.iter());
        let marks = marks.zip(profile.phases().iter().chain(std::iter::repeat(&0)));
        Some(Self {
            program: PROGRAM.into(),
            processor: SavedProcessor::capture(report),
            guest: guest.into(),
            ended: ended.into(),
            elapsed_ns: nanos(report.elapsed),
            clock: match measured.clock.tsc_khz() {
                Some(khz) => SavedClock { source: ClockSource::Tsc, khz: khz.into(), steps: measured.steps },
                None => SavedClock { source: ClockSource::Monotonic, khz: 1_000_000, steps: measured.steps },
            },
            limits: SavedLimits {
                sites: MAX_SITES as u64,
                timed_sites: MAX_TIMED_SITES as u64,
                digits: DIGITS.into(),
            },
            profiling_ns: measured.cost,
            marks: marks
                .map(|(mark, exits)| SavedMark {
                    event: mark.event.to_string(),
                    at_ns: nanos(mark.at),
                    exits: *exits,
                })
                .collect(),
            machine,
            vcpus,
        })
    }
}

impl SavedTrace {
    /// Builds the trace of a run. `guest` is the guest's name, and `ended` the end of the run in one line. Returns
    /// `None` if the run recorded no trace. The vCPUs are numbered from 0 in the order of the report.
    pub fn capture(guest: &str, ended: &str, report: &Report) -> Option<Self> {
        let (trace, measured) = (report.trace.as_ref()?, report.timing.as_ref()?);
        let number = |id: u32| report.vcpus.iter().position(|vcpu| vcpu.id == id).unwrap_or(0);
        let records = trace.exits().iter().map(|(id, traced)| record(number(*id), traced)).collect();
        let mut seen = HashSet::new();
        let sites = trace.exits().iter().filter_map(|(_, traced)| vmm::exit::Site::of(&traced.exit));
        let devices = sites.filter(|site| seen.insert(*site)).filter_map(|site| {
            let ((place, width), device) = (site.place?, report.device_at(&site)?);
            Some(SavedDevice { reason: site.reason, place, width, device: device.into() })
        });
        Some(Self {
            vcpus: u32::try_from(report.vcpus.len()).unwrap_or(u32::MAX).max(1),
            seen: trace.seen(),
            elapsed_ns: nanos(report.elapsed),
            khz: measured.clock.tsc_khz().map_or(0, u64::from),
            records,
            program: PROGRAM.into(),
            processor: SavedProcessor::capture(report),
            guest: guest.into(),
            ended: ended.into(),
            devices: devices.take(MAX_SITES).collect(),
        })
    }
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

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the counters that are not zero, and always `exits`.
fn counters(from: &KvmCounters) -> BTreeMap<String, u64> {
    let kept = from.iter().filter(|(name, value)| *value > 0 || *name == "exits");
    kept.map(|(name, value)| (name.into(), value)).collect()
}

fn site(report: &Report, from: &profile::SiteProfile) -> SavedSite {
    SavedSite {
        reason: from.site.reason,
        place: from.site.place.map(|(place, _)| place),
        width: from.site.place.map(|(_, width)| width),
        device: report.device_at(&from.site).map(Into::into),
        exits: from.count.exits,
        elements: from.count.elements,
        in_kvm: times(&from.in_kvm),
        in_vmm: times(&from.in_vmm),
    }
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
    let site = vmm::exit::Site::of(&traced.exit);
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
