use super::*;
use crate::memory::{TABLES, TABLES_SIZE};
use crate::x86::modes::{self, Mode};
use proptest::prelude::*;

fn memory() -> GuestMemory {
    GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap()
}

fn sregs(mode: Mode) -> Sregs {
    modes::sregs(mode, Sregs::default(), TABLES, modes::VcpuIndex::ALONE)
}

/// Writes entries of a table, each by its index.
fn write(memory: &GuestMemory, table: u64, width: usize, entries: &[(u64, u64)]) {
    for (index, entry) in entries {
        memory.write(Gpa(table + index * width as u64), &entry.to_le_bytes()[..width]).unwrap();
    }
}

#[test]
fn without_paging_linear_and_physical_addresses_are_equal() {
    let mut real = sregs(Mode::Real);
    real.ds.base = 0x1230;
    let probe = Probe::new(memory(), real);
    assert_eq!(
        probe.translate(4).unwrap(),
        Translation { gpa: Gpa(0x1234), page: None, writable: true, user: true }
    );
    let probe = Probe::new(memory(), sregs(Mode::Protected));
    assert_eq!(probe.translate(0x8000_0000).unwrap().gpa, Gpa(0x8000_0000));
}

#[test]
fn long_mode_translates_pages_of_all_sizes() {
    let memory = memory();
    write(&memory, 0x1000, 8, &[(0, 0x2003), (511, 0x2003)]);
    write(&memory, 0x2000, 8, &[(0, 0x3003), (1, 0x4000_0081), (2, 0x5001)]);
    write(&memory, 0x3000, 8, &[(0, 0x4003), (1, 0x20_0083)]);
    write(&memory, 0x4000, 8, &[(0, 0x9003), (1, 0x8001), (2, 0)]);
    let probe = Probe::new(memory, Sregs { cr3: 0x1000, ..sregs(Mode::Long) });
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
fn five_levels_are_walked_if_cr4_enables_them() {
    let memory = memory();
    write(&memory, 0x1000, 8, &[(1, 0x2003)]);
    write(&memory, 0x2000, 8, &[(0, 0x3003)]);
    write(&memory, 0x3000, 8, &[(0, 0x83)]);
    let mut sregs = Sregs { cr3: 0x1000, ..sregs(Mode::Long) };
    sregs.cr4 |= modes::CR4_LA57;
    let probe = Probe::new(memory, sregs);
    assert_eq!(probe.translate((1 << 48) + 7).unwrap().gpa, Gpa(7));
    assert!(matches!(probe.translate(1 << 56), Err(ProbeError::NotCanonical { .. })));
}

#[test]
fn pae_and_32_bit_page_tables_are_walked() {
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

    let narrow = Sregs { cr3: 0x4000, cr4: modes::CR4_PSE, ..pae };
    let probe = Probe::new(memory.clone(), narrow);
    let top = probe.translate(0x3f_f00c).unwrap();
    assert_eq!((top.gpa, top.page, top.writable), (Gpa(0x600c), Some(0x1000), false));
    let large = probe.translate(0x40_0123).unwrap();
    assert_eq!(
        (large.gpa, large.page),
        (Gpa(0x1_0040_0123), Some(4 << 20)),
        "bit 13 of the entry is bit 32 of the address"
    );
    let none = Probe::new(memory, Sregs { cr4: 0, ..narrow });
    assert!(matches!(none.translate(0x40_0123), Err(ProbeError::NoTable { table: "PT", .. })));
}

#[test]
fn a_read_across_pages_takes_bytes_from_both() {
    let memory = memory();
    write(&memory, 0x1000, 8, &[(0, 0x2003)]);
    write(&memory, 0x2000, 8, &[(0, 0x3003)]);
    write(&memory, 0x3000, 8, &[(0, 0x4003)]);
    write(&memory, 0x4000, 8, &[(0, 0x9003), (1, 0x8003), (3, 0x7000_0003)]);
    memory.write(Gpa(0x9ffe), b"he").unwrap();
    memory.write(Gpa(0x8000), b"llo").unwrap();
    let probe = Probe::new(memory, Sregs { cr3: 0x1000, ..sregs(Mode::Long) });
    let mut data = [0; 5];
    probe.read(0xffe, &mut data).unwrap();
    assert_eq!(&data, b"hello");
    assert!(matches!(probe.read(0x1ffe, &mut data), Err(ProbeError::NotMapped { linear: 0x2000, .. })));
    assert!(matches!(probe.read(0x3000, &mut data), Err(ProbeError::NoMemory { gpa: 0x7000_0000, .. })));
    assert_eq!(probe.read(0x2000, &mut []), Ok(()), "an empty read always succeeds");
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
    /// A probe returns for any tables and registers.
    #[test]
    fn random_tables_never_panic(seed in any::<[u64; 8]>(), cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(), address in any::<u64>()) {
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
