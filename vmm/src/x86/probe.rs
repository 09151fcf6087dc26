//! The probe: from an address of the guest's to bytes of its memory.
//!
//! ```text
//! guest virtual --(segment)--> linear --(page tables)--> guest physical --(memory slots)--> bytes
//! ```
//!
//! The page tables are walked here, as the processor does it: two levels of 32-bit entries, three with
//! physical address extension, four or five in long mode (Intel SDM volume 3, sections 4.3 to 4.5). Rights
//! are not checked: a probe sees what a debugger would.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

use crate::memory::{Gpa, GuestMemory, PAGE};
use crate::x86::modes;
use kvm_bindings::kvm_sregs;

/// CR4: 4 MiB pages in 32-bit page tables.
const CR4_PSE: u64 = 1 << 4;
/// CR4: 57-bit linear addresses.
const CR4_LA57: u64 = 1 << 12;
/// The physical address in a 64-bit entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Why there is nothing at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Its upper bits are not copies of the highest that counts.
    #[error("{linear:#x} is not canonical")]
    NotCanonical {
        /// The linear address.
        linear: u64,
    },
    /// A page table says that it is not mapped.
    #[error("{linear:#x} is not mapped: its {table} entry at {at:#x} is {entry:#x}")]
    NotMapped {
        /// The linear address.
        linear: u64,
        /// The table whose entry says so.
        table: &'static str,
        /// Guest physical address of the entry.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// A page table lies where there is no memory.
    #[error("{linear:#x}: its {table} entry would be at {at:#x}, where there is no memory")]
    NoTable {
        /// The linear address.
        linear: u64,
        /// The table.
        table: &'static str,
        /// Guest physical address of the entry.
        at: u64,
    },
    /// It is mapped to where there is no memory.
    #[error("{linear:#x} is {gpa:#x}, where there is no memory")]
    NoMemory {
        /// The linear address.
        linear: u64,
        /// Guest physical address.
        gpa: u64,
    },
    /// The range goes past the last address.
    #[error("{len:#x} bytes from {address:#x} go past the last address")]
    Wraps {
        /// Guest virtual address of the first byte.
        address: u64,
        /// How many bytes.
        len: u64,
    },
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address.
    pub gpa: Gpa,
    /// Size of its page in bytes; `None` without paging.
    pub page: Option<u64>,
    /// Whether all tables on the way let it be written.
    pub writable: bool,
}

