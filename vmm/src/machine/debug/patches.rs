//! Breakpoints that are an instruction in the guest's memory: an `int3`, or an `out` that always leaves the guest.
//!
//! The bytes are there only while the guest runs: a debugger that reads the memory of a stopped guest sees the guest's own.
//!
//! The `out` has two bytes, so it may cover two instructions of the guest. If the guest goes to the second one, the second
//! byte is an `out`, too, with the byte behind it as the port. So no byte of a patch executes unseen.

use crate::boot::ElfCode;
use crate::memory::{Gpa, GuestMemory, PAGE};
use crate::x86::instruction_length;
use crate::x86::probe::Probe;

/// The opcode of `out imm8, al`, and the port.
const OUT: u8 = 0xe6;
/// The port of the `out` of a breakpoint. KVM has no device there, and neither has a PC.
const OUT_PORT: u8 = OUT;
/// The ports of the devices that KVM may have: the interrupt controllers, the timer, and the speaker.
const PORTS_IN_KVM: [u8; 9] = [0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xa0, 0xa1];
/// Both bytes of an `out` change at once for other vCPUs if they are in one line of the cache.
const LINE: u64 = 64;

/// The instruction of a breakpoint in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// `int3`: the processor stops at it, on hosts that can.
    Int3,
    /// `out`: an exit on every host, in ring 0.
    Out,
}

impl Planted {
    fn code(self) -> &'static [u8] {
        match self {
            Self::Int3 => &[0xcc],
            Self::Out => &[OUT, OUT_PORT],
        }
    }

    /// The number of bytes.
    pub(super) fn len(self) -> u64 {
        self.code().len() as u64
    }
}

/// The breakpoints in memory.
#[derive(Debug)]
pub(super) struct Patches {
    planted: Planted,
    patches: Vec<Patch>,
}

#[derive(Debug)]
struct Patch {
    /// The linear address.
    address: u64,
    gpa: Gpa,
    /// The guest's own bytes. Only as many as the instruction has count.
    original: [u8; 2],
    /// If the guest's own instruction has one byte: the byte behind the patch, which is the port of an `out` at its second byte.
    port_inside: Option<u8>,
}

/// An `out` of a breakpoint that a vCPU has executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// The breakpoint at this linear address.
    Breakpoint,
    /// The breakpoint with this linear address is not at that of the vCPU: the code is mapped twice, or the vCPU is at the
    /// second byte.
    Other(u64),
}

impl Patches {
    /// Puts an instruction at each address. The first vCPU that maps an address tells its place in memory; for an address that
    /// none maps yet, the guest's file does. `None`, and nothing is changed, if the instruction cannot be at one of them.
    pub(super) fn put(
        memory: &GuestMemory,
        probes: &[Probe],
        addresses: &[u64],
        planted: Planted,
        file: Option<&ElfCode>,
    ) -> Option<Self> {
        let patch = |address: &u64| {
            let mapped =
                probes.iter().find_map(|probe| Some((probe, probe.translate_linear(*address).ok()?)));
            let (gpa, bits, ring_3) = match mapped {
                Some((probe, place)) => (
                    place.gpa,
                    probe.code_bits(),
                    place.user && (place.page.is_some() || probe.is_in_ring_3()),
                ),
                None => {
                    let (gpa, bits) = file?.find(*address, memory)?;
                    (gpa, bits, false)
                }
            };
            let patch = Patch::read(memory, *address, gpa, planted, bits)?;
            let is_fit = planted == Planted::Int3 || !ring_3 && patch.can_leave(probes.len());
            is_fit.then_some(patch)
        };
        // All bytes are read before one is changed: two addresses may have the same place.
        let patches = addresses.iter().map(patch).collect::<Option<_>>()?;
        let patches = Self { planted, patches };
        patches.patches.iter().for_each(|patch| patch.set(memory, planted));
        Some(patches)
    }

    /// Takes the instruction at an address away for a while, so that a vCPU can execute the guest's own there.
    pub(super) fn lift(&self, memory: &GuestMemory, address: u64) {
        self.around(address).for_each(|patch| patch.remove(memory, self.planted));
    }

    /// Puts it back.
    pub(super) fn put_back(&self, memory: &GuestMemory, address: u64) {
        self.around(address).for_each(|patch| patch.set(memory, self.planted));
    }

    /// Takes all of them away.
    pub(super) fn remove(self, memory: &GuestMemory) {
        self.patches.iter().for_each(|patch| patch.remove(memory, self.planted));
    }

