//! Breakpoints that are an `int3` in the guest's memory.
//!
//! The bytes are there only while the guest runs: a debugger that reads the memory of a stopped guest sees the guest's own.

use crate::memory::{Gpa, GuestMemory};
use crate::x86::probe::Probe;

/// The instruction, of one byte.
const INT3: u8 = 0xcc;

/// The breakpoints in memory.
#[derive(Debug)]
pub(super) struct Patches(Vec<Patch>);

#[derive(Debug)]
struct Patch {
    /// The linear address.
    address: u64,
    gpa: Gpa,
    /// The guest's own byte.
    original: u8,
}

impl Patches {
    /// Puts an `int3` at each address. The first vCPU that maps an address tells its place in memory. `None`, and nothing is
    /// changed, if there is no memory at one of them.
    pub(super) fn put(memory: &GuestMemory, probes: &[Probe], addresses: &[u64]) -> Option<Self> {
        let patch = |address: &u64| {
            let mapped = probes.iter().find_map(|probe| probe.translate_linear(*address).ok())?;
            let mut original = [0];
            let [original] = memory.read(mapped.gpa, &mut original).then_some(original)?;
            Some(Patch { address: *address, gpa: mapped.gpa, original })
        };
        // All bytes are read before one is changed: two addresses may have the same place.
        let patches = Self(addresses.iter().map(patch).collect::<Option<_>>()?);
        patches.0.iter().for_each(|patch| patch.set(memory));
        Some(patches)
    }

    /// Takes the `int3` at an address away for a while, so that a vCPU can execute the instruction there.
    pub(super) fn lift(&self, memory: &GuestMemory, address: u64) {
        self.at(address).for_each(|patch| patch.remove(memory));
    }

    /// Puts the `int3` back.
    pub(super) fn put_back(&self, memory: &GuestMemory, address: u64) {
        self.at(address).for_each(|patch| patch.set(memory));
    }

    /// Takes all of them away.
    pub(super) fn remove(self, memory: &GuestMemory) {
        self.0.iter().for_each(|patch| patch.remove(memory));
    }

    fn at(&self, address: u64) -> impl Iterator<Item = &Patch> {
        self.0.iter().filter(move |patch| patch.address == address)
    }
}

impl Patch {
    fn set(&self, memory: &GuestMemory) {
        // It was read, so it is memory.
        let _ = memory.write(self.gpa, &[INT3]);
    }

    fn remove(&self, memory: &GuestMemory) {
        let mut now = [0];
        // Code that the guest has put there meanwhile stays.
        if memory.read(self.gpa, &mut now) && now == [INT3] {
            let _ = memory.write(self.gpa, &[self.original]);
        }
    }
}
