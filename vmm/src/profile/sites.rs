//! Exits counted and timed per site. A site is a port or an address, with a direction and a width.
//!
//! A guest chooses its addresses, so the table is limited to [`MAX_SITES`] sites. The exits of further sites go to one
//! extra site per reason, without an address, so totals stay exact. The first [`MAX_TIMED_SITES`] sites of a vCPU also
//! have histograms. A vCPU's profile takes at most about 5 MiB. For a usual guest it is about 10 KiB per site.

use crate::exit::{Arrival, Exit, Reason, Site};
use crate::host::sort_by_key;
use crate::profile::{Addresses, Latency};
use std::collections::{BTreeMap, HashMap};

/// The number of sites that a profile keeps apart.
pub const MAX_SITES: usize = 1024;
/// The number of sites with percentiles: the first sites of each vCPU. Each has two histograms of 36 KiB.
pub const MAX_TIMED_SITES: usize = 64;
// The table's indices are u16. Each named reason can add a site without an address.
const _: () = assert!(MAX_SITES + Reason::NAMED.len() < u16::MAX as usize);

/// A number of exits and of accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Exits: the number of times that the vCPU left the guest.
    pub exits: u64,
    /// Accesses: one per exit, except that string I/O counts one per element, and that each store that the kernel queued
    /// counts one.
    pub elements: u64,
}

impl Count {
    pub(crate) fn add(&mut self, other: Self) {
        self.exits = self.exits.saturating_add(other.exits);
        self.elements = self.elements.saturating_add(other.elements);
    }
}

/// The exits of a site, and their times.
#[derive(Clone, Debug)]
pub struct SiteProfile {
    /// The site.
    pub site: Site,
    /// The number of its exits.
    pub count: Count,
    /// The time in KVM_RUN until each exit. It covers the guest's code and the kernel.
    pub in_kvm: Latency,
    /// The time from the exit to the next entry, or to the next element of string I/O: one value per element.
    pub in_vmm: Latency,
}

impl SiteProfile {
    fn new(site: Site, timed: bool) -> Self {
        let latency = || if timed { Latency::with_percentiles() } else { Latency::default() };
        Self { site, count: Count::default(), in_kvm: latency(), in_vmm: latency() }
    }

    /// True if the site has percentiles.
    fn is_timed(&self) -> bool {
        self.in_vmm.knows_percentiles()
    }

    /// The total time of the site's exits, in nanoseconds.
    pub fn time(&self) -> u64 {
        self.in_kvm.sum().saturating_add(self.in_vmm.sum())
    }
}

/// The times of one exit, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The time in KVM_RUN until the exit; 0 for a further element of string I/O.
    pub in_kvm: u64,
    /// The time from the exit to the next entry, or to the next element.
    pub in_vmm: u64,
}

/// The exits of one vCPU, or of all vCPUs of a machine.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    sites: Vec<SiteProfile>,
    /// The index in `sites` of each site.
    places: HashMap<Site, u16>,
    /// A cache of `places`: guests exit at few sites, again and again.
    recent: Recent,
    /// The times of the sites without a histogram, in KVM and in the VMM, for the percentiles over all exits.
    untimed: Option<Box<(Latency, Latency)>>,
    /// Exits per phase of the timeline.
    phases: Vec<u64>,
    /// The exits per address, if they are recorded.
    addresses: Option<Box<Addresses>>,
}

/// The number of entries of [`Recent`].
const KEYS: usize = 256;

/// A cache of table indices: the last site of each hash key.
#[derive(Clone, Debug)]
struct Recent([u16; KEYS]);

impl Default for Recent {
    fn default() -> Self {
        Self([0; KEYS])
    }
}

impl Recent {
    /// The entry for a site. It is a guess: the caller compares the site that it finds there.
    fn of(&mut self, site: &Site) -> Option<&mut u16> {
        let (place, width) = site.place.unwrap_or_default();
        let mixed = (place ^ u64::from(width) << 56 ^ u64::from(site.reason.code()) << 60)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0.get_mut((mixed >> 56) as usize)
    }
}

impl Profile {
    /// Creates an empty profile that also counts exits per address of the guest's code.
    pub fn with_addresses() -> Self {
        Self { addresses: Some(Box::default()), ..Self::default() }
    }

    /// The exits per address of the guest's code. `None` if they were not recorded.
    pub fn addresses(&self) -> Option<&Addresses> {
        self.addresses.as_deref()
    }

    /// The same, to count exits.
    pub fn addresses_mut(&mut self) -> Option<&mut Addresses> {
        self.addresses.as_deref_mut()
    }

    /// The exits per phase of the timeline. Phases past the end had no exits.
    pub fn phases(&self) -> &[u64] {
        &self.phases
    }

    /// Adds exits to a phase. The number of phases is limited by the number of marks of a timeline.
    fn add_to_phase(&mut self, phase: usize, exits: u64) {
        if self.phases.len() <= phase {
            self.phases.resize(phase.saturating_add(1), 0);
        }
        if let Some(count) = self.phases.get_mut(phase) {
            *count = count.saturating_add(exits);
        }
    }