    /// True if an `out` to this port may be that of a breakpoint.
    pub(super) fn uses_port(&self, port: u8) -> bool {
        self.planted == Planted::Out
            && (port == OUT_PORT || self.patches.iter().any(|patch| patch.port_inside == Some(port)))
    }

    /// The breakpoint whose `out` is at this linear address, and at this place in memory.
    pub(super) fn hit(&self, address: u64, gpa: Gpa, port: u8) -> Option<Hit> {
        let at = |place: u64| self.patches.iter().filter(move |patch| patch.gpa.0 == place);
        if port == OUT_PORT {
            let mut found = at(gpa.0).peekable();
            let first = found.peek().map(|patch| patch.address);
            if let Some(first) = first {
                let is_exact = found.any(|patch| patch.address == address);
                return Some(if is_exact { Hit::Breakpoint } else { Hit::Other(first) });
            }
        }
        // The byte behind the patch may be another breakpoint.
        let is_port = |own: u8| port == own || port == OUT_PORT;
        let mut inside = at(gpa.0.checked_sub(1)?).filter(|patch| patch.port_inside.is_some_and(is_port));
        inside.next().map(|patch| Hit::Other(patch.address))
    }

    /// True if the guest's own instruction at an address has the bytes of a breakpoint.
    pub(super) fn is_own(&self, address: u64) -> bool {
        let mut patches = self.patches.iter().filter(|patch| patch.address == address);
        patches.any(|patch| patch.original.starts_with(self.planted.code()))
    }

    /// The patch at an address, and those that share a byte with it.
    fn around(&self, address: u64) -> impl Iterator<Item = &Patch> {
        let len = self.planted.len();
        let places = self.patches.iter().filter(move |patch| patch.address == address);
        let place = places.map(|patch| patch.gpa.0).next();
        self.patches.iter().filter(move |patch| place.is_some_and(|place| patch.gpa.0.abs_diff(place) < len))
    }
}

impl Patch {
    /// Reads the guest's own bytes.
    fn read(memory: &GuestMemory, address: u64, gpa: Gpa, planted: Planted, bits: u32) -> Option<Self> {
        let len = planted.code().len();
        let mut original = [0; 2];
        if !memory.read(gpa, original.get_mut(..len)?) {
            return None;
        }
        let port_inside = match planted {
            Planted::Int3 => None,
            Planted::Out => Self::behind(memory, gpa, bits)?,
        };
        Some(Self { address, gpa, original, port_inside })
    }

    /// The byte behind an `out` that covers two instructions. `None` if there must be no `out`.
    fn behind(memory: &GuestMemory, gpa: Gpa, bits: u32) -> Option<Option<u8>> {
        let mut code = [0; 16];
        if !memory.read(gpa, &mut code) {
            return None;
        }
        let length = instruction_length(bits, &code).unwrap_or(1);
        let behind = code.get(2..)?;
        // The next instruction may leave at the place behind the patch several times.
        let prefix = |byte: &&u8| {
            matches!(
                **byte,
                0x66 | 0x67 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x40..=0x4f
            )
        };
        let is_string_out = matches!(behind.iter().find(|byte| !prefix(byte)), Some(0x6e | 0x6f));
        let port = behind.first().copied()?;
        match length {
            1 | 2 if is_string_out => None,
            // An `out` of the guest's own is there, or KVM would handle the port.
            1 if matches!(port, 0xee | 0xef) || PORTS_IN_KVM.contains(&port) => None,
            1 => Some(Some(port)),
            _ => Some(None),
        }
    }

    /// True if the two bytes of an `out` can be here: in one page, and with other vCPUs in one line of the cache.
    fn can_leave(&self, vcpus: usize) -> bool {
        let last = |size: u64| self.gpa.0 & size.wrapping_sub(1) == size.wrapping_sub(1);
        !last(PAGE) && (vcpus <= 1 || !last(LINE))
    }

    fn set(&self, memory: &GuestMemory, planted: Planted) {
        // It was read, so it is memory.
        let _ = memory.write(self.gpa, planted.code());
    }

    fn remove(&self, memory: &GuestMemory, planted: Planted) {
        let code = planted.code();
        let mut now = [0; 2];
        let Some(now) = now.get_mut(..code.len()) else { return };
        if !memory.read(self.gpa, now) {
            return;
        }
        // Code that the guest has put there meanwhile stays.
        let bytes = now.iter_mut().zip(code).zip(self.original);
        bytes.filter(|((now, code), _)| **now == **code).for_each(|((now, _), original)| *now = original);
        let _ = memory.write(self.gpa, now);
    }
}