/// A level of page tables: its name, the first bit of the linear address that it decodes, and how many bits.
struct Level(&'static str, u32, u32);

const LONG: [Level; 5] = [
    Level("PML5", 48, 9),
    Level("PML4", 39, 9),
    Level("PDPT", 30, 9),
    Level("PD", 21, 9),
    Level("PT", 12, 9),
];
const PAE: [Level; 3] = [Level("PDPT", 30, 2), Level("PD", 21, 9), Level("PT", 12, 9)];
const NARROW: [Level; 2] = [Level("PD", 22, 10), Level("PT", 12, 10)];

/// Sees a guest's memory through the eyes of one vCPU, at one moment.
#[derive(Clone, Debug)]
pub struct Probe {
    memory: GuestMemory,
    sregs: kvm_sregs,
}

impl Probe {
    /// A probe for a vCPU with these special registers.
    pub fn new(memory: GuestMemory, sregs: kvm_sregs) -> Self {
        Self { memory, sregs }
    }

    /// Whether the vCPU executes 64-bit code, where segments have no base.
    pub(crate) fn is_long(&self) -> bool {
        self.sregs.efer & modes::EFER_LMA != 0 && self.sregs.cs.l == 1
    }

    /// The linear address of an address in the segment with this base.
    pub(crate) fn linear(&self, base: u64, address: u64) -> u64 {
        if self.is_long() { address } else { base.wrapping_add(address) & 0xffff_ffff }
    }

    /// Where a linear address leads.
    ///
    /// # Errors
    /// It is not mapped.
    pub fn translate_linear(&self, linear: u64) -> Result<Translation, ProbeError> {
        let Self { sregs, .. } = self;
        if sregs.cr0 & modes::CR0_PG == 0 {
            return Ok(Translation { gpa: Gpa(linear), page: None, writable: true });
        }
        let long = sregs.efer & modes::EFER_LMA != 0;
        if long {
            let (levels, sign) = if sregs.cr4 & CR4_LA57 != 0 { (&LONG[..], 56) } else { (&LONG[1..], 47) };
            let upper = linear >> sign;
            if upper != 0 && upper != u64::MAX >> sign {
                return Err(ProbeError::NotCanonical { linear });
            }
            return self.walk(linear, levels, sregs.cr3 & ADDRESS);
        }
        match sregs.cr4 & modes::CR4_PAE != 0 {
            true => self.walk(linear, &PAE, sregs.cr3 & 0xffff_ffe0),
            false => self.walk(linear, &NARROW, sregs.cr3 & 0xffff_f000),
        }
    }

    fn walk(&self, linear: u64, levels: &[Level], root: u64) -> Result<Translation, ProbeError> {
        let narrow = levels.len() == NARROW.len();
        let width: u64 = if narrow { 4 } else { 8 };
        let (mut at_table, mut writable) = (root, true);
        for &Level(table, shift, bits) in levels {
            let index = linear >> shift & (1u64 << bits).wrapping_sub(1);
            let at = at_table.saturating_add(index.saturating_mul(width));
            let mut bytes = [0; 8];
            let entry = bytes.get_mut(..if narrow { 4 } else { 8 }).unwrap_or_default();
            if !self.memory.read(Gpa(at), entry) {
                return Err(ProbeError::NoTable { linear, table, at });
            }
            let entry = u64::from_le_bytes(bytes);
            if entry & modes::PTE_PRESENT == 0 {
                return Err(ProbeError::NotMapped { linear, table, at, entry });
            }
            // The page directory pointers of PAE have no such bit.
            let pointers = levels.len() == PAE.len() && shift == 30;
            writable &= pointers || entry & modes::PTE_WRITABLE != 0;
            let large = entry & modes::PDE_LARGE != 0
                && match shift {
                    30 => !pointers,
                    22 => self.sregs.cr4 & CR4_PSE != 0,
                    21 => true,
                    _ => false,
                };
            if shift == 12 || large {
                let within = (1u64 << shift).wrapping_sub(1);
                // Large 32-bit pages keep bits 32 to 39 of their address in bits 13 to 20.
                let (base, high) = match narrow {
                    true => (entry & 0xffff_f000, if large { (entry >> 13 & 0xff) << 32 } else { 0 }),
                    false => (entry & ADDRESS, 0),
                };
                let gpa = Gpa((base & !within) | high | (linear & within));
                return Ok(Translation { gpa, page: Some(1 << shift), writable });
            }
            at_table = if narrow { entry & 0xffff_f000 } else { entry & ADDRESS };
        }
        Err(ProbeError::NoTable { linear, table: "PT", at: at_table })
    }

    /// Where a guest virtual address leads: an address in the data segment (DS), as a pointer of the guest's
    /// is.
    ///
    /// # Errors
    /// It is not mapped.
    pub fn translate(&self, address: u64) -> Result<Translation, ProbeError> {
        self.translate_linear(self.linear(self.sregs.ds.base, address))
    }

    /// Fills `data` from the guest virtual address `address` on, across pages.
    ///
    /// # Errors
    /// Not all of the range is memory; `data` is then undefined.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ProbeError> {
        let mut done = 0u64;
        for (linear, len) in self.pieces(address, data.len())? {
            let gpa = self.translate_linear(linear)?.gpa;
            let from = usize::try_from(done).unwrap_or(usize::MAX);
            done = done.saturating_add(len);
            let to = usize::try_from(done).unwrap_or(usize::MAX);
            let piece = data.get_mut(from..to).unwrap_or_default();
            if !self.memory.read(gpa, piece) {
                return Err(ProbeError::NoMemory { linear, gpa: gpa.0 });
            }
        }
        Ok(())
    }

    /// The linear addresses of a range, page by page, each with a length. Their sum is `len`.
    fn pieces(&self, address: u64, len: usize) -> Result<impl Iterator<Item = (u64, u64)>, ProbeError> {
        let len = len as u64;
        let wraps = ProbeError::Wraps { address, len };
        let last = if self.is_long() { u64::MAX } else { 0xffff_ffff };
        let start = self.linear(self.sregs.ds.base, address);
        if address > last || len.saturating_sub(1) > last.saturating_sub(start) {
            return Err(wraps);
        }
        let (mut at, mut left) = (start, len);
        Ok(std::iter::from_fn(move || {
            let piece = left.min(PAGE.saturating_sub(at & PAGE.wrapping_sub(1)));
            let item = (piece > 0).then_some((at, piece));
            // Past the last address nothing is left.
            at = at.wrapping_add(piece);
            left = left.saturating_sub(piece);
            item
        }))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::memory::{TABLES, TABLES_SIZE};
    use crate::x86::modes::Mode;
    use proptest::prelude::*;

    fn memory() -> GuestMemory {
        GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap()
    }

    fn sregs(mode: Mode) -> kvm_sregs {
        modes::sregs(mode, kvm_sregs::default(), TABLES, modes::VcpuIndex::ALONE)
    }

    /// Entries of a table: the index, and the entry.
    fn write(memory: &GuestMemory, table: u64, width: usize, entries: &[(u64, u64)]) {
        for (index, entry) in entries {
            memory.write(Gpa(table + index * width as u64), &entry.to_le_bytes()[..width]).unwrap();
        }
    }

    #[test]
    fn without_paging_an_address_is_its_own() {
        let mut real = sregs(Mode::Real);
        real.ds.base = 0x1230;
        let probe = Probe::new(memory(), real);
        assert_eq!(probe.translate(4).unwrap(), Translation { gpa: Gpa(0x1234), page: None, writable: true });
        let probe = Probe::new(memory(), sregs(Mode::Protected));
        assert_eq!(probe.translate(0x8000_0000).unwrap().gpa, Gpa(0x8000_0000));
    }

    #[test]
    fn long_mode_pages_of_all_sizes() {
        let memory = memory();
        write(&memory, 0x1000, 8, &[(0, 0x2003), (511, 0x2003)]);
        write(&memory, 0x2000, 8, &[(0, 0x3003), (1, 0x4000_0081), (2, 0x5001)]);
        write(&memory, 0x3000, 8, &[(0, 0x4003), (1, 0x20_0083)]);
        write(&memory, 0x4000, 8, &[(0, 0x9003), (1, 0x8001), (2, 0)]);
        let probe = Probe::new(memory, kvm_sregs { cr3: 0x1000, ..sregs(Mode::Long) });
        let at =
            |address| probe.translate(address).map(|mapping| (mapping.gpa.0, mapping.page, mapping.writable));
        assert_eq!(at(0x123), Ok((0x9123, Some(0x1000), true)));
        assert_eq!(at(0x1ffc), Ok((0x8ffc, Some(0x1000), false)));
        assert_eq!(at(0x20_0001), Ok((0x20_0001, Some(2 << 20), true)));
        assert_eq!(at(0x4000_0005), Ok((0x4000_0005, Some(1 << 30), false)));
        assert_eq!(at(0xffff_ff80_0000_0123), Ok((0x9123, Some(0x1000), true)), "the upper half");
        let unmapped = |linear, table, at| ProbeError::NotMapped { linear, table, at, entry: 0 };
        assert_eq!(at(0x2000), Err(unmapped(0x2000, "PT", 0x4010)));
        assert_eq!(at(0x40_0000), Err(unmapped(0x40_0000, "PD", 0x3010)));
        assert_eq!(at(0xc000_0000), Err(unmapped(0xc000_0000, "PDPT", 0x2018)));
        assert_eq!(at(0x8000_0000), Err(unmapped(0x8000_0000, "PD", 0x5000)));
        assert_eq!(at(1 << 47), Err(ProbeError::NotCanonical { linear: 1 << 47 }));
    }

    #[test]
    fn five_levels_where_they_are_switched_on() {
        let memory = memory();
        write(&memory, 0x1000, 8, &[(1, 0x2003)]);
        write(&memory, 0x2000, 8, &[(0, 0x3003)]);
        write(&memory, 0x3000, 8, &[(0, 0x83)]);
        let mut sregs = kvm_sregs { cr3: 0x1000, ..sregs(Mode::Long) };
        sregs.cr4 |= CR4_LA57;
        let probe = Probe::new(memory, sregs);
        assert_eq!(probe.translate((1 << 48) + 7).unwrap().gpa, Gpa(7));
        assert!(matches!(probe.translate(1 << 56), Err(ProbeError::NotCanonical { .. })));
    }

    #[test]
    fn pae_and_32_bit_page_tables() {
        let memory = memory();
        write(&memory, 0x1020, 8, &[(0, 0x2001), (3, 0x2001)]);
        write(&memory, 0x2000, 8, &[(0, 0x3003), (1, 0x20_0083)]);
        write(&memory, 0x3000, 8, &[(5, 0x7003)]);
        write(&memory, 0x4000, 4, &[(0, 0x5003), (1, 0x40_2083), (2, 0x80_0003)]);
        write(&memory, 0x5000, 4, &[(1023, 0x6001)]);
        let mut pae = sregs(Mode::Protected);
        (pae.cr0, pae.cr3, pae.cr4) = (pae.cr0 | modes::CR0_PG, 0x1020, modes::CR4_PAE);
        let probe = Probe::new(memory.clone(), pae);
        assert_eq!(probe.translate(0x5123).unwrap().gpa, Gpa(0x7123));
        assert_eq!(probe.translate(0xc020_0042).unwrap().gpa, Gpa(0x20_0042));
        assert!(matches!(probe.translate(1 << 30), Err(ProbeError::NotMapped { table: "PDPT", .. })));

        let narrow = kvm_sregs { cr3: 0x4000, cr4: CR4_PSE, ..pae };
        let probe = Probe::new(memory.clone(), narrow);
        let top = probe.translate(0x3f_f00c).unwrap();
        assert_eq!((top.gpa, top.page, top.writable), (Gpa(0x600c), Some(0x1000), false));
        let large = probe.translate(0x40_0123).unwrap();
        assert_eq!((large.gpa, large.page), (Gpa(0x1_0040_0123), Some(4 << 20)), "bit 13 is bit 32");
        let none = Probe::new(memory, kvm_sregs { cr4: 0, ..narrow });
        assert!(matches!(none.translate(0x40_0123), Err(ProbeError::NoTable { table: "PT", .. })));
    }

    #[test]
    fn bytes_across_pages_come_from_both() {
        let memory = memory();
        write(&memory, 0x1000, 8, &[(0, 0x2003)]);
        write(&memory, 0x2000, 8, &[(0, 0x3003)]);
        write(&memory, 0x3000, 8, &[(0, 0x4003)]);
        write(&memory, 0x4000, 8, &[(0, 0x9003), (1, 0x8003), (3, 0x7000_0003)]);
        memory.write(Gpa(0x9ffe), b"he").unwrap();
        memory.write(Gpa(0x8000), b"llo").unwrap();
        let probe = Probe::new(memory, kvm_sregs { cr3: 0x1000, ..sregs(Mode::Long) });
        let mut data = [0; 5];
        probe.read(0xffe, &mut data).unwrap();
        assert_eq!(&data, b"hello");
        assert!(matches!(probe.read(0x1ffe, &mut data), Err(ProbeError::NotMapped { linear: 0x2000, .. })));
        assert!(matches!(probe.read(0x3000, &mut data), Err(ProbeError::NoMemory { gpa: 0x7000_0000, .. })));
        assert_eq!(probe.read(0x2000, &mut []), Ok(()), "nothing is everywhere");
    }

    #[test]
    fn a_range_does_not_wrap() {
        let mut data = [0; 2];
        let long = Probe::new(memory(), sregs(Mode::Long));
        assert!(matches!(long.read(u64::MAX, &mut data), Err(ProbeError::Wraps { .. })));
        assert!(matches!(long.read(u64::MAX, &mut data[..1]), Err(ProbeError::NotMapped { .. })));
        let protected = Probe::new(memory(), sregs(Mode::Protected));
        assert!(matches!(protected.read(0xffff_ffff, &mut data), Err(ProbeError::Wraps { .. })));
        assert!(matches!(protected.read(1 << 32, &mut data), Err(ProbeError::Wraps { .. })));
        assert!(matches!(protected.read(0xffff_ffff, &mut data[..1]), Err(ProbeError::NoMemory { .. })));
    }

    proptest! {
        /// Whatever the tables and registers hold, a probe answers.
        #[test]
        fn no_tables_are_too_strange(seed in any::<[u64; 8]>(), cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(), address in any::<u64>()) {
            let memory = GuestMemory::new(&[(Gpa(0), 0x4000)]).unwrap();
            for (place, word) in (0..0x4000).step_by(8).zip(seed.iter().cycle()) {
                memory.write(Gpa(place), &(word & 0x3fff).to_le_bytes()).unwrap();
            }
            let mut sregs = sregs(Mode::Long);
            (sregs.cr3, sregs.cr4, sregs.efer) = (cr3 & 0x7fff, cr4, efer);
            (sregs.ds.base, sregs.cs.l) = (seed[0], seed[1] as u8 & 1);
            let probe = Probe::new(memory, sregs);
            let _ = (probe.translate(address), probe.read(address, &mut [0; 9000]));
        }
    }
}
