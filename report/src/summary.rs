//! Sums up a trace by site, in the form of a profile.

use crate::code::{MOST_ADDRESSES, SavedAddress};
use crate::profile::{ClockSource, SavedClock, SavedLimits, SavedProfile, SavedSite, SavedTimes, SavedVcpu};
use crate::trace::{Record, SavedTrace};
use std::cmp::Reverse;
use std::collections::HashMap;
use vmm::exit::Reason;
use vmm::host::sort_by_key;
use vmm::profile::{MAX_ADDRESSES, MAX_SITES, lower_bound};

type Key = (Reason, Option<u64>, Option<u8>);

/// The samples of one site.
#[derive(Default)]
struct Samples {
    in_kvm: Vec<u32>,
    in_vmm: Vec<u32>,
}

/// The samples of one vCPU or of all vCPUs, by site.
#[derive(Default)]
struct Sites(HashMap<Key, Samples>);

impl Sites {
    fn add(&mut self, record: &Record) {
        let key = (record.reason, record.place, record.place.map(|_| record.width));
        // Past the limit, the sites of a reason are one site without a place.
        let full = self.0.len() >= MAX_SITES && !self.0.contains_key(&key);
        let samples = self.0.entry(if full { (record.reason, None, None) } else { key }).or_default();
        if !record.next_element {
            samples.in_kvm.push(record.in_kvm);
        }
        samples.in_vmm.push(record.in_vmm);
    }

    fn finish(self, id: Option<u32>, devices: &HashMap<Key, &str>) -> SavedVcpu {
        let mut all = Samples::default();
        let mut sites: Vec<_> = self.0.into_iter().collect();
        sort_by_key(&mut sites, |(key, samples)| (Reverse(samples.in_kvm.len()), *key));
        let sites = sites.into_iter().map(|((reason, place, width), samples)| {
            all.in_kvm.extend(&samples.in_kvm);
            all.in_vmm.extend(&samples.in_vmm);
            let device = devices.get(&(reason, place, width)).map(|device| (*device).into());
            let (exits, elements) = (samples.in_kvm.len() as u64, samples.in_vmm.len() as u64);
            let (in_kvm, in_vmm) = (SavedTimes::of(samples.in_kvm), SavedTimes::of(samples.in_vmm));
            SavedSite { reason, place, width, device, exits, elements, in_kvm, in_vmm }
        });
        let sites = sites.collect();
        let (exits, elements) = (all.in_kvm.len() as u64, all.in_vmm.len() as u64);
        let (in_kvm, in_vmm) = (SavedTimes::of(all.in_kvm), SavedTimes::of(all.in_vmm));
        SavedVcpu { id, ended: String::new(), exits, elements, kernel: None, in_kvm, in_vmm, sites }
    }
}

impl SavedTimes {
    /// Returns the statistics of these samples. The percentiles are exact.
    fn of(mut samples: Vec<u32>) -> Self {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let place = samples.len().saturating_mul(percent).div_ceil(100).saturating_sub(1);
            samples.get(place).map(|sample| u64::from(*sample))
        };
        let mut bins: Vec<(u64, u64)> = Vec::new();
        for sample in &samples {
            let bound = lower_bound((*sample).into());
            match bins.last_mut() {
                Some((last, count)) if *last == bound => *count = count.saturating_add(1),
                _ => bins.push((bound, 1)),
            }
        }
        Self {
            count: samples.len() as u64,
            sum: samples.iter().fold(0, |sum, sample| sum.saturating_add((*sample).into())),
            min: samples.first().map_or(0, |sample| (*sample).into()),
            max: samples.last().map_or(0, |sample| (*sample).into()),
            p50: rank(50),
            p99: rank(99),
            bins,
        }
    }
}

impl SavedTrace {
    /// Sums up the records by address of the guest's code and site, most exits first. Empty if no record has an address.
    fn addresses(&self) -> Vec<SavedAddress> {
        if self.records.iter().all(|record| record.rip.is_none()) {
            return Vec::new();
        }
        let mut all: HashMap<(Option<u64>, Key), SavedAddress> = HashMap::new();
        for record in &self.records {
            let key = (record.rip, (record.reason, record.place, record.place.map(|_| record.width)));
            let is_full = all.len() >= MAX_ADDRESSES && !all.contains_key(&key);
            let key = if is_full { (None, (record.reason, None, None)) } else { key };
            let (rip, (reason, place, width)) = key;
            let sums = all.entry(key).or_insert(SavedAddress {
                rip,
                reason,
                place,
                width,
                exits: 0,
                elements: 0,
                in_kvm_ns: 0,
                in_vmm_ns: 0,
            });
            sums.exits = sums.exits.saturating_add((!record.next_element).into());
            sums.elements = sums.elements.saturating_add(1);
            sums.in_kvm_ns = sums.in_kvm_ns.saturating_add(record.in_kvm.into());
            sums.in_vmm_ns = sums.in_vmm_ns.saturating_add(record.in_vmm.into());
        }
        let mut all: Vec<_> = all.into_values().collect();
        sort_by_key(&mut all, |sums| (Reverse(sums.exits), sums.rip, sums.reason, sums.place, sums.width));
        all.truncate(MOST_ADDRESSES);
        all
    }

