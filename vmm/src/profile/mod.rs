//! Exits counted and timed: per reason and per site, where a site is a port or an address, a direction and a
//! width.
//!
//! A guest chooses its addresses, so the table holds [`MAX_SITES`] sites; the exits of further ones go to
//! one more site for each reason, without an address. Totals stay exact. The first [`MAX_TIMED_SITES`] have
//! histograms, too: a vCPU's profile takes at most about 5 MiB, and a usual guest's some 10 KiB for each site.

pub(crate) mod clock;
mod latency;
pub(crate) mod recorder;
pub(crate) mod timeline;
pub(crate) mod trace;

use crate::exit::{Arrival, Exit, Reason, Site};
use std::collections::{BTreeMap, HashMap};

pub use clock::Clock;
pub use latency::{DIGITS, Latency, lower_bound};
pub use recorder::{Recorder, Recording, TracedExit};
pub use timeline::{Event, MAX_MARKS, Mark, Timeline};
pub use trace::{MAX_TRACED_EXITS, Trace};

/// How many sites are told apart.
pub const MAX_SITES: usize = 1024;
/// Of how many of them, the first of each vCPU, percentiles are known: each has two histograms of 36 KiB.
pub const MAX_TIMED_SITES: usize = 64;

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times that the guest was left.
    pub exits: u64,
    /// Accesses: one for each exit, but for string I/O one for each element, and one for each store that the kernel queued.
    pub elements: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.exits = self.exits.saturating_add(other.exits);
        self.elements = self.elements.saturating_add(other.elements);
    }
}

/// The exits of a site, and how long they took.
#[derive(Clone, Debug)]
pub struct SiteProfile {
    /// Where they come from.
    pub site: Site,
    /// How many there were.
    pub count: Count,
    /// The time in KVM_RUN until each exit: the guest's, and the kernel's.
    pub in_kvm: Latency,
    /// The time until the guest was entered again, or the next element was at hand: one for each element.
    pub in_vmm: Latency,
}

impl SiteProfile {
    fn new(site: Site, timed: bool) -> Self {
        let latency = || if timed { Latency::with_percentiles() } else { Latency::default() };
        Self { site, count: Count::default(), in_kvm: latency(), in_vmm: latency() }
    }

    /// Whether its percentiles are known.
    fn is_told(&self) -> bool {
        self.in_vmm.knows_percentiles()
    }

    /// All the time that went into the site's exits, in nanoseconds.
    pub fn time(&self) -> u64 {
        self.in_kvm.sum().saturating_add(self.in_vmm.sum())
    }
}

/// How long one exit took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// In KVM_RUN until it; 0 for a further element of string I/O.
    pub in_kvm: u64,
    /// From there to the next entry, or to the next element.
    pub in_vmm: u64,
}

/// The exits of one vCPU, or of all of a machine.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    sites: Vec<SiteProfile>,
    /// Where in `sites` a site is.
    places: HashMap<Site, u16>,
    /// The same for the last site of each key: a guest comes to few sites, again and again.
    recent: Recent,
    /// The times of the sites that have no histogram, for the percentiles over all.
    untold: Option<Box<(Latency, Latency)>>,
    /// Exits by phase of the timeline.
    phases: Vec<u64>,
}

/// How many keys [`Recent`] has.
const KEYS: usize = 256;

/// Guesses where in the table a site is.
#[derive(Clone, Debug)]
struct Recent([u16; KEYS]);

impl Default for Recent {
    fn default() -> Self {
        Self([0; KEYS])
    }
}

impl Recent {
    fn of(&mut self, site: &Site) -> Option<&mut u16> {
        let (place, width) = site.place.unwrap_or_default();
        let mixed = (place ^ u64::from(width) << 56 ^ u64::from(site.reason.code()) << 60)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0.get_mut((mixed >> 56) as usize)
    }
}

impl Profile {
    /// How many exits there were in each phase of the timeline; later ones had none.
    pub fn phases(&self) -> &[u64] {
        &self.phases
    }

    /// Adds exits to a phase. There are at most as many as a timeline has marks.
    fn add_to_phase(&mut self, phase: usize, exits: u64) {
        if self.phases.len() <= phase {
            self.phases.resize(phase.saturating_add(1), 0);
        }
        if let Some(count) = self.phases.get_mut(phase) {
            *count = count.saturating_add(exits);
        }
    }

