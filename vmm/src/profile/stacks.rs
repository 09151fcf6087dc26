//! Samples of vCPUs, counted by stack.
//!
//! A guest chooses its stacks, so the table is limited to [`MAX_STACKS`] stacks of [`MAX_DEPTH`] addresses. Samples with
//! further stacks are counted together. The number of samples of each kind stays exact.

use crate::exit::Site;
use crate::host::sort_by;
use std::collections::HashMap;

/// The number of different stacks that are kept.
pub const MAX_STACKS: usize = 1 << 14;
/// The number of addresses of a stack that are kept, the innermost ones.
pub const MAX_DEPTH: usize = 64;

/// The activity of a vCPU at a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SampleKind {
    /// It executed code of the guest.
    Guest,
    /// Its thread was in KVM: KVM handled an exit itself, or emulated code.
    Kvm,
    /// One of both, because this host does not tell.
    GuestOrKvm,
    /// Its thread handled an exit at this site. `None` if there was no exit: it came from a turn of another part.
    Vmm(Option<Site>),
    /// It was halted, and waited for an interrupt.
    Halted,
    /// It made an exit at this site. Only if exits are sampled.
    Exit(Site),
}

/// A sample: the place of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackSample {
    /// The number of the vCPU.
    pub vcpu: u32,
    /// Its activity.
    pub kind: SampleKind,
    /// The linear address of the instruction, and then those to which the functions on the stack return, the innermost
    /// first.
    pub addresses: Box<[u64]>,
}

/// The samples of a run, counted by stack.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    counts: HashMap<StackSample, u64>,
    total: u64,
    lost: u64,
    kinds: [u64; 6],
}

impl Stacks {
    /// Counts samples.
    pub fn add(&mut self, mut sample: StackSample, count: u64) {
        if sample.addresses.len() > MAX_DEPTH {
            sample.addresses = sample.addresses.iter().take(MAX_DEPTH).copied().collect();
        }
        self.total = self.total.saturating_add(count);
        if let Some(kind) = self.kinds.get_mut(index(sample.kind)) {
            *kind = kind.saturating_add(count);
        }
        let has_room = self.counts.len() < MAX_STACKS;
        match self.counts.get_mut(&sample) {
            Some(known) => *known = known.saturating_add(count),
            None if has_room => drop(self.counts.insert(sample, count)),
            None => self.lost = self.lost.saturating_add(count),
        }
    }

    /// The number of samples.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The number of samples that are not in [`entries`](Self::entries), because there were too many different stacks.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The number of samples of a kind, at all sites.
    pub fn of_kind(&self, kind: SampleKind) -> u64 {
        self.kinds.get(index(kind)).copied().unwrap_or(0)
    }

    /// The stacks with their numbers of samples, in the order of the stacks.
    pub fn entries(&self) -> Vec<(&StackSample, u64)> {
        let mut entries: Vec<_> = self.counts.iter().map(|(sample, count)| (sample, *count)).collect();
        sort_by(&mut entries, Ord::cmp);
        entries
    }
}

/// The index of a kind in the counts.
fn index(kind: SampleKind) -> usize {
    match kind {
        SampleKind::Guest => 0,
        SampleKind::Kvm => 1,
        SampleKind::GuestOrKvm => 2,
        SampleKind::Vmm(_) => 3,
        SampleKind::Halted => 4,
        SampleKind::Exit(_) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: SampleKind, addresses: &[u64]) -> StackSample {
        StackSample { vcpu: 0, kind, addresses: addresses.into() }
    }

    #[test]
    fn equal_stacks_are_counted_together() {
        let mut stacks = Stacks::default();
        stacks.add(sample(SampleKind::Guest, &[1, 2]), 1);
        stacks.add(sample(SampleKind::Kvm, &[1, 2]), 2);
        stacks.add(sample(SampleKind::Guest, &[1, 2]), 3);
        let counts: Vec<_> = stacks.entries().iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [4, 2]);
        assert_eq!((stacks.total(), stacks.lost()), (6, 0));
        assert_eq!((stacks.of_kind(SampleKind::Guest), stacks.of_kind(SampleKind::Vmm(None))), (4, 0));
    }

    #[test]
    fn a_guest_with_endless_stacks_takes_bounded_memory() {
        let mut stacks = Stacks::default();
        for address in 0..MAX_STACKS as u64 + 10 {
            stacks.add(sample(SampleKind::Guest, &[address]), 1);
        }
        stacks.add(sample(SampleKind::Guest, &[0]), 1);
        assert_eq!(stacks.entries().len(), MAX_STACKS);
        assert_eq!((stacks.total(), stacks.lost()), (MAX_STACKS as u64 + 11, 10));
        let mut stacks = Stacks::default();
        stacks.add(sample(SampleKind::Guest, &[7; 1000]), 1);
        assert_eq!(stacks.entries()[0].0.addresses.len(), MAX_DEPTH);
    }
}
