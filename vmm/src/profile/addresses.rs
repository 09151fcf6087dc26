//! Exits counted per address of the guest's code, for a report by function.
//!
//! A guest chooses its code, so the table is limited to [`MAX_ADDRESSES`] entries. The exits of further addresses go to one
//! entry per reason, without an address, so totals stay exact.

use crate::exit::{Arrival, Exit, Site};
use crate::profile::{Count, Times};
use std::collections::HashMap;

/// The number of addresses, each with a site, that a profile keeps apart.
pub const MAX_ADDRESSES: usize = 4096;

/// The exits at an address for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressProfile {
    /// RIP as KVM leaves it: at the instruction, or behind it. `None` for those past the limit, and if it is not known.
    pub rip: Option<u64>,
    /// The site.
    pub site: Site,
    /// The number of exits.
    pub count: Count,
    /// The time in KVM_RUN before the exits, in nanoseconds.
    pub in_kvm: u64,
    /// The time in the VMM, in nanoseconds.
    pub in_vmm: u64,
}

/// The exits per address of one vCPU, or of all vCPUs of a machine.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The entries in the order of their first exit.
    entries: Vec<AddressProfile>,
    /// The index of each entry.
    places: HashMap<(Option<u64>, Site), usize>,
    /// The index of the last entry: many guests exit at one address again and again.
    last: usize,
}

impl Addresses {
    /// Counts an exit. A store that the kernel queued has no address: the guest was elsewhere when it was taken.
    pub fn record(&mut self, exit: &Exit, arrival: Arrival, rip: Option<u64>, times: Times) {
        let Some(site) = Site::of(exit) else { return };
        let rip = rip.filter(|_| arrival != Arrival::Coalesced);
        let exits = u64::from(arrival == Arrival::FromGuest);
        let count = Count { exits, elements: 1 };
        self.add(AddressProfile { rip, site, count, in_kvm: times.in_kvm, in_vmm: times.in_vmm });
    }

    /// Adds exits to the entry of their address and site.
    fn add(&mut self, from: AddressProfile) {
        let is = |entry: &AddressProfile| entry.rip == from.rip && entry.site == from.site;
        let place = match self.entries.get(self.last) {
            Some(entry) if is(entry) => self.last,
            _ => self.find(from.rip, from.site),
        };
        self.last = place;
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.count.add(from.count);
        entry.in_kvm = entry.in_kvm.saturating_add(from.in_kvm);
        entry.in_vmm = entry.in_vmm.saturating_add(from.in_vmm);
    }

    /// The index of an entry, which is made if there is none.
    fn find(&mut self, rip: Option<u64>, site: Site) -> usize {
        let is_full = self.entries.len() >= MAX_ADDRESSES && !self.places.contains_key(&(rip, site));
        let (rip, site) = if is_full { (None, Site { place: None, ..site }) } else { (rip, site) };
        let next = self.entries.len();
        let place = *self.places.entry((rip, site)).or_insert(next);
        if place == next {
            self.entries.push(AddressProfile { rip, site, count: Count::default(), in_kvm: 0, in_vmm: 0 });
        }
        place
    }

    /// Adds the exits of another vCPU.
    pub(crate) fn absorb(&mut self, other: &Self) {
        other.entries.iter().for_each(|entry| self.add(*entry));
    }

    /// The entries, in the order of their first exit.
    pub fn entries(&self) -> &[AddressProfile] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(addresses: &Addresses) -> u64 {
        addresses.entries().iter().map(|entry| entry.count.exits).sum()
    }

    #[test]
    fn exits_are_counted_by_address_and_site() {
        let mut addresses = Addresses::default();
        let times = Times { in_kvm: 10, in_vmm: 1 };
        let out = Exit::PioOut { port: 0xe9, size: 1, data: 0 };
        for (rip, arrival) in [
            (0x10, Arrival::FromGuest),
            (0x20, Arrival::FromGuest),
            (0x10, Arrival::FromGuest),
            (0x10, Arrival::NextElement),
        ] {
            addresses.record(&out, arrival, Some(rip), times);
        }
        addresses.record(&Exit::Hlt, Arrival::FromGuest, Some(0x10), times);
        addresses.record(&out, Arrival::Coalesced, Some(0x99), times);
        let found: Vec<_> = addresses
            .entries()
            .iter()
            .map(|at| (at.rip, at.count.exits, at.count.elements, at.in_kvm))
            .collect();
        let of = |rip: u64, exits, elements, time| (Some(rip), exits, elements, time);
        assert_eq!(found, [of(0x10, 2, 3, 30), of(0x20, 1, 1, 10), of(0x10, 1, 1, 10), (None, 0, 1, 10)]);
    }

    #[test]
    fn the_table_is_bounded_and_the_total_is_exact() {
        let mut addresses = Addresses::default();
        for rip in 0..10_000 {
            addresses.record(&Exit::Hlt, Arrival::FromGuest, Some(rip), Times::default());
        }
        assert_eq!((addresses.entries().len(), exits(&addresses)), (MAX_ADDRESSES + 1, 10_000));
        let mut sum = Addresses::default();
        sum.absorb(&addresses);
        sum.absorb(&addresses);
        assert_eq!((sum.entries().len(), exits(&sum)), (MAX_ADDRESSES + 1, 20_000));
    }
}