    /// Sums up the trace by site. The profile covers the records of the trace, not the whole run, and has no marks, no
    /// profiling cost, no KVM counters and no setup.
    pub fn profile(&self) -> SavedProfile {
        let devices = self
            .devices
            .iter()
            .map(|device| ((device.reason, Some(device.place), Some(device.width)), device.device.as_str()));
        let devices = devices.collect();
        let mut machine = Sites::default();
        let mut vcpus: Vec<_> = (0..self.vcpus).map(|_| Sites::default()).collect();
        for record in &self.records {
            machine.add(record);
            if let Some(vcpu) = vcpus.get_mut(usize::from(record.vcpu)) {
                vcpu.add(record);
            }
        }
        let source = if self.khz == 0 { ClockSource::Monotonic } else { ClockSource::Tsc };
        SavedProfile {
            program: self.program.clone(),
            processor: self.processor,
            guest: self.guest.clone(),
            ended: self.ended.clone(),
            elapsed_ns: self.elapsed_ns,
            clock: SavedClock { source, khz: if self.khz == 0 { 1_000_000 } else { self.khz }, steps: 0 },
            // Percentiles are exact: samples have 32 bits, which is 10 decimal digits.
            limits: SavedLimits { sites: MAX_SITES as u64, timed_sites: MAX_SITES as u64, digits: 10 },
            profiling_ns: 0,
            marks: Vec::new(),
            machine: machine.finish(None, &devices),
            vcpus: (0..).zip(vcpus).map(|(id, vcpu)| vcpu.finish(Some(id), &devices)).collect(),
            setup: None,
            addresses: self.addresses(),
            names: self.names.clone(),
            samples: None,
            origin: self.origin.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::SavedDevice;
    use proptest::prelude::*;

    fn record(vcpu: u16, place: u64, in_kvm: u32, next_element: bool) -> Record {
        Record {
            when: 0,
            place: Some(place),
            value: None,
            rip: None,
            in_kvm,
            in_vmm: 100,
            vcpu,
            reason: Reason::PioOut,
            width: 1,
            next_element,
            fault: false,
        }
    }

    #[test]
    fn a_summary_counts_by_site_and_vcpu() {
        let records = vec![
            record(0, 0xe9, 1000, false),
            record(0, 0xe9, 0, true),
            record(1, 0xe9, 3000, false),
            record(1, 0x80, 5000, false),
        ];
        let device = SavedDevice { reason: Reason::PioOut, place: 0xe9, width: 1, device: "debugcon".into() };
        let trace = SavedTrace { vcpus: 2, seen: 9, records, devices: vec![device], ..SavedTrace::default() };
        let profile = trace.profile();
        let machine = &profile.machine;
        assert_eq!((machine.exits, machine.elements, machine.in_kvm.sum), (3, 4, 9000));
        let first = &machine.sites[0];
        assert_eq!((first.exits, first.elements, first.device.as_deref()), (2, 3, Some("debugcon")));
        assert_eq!((first.in_kvm.p50, first.in_kvm.p99, first.in_kvm.min), (Some(1000), Some(3000), 1000));
        assert_eq!(first.in_kvm.bins, [(960, 1), (2816, 1)]);
        assert_eq!(profile.vcpus.iter().map(|vcpu| vcpu.exits).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((machine.sites[1].device.as_ref(), machine.sites.len()), (None, 2));
        let mut written = Vec::new();
        profile.write(&mut written).unwrap();
        assert_eq!(SavedProfile::read(&written), Ok(profile));
    }

    #[test]
    fn a_summary_has_a_bounded_number_of_sites() {
        let records = (0..5000).map(|place| record(0, place, 1, false)).collect();
        let summary = SavedTrace { vcpus: 1, records, ..SavedTrace::default() }.profile();
        assert_eq!((summary.machine.sites.len(), summary.machine.exits), (MAX_SITES + 1, 5000));
    }

    proptest! {
        #[test]
        fn a_lower_bound_is_at_most_an_eighth_below_its_value(value in any::<u64>()) {
            let bound = lower_bound(value);
            prop_assert!(value.checked_sub(bound).is_some_and(|rest| rest <= value / 8));
            prop_assert_eq!(lower_bound(bound), bound);
        }
    }
}
