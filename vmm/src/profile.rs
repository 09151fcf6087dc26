//! Exits counted: per reason and per site, where a site is a port or an address, a direction and a width.
//!
//! A guest chooses its addresses, so the table holds [`MAX_SITES`] sites; the exits of further ones go to
//! one more site for each reason, without an address. Totals stay exact.

use crate::exit::Exit;
use crate::timeline::Timeline;
use crate::vcpu::Arrival;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

/// How many sites are told apart.
pub const MAX_SITES: usize = 1024;

/// The reason for an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Port read.
    PioIn,
    /// Port write.
    PioOut,
    /// MMIO read.
    MmioRead,
    /// MMIO write.
    MmioWrite,
    /// Hypercall.
    Hypercall,
    /// Read of a model-specific register.
    RdMsr,
    /// Write of a model-specific register.
    WrMsr,
    /// Halt.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// KVM could not emulate an instruction.
    EmulationFailure,
    /// The processor refused to enter the guest.
    FailedEntry,
    /// Anything else, by KVM's number.
    Other(u32),
}

impl Reason {
    /// Whether exits of this reason come from a port, an address, a register or a number.
    pub fn has_place(self) -> bool {
        matches!(
            self,
            Self::PioIn
                | Self::PioOut
                | Self::MmioRead
                | Self::MmioWrite
                | Self::Hypercall
                | Self::RdMsr
                | Self::WrMsr
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PioIn => "PIO in",
            Self::PioOut => "PIO out",
            Self::MmioRead => "MMIO read",
            Self::MmioWrite => "MMIO write",
            Self::Hypercall => "hypercall",
            Self::RdMsr => "RDMSR",
            Self::WrMsr => "WRMSR",
            Self::Hlt => "HLT",
            Self::Shutdown => "shutdown",
            Self::EmulationFailure => "emulation failure",
            Self::FailedEntry => "failed entry",
            Self::Other(reason) => return f.pad(&format!("reason {reason}")),
        })
    }
}

/// Where an exit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The reason, which includes the direction.
    pub reason: Reason,
    /// Port, guest physical address, number of an MSR or of a hypercall, and width in bytes. `None` for reasons that have none, and for the
    /// sites past [`MAX_SITES`].
    pub place: Option<(u64, u8)>,
}

impl Site {
    /// The site of an exit; `None` for what is no exit of the guest's.
    pub fn of(exit: &Exit) -> Option<Self> {
        let (reason, place) = match *exit {
            Exit::PioIn { port, size } => (Reason::PioIn, Some((port.into(), size))),
            Exit::PioOut { port, size, .. } => (Reason::PioOut, Some((port.into(), size))),
            Exit::MmioRead { address, size } => (Reason::MmioRead, Some((address, size))),
            Exit::MmioWrite { address, size, .. } => (Reason::MmioWrite, Some((address, size))),
            Exit::Hypercall { number } => (Reason::Hypercall, Some((number.into(), 4))),
            Exit::RdMsr { index } => (Reason::RdMsr, Some((index.into(), 8))),
            Exit::WrMsr { index, .. } => (Reason::WrMsr, Some((index.into(), 8))),
            Exit::Hlt => (Reason::Hlt, None),
            Exit::Shutdown => (Reason::Shutdown, None),
            Exit::EmulationFailure(_) => (Reason::EmulationFailure, None),
            Exit::FailedEntry { .. } => (Reason::FailedEntry, None),
            Exit::Other(reason) => (Reason::Other(reason), None),
            Exit::Interrupted => return None,
        };
        Some(Self { reason, place })
    }
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times that the guest was left.
    pub exits: u64,
    /// Accesses: one for each exit, but for string I/O one for each element.
    pub elements: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.exits = self.exits.saturating_add(other.exits);
        self.elements = self.elements.saturating_add(other.elements);
    }
}

/// The exits of one vCPU, or of all of a machine.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    sites: HashMap<Site, Count>,
    last: VecDeque<Exit>,
    timeline: Option<Arc<Timeline>>,
    /// Exits by phase of the timeline.
    phases: Vec<u64>,
}

/// How many of the last exits are remembered.
const LAST: usize = 6;

impl Profile {
    /// A profile that counts by phase, too.
    pub fn with_phases(timeline: Arc<Timeline>) -> Self {
        Self { timeline: Some(timeline), ..Default::default() }
    }

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

    /// Counts an exit. The run loop calls this, once for each [`Exit`]; nothing else counts.
    pub fn record(&mut self, exit: &Exit, arrival: Arrival) {
        let Some(site) = Site::of(exit) else { return };
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(*exit);
        let exits = u64::from(arrival == Arrival::FromGuest);
        self.sites.entry(self.place_for(site)).or_default().add(Count { exits, elements: 1 });
        if let Some(phase) = self.timeline.as_deref().map(Timeline::phase) {
            self.add_to_phase(phase, exits);
        }
    }