    /// Counts an exit, and takes its times. The [`Recorder`](crate::profile::recorder::Recorder) calls this, once for each
    /// [`Exit`]; nothing else counts.
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
        if !profile.is_told() {
            let untold = self.untold.get_or_insert_with(Self::untold);
            if arrival == Arrival::FromGuest {
                untold.0.record(times.in_kvm);
            }
            untold.1.record(times.in_vmm);
        }
    }

    /// Counts an exit in its phase of the timeline.
    pub(crate) fn record_phase(&mut self, phase: usize, arrival: Arrival) {
        self.add_to_phase(phase, (arrival == Arrival::FromGuest).into());
    }

    fn untold() -> Box<(Latency, Latency)> {
        Box::new((Latency::with_percentiles(), Latency::with_percentiles()))
    }

    /// Adds the exits of another vCPU.
    pub fn absorb(&mut self, other: &Self) {
        for from in &other.sites {
            let Some(to) = self.place_of(from.site).and_then(|place| self.sites.get_mut(place)) else {
                continue;
            };
            let apart = match (to.is_told(), from.is_told()) {
                (true, false) => Some((to.in_kvm.clone(), to.in_vmm.clone())),
                (false, true) if to.count.elements > 0 => Some((from.in_kvm.clone(), from.in_vmm.clone())),
                _ => None,
            };
            to.count.add(from.count);
            to.in_kvm.absorb(&from.in_kvm);
            to.in_vmm.absorb(&from.in_vmm);
            // The site's percentiles are lost, but those over all are not.
            if let Some((in_kvm, in_vmm)) = apart {
                self.add_untold(&in_kvm, &in_vmm);
            }
        }
        if let Some((in_kvm, in_vmm)) = other.untold.as_deref() {
            self.add_untold(in_kvm, in_vmm);
        }
        other.phases.iter().enumerate().for_each(|(phase, exits)| self.add_to_phase(phase, *exits));
    }

    fn add_untold(&mut self, in_kvm: &Latency, in_vmm: &Latency) {
        let untold = self.untold.get_or_insert_with(Self::untold);
        untold.0.absorb(in_kvm);
        untold.1.absorb(in_vmm);
    }

    /// Where a site is in the table or, where that is full, the one for all others of its reason. It always is
    /// somewhere.
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
            // There are few reasons, so those without a place have histograms, too.
            let told = self.sites.len() < MAX_TIMED_SITES || site.place.is_none();
            self.sites.push(SiteProfile::new(site, told));
        }
        if let Some(guess) = self.recent.of(&site) {
            *guess = at;
        }
        Some(at.into())
    }

    /// All exits.
    pub fn total(&self) -> Count {
        self.sites.iter().fold(Count::default(), |mut sum, site| {
            sum.add(site.count);
            sum
        })
    }

    /// The times of all exits: in KVM_RUN, and in this VMM.
    pub fn total_times(&self) -> (Latency, Latency) {
        let mut all = (Latency::with_percentiles(), Latency::with_percentiles());
        let sites = self.sites.iter().filter(|site| site.is_told()).map(|site| (&site.in_kvm, &site.in_vmm));
        let untold = self.untold.as_deref().map(|(in_kvm, in_vmm)| (in_kvm, in_vmm));
        for (in_kvm, in_vmm) in sites.chain(untold) {
            all.0.absorb(in_kvm);
            all.1.absorb(in_vmm);
        }
        all
    }

    /// The exits of each reason, in the order of [`Reason`].
    pub fn reasons(&self) -> Vec<(Reason, Count)> {
        let mut reasons: BTreeMap<Reason, Count> = BTreeMap::new();
        for site in &self.sites {
            reasons.entry(site.site.reason).or_default().add(site.count);
        }
        reasons.into_iter().collect()
    }

    /// The exits of each site, most first.
    pub fn sites(&self) -> Vec<(Site, Count)> {
        self.details().into_iter().map(|profile| (profile.site, profile.count)).collect()
    }

    /// All that is known of each site, the one with most exits first.
    pub fn details(&self) -> Vec<&SiteProfile> {
        let mut sites: Vec<_> = self.sites.iter().collect();
        sites.sort_by_key(|profile| (std::cmp::Reverse(profile.count.exits), profile.site));
        sites
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OUT: Exit = Exit::PioOut { port: 0xe9, size: 1, data: 0 };
    const TIMES: Times = Times { in_kvm: 4000, in_vmm: 200 };

    #[test]
    fn one_exit_with_three_elements() {
        let mut profile = Profile::default();
        profile.record(&OUT, Arrival::FromGuest, TIMES);
        profile.record(&OUT, Arrival::NextElement, TIMES);
        profile.record(&OUT, Arrival::NextElement, TIMES);
        assert_eq!(profile.total(), Count { exits: 1, elements: 3 });
        let site = Site { reason: Reason::PioOut, place: Some((0xe9, 1)) };
        assert_eq!(profile.sites(), [(site, Count { exits: 1, elements: 3 })]);
    }

    #[test]
    fn sites_differ_by_direction_width_and_address() {
        let mut profile = Profile::default();
        for exit in [
            OUT,
            Exit::PioOut { port: 0xe9, size: 2, data: 0 },
            Exit::PioIn { port: 0xe9, size: 1 },
            Exit::PioOut { port: 0xe8, size: 1, data: 0 },
            Exit::MmioWrite { address: 0xe9, size: 1, data: 0 },
            Exit::MmioRead { address: 0xe9, size: 1 },
        ] {
            profile.record(&exit, Arrival::FromGuest, TIMES);
        }
        assert_eq!(profile.sites().len(), 6);
        let reasons: Vec<_> =
            profile.reasons().into_iter().map(|(reason, count)| (reason, count.exits)).collect();
        let expect = [(Reason::PioIn, 1), (Reason::PioOut, 3), (Reason::MmioRead, 1), (Reason::MmioWrite, 1)];
        assert_eq!(reasons, expect);
    }

    #[test]
    fn an_interruption_is_no_exit() {
        let mut profile = Profile::default();
        profile.record(&Exit::Interrupted, Arrival::FromGuest, TIMES);
        assert_eq!(profile.total(), Count::default());
    }

    #[test]
    fn the_most_frequent_site_comes_first() {
        let mut profile = Profile::default();
        for exit in [Exit::Hlt, OUT, OUT] {
            profile.record(&exit, Arrival::FromGuest, TIMES);
        }
        let order: Vec<_> = profile.sites().into_iter().map(|(site, _)| site.reason).collect();
        assert_eq!(order, [Reason::PioOut, Reason::Hlt]);
    }

    #[test]
    fn a_guest_that_touches_everything_fills_one_table_only() {
        let mut profile = Profile::default();
        for address in 0..100_000 {
            profile.record(&Exit::MmioRead { address, size: 1 }, Arrival::FromGuest, TIMES);
        }
        profile.record(&Exit::MmioRead { address: 7, size: 1 }, Arrival::FromGuest, TIMES);
        profile.record(&Exit::Hlt, Arrival::FromGuest, TIMES);
        assert_eq!(profile.total().exits, 100_002);
        assert!(profile.sites().len() <= MAX_SITES + 2);
        let other = Site { reason: Reason::MmioRead, place: None };
        assert_eq!(profile.sites()[0], (other, Count { exits: 98_976, elements: 98_976 }));
        let seven = Site { reason: Reason::MmioRead, place: Some((7, 1)) };
        assert_eq!(profile.sites()[1], (seven, Count { exits: 2, elements: 2 }));
    }

    #[test]
    fn the_exits_of_two_vcpus_add_up() {
        let profile = |ports: std::ops::Range<u16>| {
            let mut profile = Profile::default();
            for port in ports {
                profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest, TIMES);
            }
            profile
        };
        let mut all = profile(0..1000);
        all.absorb(&profile(900..2000));
        assert_eq!(all.total().exits, 2100);
        let nine_hundred = Site { reason: Reason::PioIn, place: Some((900, 1)) };
        assert!(all.sites().contains(&(nine_hundred, Count { exits: 2, elements: 2 })));
        assert!(all.sites().len() <= MAX_SITES + 1);
    }

    #[test]
    fn exits_are_counted_by_phase() {
        let mut profile = Profile::default();
        for (phase, arrival) in [(0, Arrival::FromGuest), (2, Arrival::FromGuest), (2, Arrival::NextElement)]
        {
            profile.record_phase(phase, arrival);
        }
        assert_eq!(profile.phases(), [1, 0, 1]);
        let mut all = Profile::default();
        all.absorb(&profile);
        all.absorb(&profile);
        assert_eq!(all.phases(), [2, 0, 2]);
    }

    #[test]
    fn percentiles_are_those_of_all_exits_also_where_a_site_has_none() {
        let mut all = Profile::default();
        for vcpu in 0..2 {
            let mut profile = Profile::default();
            // Each has a histogram for sites that the other has none for.
            let ports: Vec<u16> = if vcpu == 0 { (0..100).collect() } else { (0..100).rev().collect() };
            for port in ports {
                profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest, TIMES);
            }
            assert_eq!(profile.total_times().0.count(), 100);
            assert_eq!(profile.total_times().1.percentile(50.0), Some(200));
            all.absorb(&profile);
        }
        let (in_kvm, in_vmm) = all.total_times();
        assert_eq!((in_kvm.count(), in_kvm.sum(), in_vmm.count()), (200, 800_000, 200));
        assert_eq!(in_kvm.percentile(99.0), Some(4000));
        let known = all.details().iter().filter(|site| site.in_kvm.percentile(50.0).is_some()).count();
        assert_eq!(known, 28, "64 each, of which those in the middle are known to both");
    }

    proptest! {
        /// Whatever the exits, the three views have the same sum.
        #[test]
        fn the_views_agree(exits in prop::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..3000)) {
            let mut profile = Profile::default();
            for (port, read, next) in &exits {
                let exit = if *read { Exit::PioIn { port: *port, size: 1 } } else { Exit::PioOut { port: *port, size: 1, data: 0 } };
                profile.record(&exit, if *next { Arrival::NextElement } else { Arrival::FromGuest }, TIMES);
            }
            let from_guest = exits.iter().filter(|(_, _, next)| !next).count() as u64;
            let total = profile.total();
            prop_assert_eq!((total.exits, total.elements), (from_guest, exits.len() as u64));
            prop_assert_eq!(profile.sites().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
            prop_assert_eq!(profile.reasons().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
        }
    }
}