    /// Counts an exit and its times. Only the [`Recorder`](crate::profile::Recorder) calls this, once per [`Exit`].
    #[inline]
    pub fn record(&mut self, exit: &Exit, arrival: Arrival, times: Times) {
        let Some(place) = Site::of(exit).and_then(|site| self.place_of(site)) else { return };
        let Some(profile) = self.sites.get_mut(place) else { return };
        let exits = u64::from(arrival == Arrival::FromGuest);
        profile.count.add(Count { exits, elements: 1 });
        if arrival == Arrival::FromGuest {
            profile.in_kvm.record(times.in_kvm);
        }
        profile.in_vmm.record(times.in_vmm);
        if !profile.is_timed() {
            let untimed = self.untimed.get_or_insert_with(Self::no_times);
            if arrival == Arrival::FromGuest {
                untimed.0.record(times.in_kvm);
            }
            untimed.1.record(times.in_vmm);
        }
    }

    /// Counts an exit in its phase of the timeline.
    pub(crate) fn record_phase(&mut self, phase: usize, arrival: Arrival) {
        self.add_to_phase(phase, (arrival == Arrival::FromGuest).into());
    }

    fn no_times() -> Box<(Latency, Latency)> {
        Box::new((Latency::with_percentiles(), Latency::with_percentiles()))
    }

    /// Adds the exits of another vCPU.
    pub fn absorb(&mut self, other: &Self) {
        for from in &other.sites {
            let Some(to) = self.place_of(from.site).and_then(|place| self.sites.get_mut(place)) else {
                continue;
            };
            // If only one of the two has percentiles, their sum has none.
            let lost = match (to.is_timed(), from.is_timed()) {
                (true, false) => Some((to.in_kvm.clone(), to.in_vmm.clone())),
                (false, true) if to.count.elements > 0 => Some((from.in_kvm.clone(), from.in_vmm.clone())),
                _ => None,
            };
            to.count.add(from.count);
            to.in_kvm.absorb(&from.in_kvm);
            to.in_vmm.absorb(&from.in_vmm);
            // The percentiles over all exits keep those times.
            if let Some((in_kvm, in_vmm)) = lost {
                self.add_untimed(&in_kvm, &in_vmm);
            }
        }
        if let Some((in_kvm, in_vmm)) = other.untimed.as_deref() {
            self.add_untimed(in_kvm, in_vmm);
        }
        other.phases.iter().enumerate().for_each(|(phase, exits)| self.add_to_phase(phase, *exits));
        if let Some(addresses) = other.addresses() {
            self.addresses.get_or_insert_default().absorb(addresses);
        }
    }

    fn add_untimed(&mut self, in_kvm: &Latency, in_vmm: &Latency) {
        let untimed = self.untimed.get_or_insert_with(Self::no_times);
        untimed.0.absorb(in_kvm);
        untimed.1.absorb(in_vmm);
    }

    /// The table index of a site. If the table is full, new sites share one entry per reason. `None` only if the indices
    /// run out.
    #[inline]
    fn place_of(&mut self, site: Site) -> Option<usize> {
        let guess = usize::from(*self.recent.of(&site)?);
        match self.sites.get(guess) {
            Some(known) if known.site == site => Some(guess),
            _ => self.find(site),
        }
    }

    #[cold]
    fn find(&mut self, site: Site) -> Option<usize> {
        let full = self.sites.len() >= MAX_SITES && !self.places.contains_key(&site);
        let site = if full { Site { place: None, ..site } } else { site };
        let next = u16::try_from(self.sites.len()).ok()?;
        let at = *self.places.entry(site).or_insert(next);
        if at == next {
            // Sites without an address always have histograms: there are as few as there are reasons.
            let timed = self.sites.len() < MAX_TIMED_SITES || site.place.is_none();
            self.sites.push(SiteProfile::new(site, timed));
        }
        if let Some(guess) = self.recent.of(&site) {
            *guess = at;
        }
        Some(at.into())
    }

    /// The number of all exits.
    pub fn total(&self) -> Count {
        self.sites.iter().fold(Count::default(), |mut sum, site| {
            sum.add(site.count);
            sum
        })
    }

    /// The times of all exits: in KVM_RUN, and in this VMM.
    pub fn total_times(&self) -> (Latency, Latency) {
        let mut all = (Latency::with_percentiles(), Latency::with_percentiles());
        let sites = self.sites.iter().filter(|site| site.is_timed()).map(|site| (&site.in_kvm, &site.in_vmm));
        let untimed = self.untimed.as_deref().map(|(in_kvm, in_vmm)| (in_kvm, in_vmm));
        for (in_kvm, in_vmm) in sites.chain(untimed) {
            all.0.absorb(in_kvm);
            all.1.absorb(in_vmm);
        }
        all
    }

    /// The exits per reason, in the order of [`Reason`].
    pub fn reasons(&self) -> Vec<(Reason, Count)> {
        let mut reasons: BTreeMap<Reason, Count> = BTreeMap::new();
        for site in &self.sites {
            reasons.entry(site.site.reason).or_default().add(site.count);
        }
        reasons.into_iter().collect()
    }

    /// The exits per site, most frequent site first.
    pub fn sites(&self) -> Vec<(Site, Count)> {
        self.details().into_iter().map(|profile| (profile.site, profile.count)).collect()
    }

    /// The exits and times per site, most frequent site first.
    pub fn details(&self) -> Vec<&SiteProfile> {
        let mut sites: Vec<_> = self.sites.iter().collect();
        sort_by_key(&mut sites, |profile| (std::cmp::Reverse(profile.count.exits), profile.site));
        sites
    }
}

#[cfg(test)]
mod tests;