    /// Adds the exits of another vCPU. The last exits stay this one's.
    pub fn absorb(&mut self, other: &Self) {
        for (site, count) in other.sites() {
            self.sites.entry(self.place_for(site)).or_default().add(count);
        }
        other.phases.iter().enumerate().for_each(|(phase, exits)| self.add_to_phase(phase, *exits));
    }

    /// Has another vCPU's last exits stand for all.
    pub(crate) fn take_last_of(&mut self, other: Self) {
        self.last = other.last;
    }

    /// The site that an exit is counted at: its own, or where the table is full, the one for all others.
    fn place_for(&self, site: Site) -> Site {
        let full = self.sites.len() >= MAX_SITES && !self.sites.contains_key(&site);
        if full { Site { place: None, ..site } } else { site }
    }

    /// The last few exits, the last one last.
    pub fn last(&self) -> impl DoubleEndedIterator<Item = &Exit> {
        self.last.iter()
    }

    /// All exits.
    pub fn total(&self) -> Count {
        self.sites.values().fold(Count::default(), |mut sum, count| {
            sum.add(*count);
            sum
        })
    }

    /// The exits of each reason, in the order of [`Reason`].
    pub fn reasons(&self) -> Vec<(Reason, Count)> {
        let mut reasons: HashMap<Reason, Count> = HashMap::new();
        for (site, count) in &self.sites {
            reasons.entry(site.reason).or_default().add(*count);
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(reason, _)| *reason);
        reasons
    }

    /// The exits of each site, most first.
    pub fn sites(&self) -> Vec<(Site, Count)> {
        let mut sites: Vec<_> = self.sites.iter().map(|(site, count)| (*site, *count)).collect();
        sites.sort_by_key(|(site, count)| (std::cmp::Reverse(count.exits), *site));
        sites
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Event;
    use proptest::prelude::*;

    const OUT: Exit = Exit::PioOut { port: 0xe9, size: 1, data: 0 };

    #[test]
    fn one_exit_with_three_elements() {
        let mut profile = Profile::default();
        profile.record(&OUT, Arrival::FromGuest);
        profile.record(&OUT, Arrival::NextElement);
        profile.record(&OUT, Arrival::NextElement);
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
            profile.record(&exit, Arrival::FromGuest);
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
        profile.record(&Exit::Interrupted, Arrival::FromGuest);
        assert_eq!(profile.total(), Count::default());
    }

    #[test]
    fn the_last_exits_are_remembered_in_order() {
        let mut profile = Profile::default();
        for port in 0..10 {
            profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest);
        }
        let ports: Vec<_> = profile.last().map(|exit| Site::of(exit).unwrap().place.unwrap().0).collect();
        assert_eq!(ports, [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_most_frequent_site_comes_first() {
        let mut profile = Profile::default();
        for exit in [Exit::Hlt, OUT, OUT] {
            profile.record(&exit, Arrival::FromGuest);
        }
        let order: Vec<_> = profile.sites().into_iter().map(|(site, _)| site.reason).collect();
        assert_eq!(order, [Reason::PioOut, Reason::Hlt]);
    }

    #[test]
    fn a_guest_that_touches_everything_fills_one_table_only() {
        let mut profile = Profile::default();
        for address in 0..100_000 {
            profile.record(&Exit::MmioRead { address, size: 1 }, Arrival::FromGuest);
        }
        profile.record(&Exit::MmioRead { address: 7, size: 1 }, Arrival::FromGuest);
        profile.record(&Exit::Hlt, Arrival::FromGuest);
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
            ports.for_each(|port| profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest));
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
        let timeline = Arc::new(Timeline::default());
        let mut profile = Profile::with_phases(timeline.clone());
        profile.record(&OUT, Arrival::FromGuest);
        timeline.mark(Event::FirstByte);
        timeline.mark(Event::Userland);
        profile.record(&OUT, Arrival::FromGuest);
        profile.record(&OUT, Arrival::NextElement);
        assert_eq!(profile.phases(), [1, 0, 1]);
        let mut all = Profile::default();
        all.absorb(&profile);
        all.absorb(&profile);
        assert_eq!(all.phases(), [2, 0, 2]);
    }

    proptest! {
        /// Whatever the exits, the three views have the same sum.
        #[test]
        fn the_views_agree(exits in prop::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..3000)) {
            let mut profile = Profile::default();
            for (port, read, next) in &exits {
                let exit = if *read { Exit::PioIn { port: *port, size: 1 } } else { Exit::PioOut { port: *port, size: 1, data: 0 } };
                profile.record(&exit, if *next { Arrival::NextElement } else { Arrival::FromGuest });
            }
            let from_guest = exits.iter().filter(|(_, _, next)| !next).count() as u64;
            let total = profile.total();
            prop_assert_eq!((total.exits, total.elements), (from_guest, exits.len() as u64));
            prop_assert_eq!(profile.sites().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
            prop_assert_eq!(profile.reasons().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
        }
    }
}
