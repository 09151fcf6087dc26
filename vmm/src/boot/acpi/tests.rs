#![allow(clippy::arithmetic_side_effects)]

use super::*;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at an address, with the length from its header. Panics if the checksum is wrong.
fn table(tables: &[u8], at: u64) -> &[u8] {
    let rest = &tables[(at - pc::ACPI.0) as usize..];
    let table = &rest[..u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize];
    assert_eq!(sum(table), 0, "{:?}", table.get(..4));
    table
}

fn disk() -> VirtioMmio {
    VirtioMmio { address: 0xd000_0000, size: 0x1000, irq: 5 }
}

fn platform(hardware: Hardware) -> Platform<'static> {
    const DISKS: [VirtioMmio; 1] = [VirtioMmio { address: 0xd000_0000, size: 0x1000, irq: 5 }];
    Platform { cpus: 2, hardware, virtio: &DISKS }
}

fn contains(table: &[u8], what: &[u8]) -> bool {
    table.windows(what.len()).any(|window| window == what)
}

const KINDS: [Hardware; 3] = [Hardware::Reduced, Hardware::Timers, Hardware::Classic];

/// The FADT, the MADT and the DSDT, reached from the RSDP.
fn reached(tables: &[u8]) -> [&[u8]; 3] {
    assert_eq!(&tables[..8], b"RSD PTR ");
    assert_eq!((sum(&tables[..20]), sum(&tables[..36])), (0, 0));
    let xsdt = table(tables, word(tables, 24));
    let entries: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(tables, word(entry, 0))).collect();
    let [fadt, madt] = entries[..] else { panic!("{}", entries.len()) };
    assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
    let dsdt = table(tables, word(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    [fadt, madt, dsdt]
}

#[test]
fn all_tables_are_reachable_from_the_rsdp() {
    for kind in KINDS {
        let tables = tables(&platform(kind), pc::ACPI);
        let [fadt, _, dsdt] = reached(&tables);
        assert!(contains(dsdt, b"LNRO0005") && contains(dsdt, b"_S5_"), "{kind:?}");
        assert!(contains(dsdt, &0xd000_0000u32.to_le_bytes()) && !contains(dsdt, b"VR01"));
        assert_eq!(contains(dsdt, b"PIT_"), kind != Hardware::Reduced);
        assert_eq!(contains(dsdt, b"KBD_"), kind == Hardware::Classic);
        // Older kernels follow the 32-bit addresses.
        let rsdt = half(&tables, 16);
        if kind == Hardware::Reduced {
            assert_eq!((rsdt, half(fadt, 36), half(fadt, 40)), (0, 0, 0));
            continue;
        }
        let rsdt = table(&tables, rsdt);
        assert_eq!((&rsdt[..4], rsdt.len()), (&b"RSDT"[..], 44));
        assert_eq!(&table(&tables, half(rsdt, 36))[..4], b"FACP");
        assert_eq!(&table(&tables, half(rsdt, 40))[..4], b"APIC");
        assert_eq!(half(fadt, 40), word(fadt, 140));
        let facs = half(fadt, 36);
        assert!(facs.is_multiple_of(64));
        let facs = &tables[(facs - pc::ACPI.0) as usize..];
        assert_eq!((&facs[..4], half(facs, 4)), (&b"FACS"[..], 64));
    }
}

#[test]
fn the_fadt_says_which_hardware_there_is() {
    const HW_REDUCED: u64 = 1 << 20;
    for kind in KINDS {
        let tables = tables(&platform(kind), pc::ACPI);
        let [fadt, ..] = reached(&tables);
        assert_eq!(half(fadt, 112) & HW_REDUCED != 0, kind == Hardware::Reduced, "{kind:?}");
        let boot = u16::from_le_bytes([fadt[109], fadt[110]]);
        assert_eq!(boot & HAS_8042 != 0, kind == Hardware::Classic);
        // PM1a event, PM1a control, PM timer: the 32-bit fields, and the addresses of the 64-bit ones.
        let old = [56, 64, 76].map(|at| half(fadt, at));
        let new = [148, 172, 208].map(|at| word(fadt, at + 4));
        assert_eq!(old, new);
        if kind == Hardware::Reduced {
            assert_eq!(old, [0; 3]);
            assert_eq!(word(fadt, 244 + 4), u64::from(power::PORT));
        } else {
            assert_eq!(old, [0x610, 0x614, 0x618]);
            assert_eq!((fadt[46], fadt[88], fadt[89], fadt[91]), (9, 4, 2, 4));
        }
    }
}

#[test]
fn each_cpu_and_each_changed_interrupt_is_in_the_madt() {
    let madt = |hardware| bytes(&madt(&Platform { cpus: 3, ..platform(hardware) }));
    let reduced = madt(Hardware::Reduced);
    let cpus = reduced[44..].chunks(8).take_while(|entry| entry[0] == 0).map(|entry| entry[3]);
    assert_eq!(cpus.collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((reduced[44 + 24], reduced.len()), (1, 44 + 24 + 12), "then the I/O interrupt controller");
    assert_eq!(half(&reduced, 40), 0);
    let full = madt(Hardware::Timers);
    assert_eq!(half(&full, 40), 1, "two 8259");
    let rest = &full[44 + 24 + 12..];
    assert_eq!(rest[..10], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0], "the timer is on input 2");
    assert_eq!(rest[10..20], [2, 10, 0, 9, 9, 0, 0, 0, 13, 0], "ACPI's interrupt is level-triggered");
    assert_eq!(rest[20..], [4, 6, 0xff, 0, 0, 1]);
}

#[test]
fn the_largest_tables_fit() {
    for hardware in KINDS {
        let tables =
            tables(&Platform { cpus: crate::memory::MAX_CPUS, hardware, virtio: &[disk(); 18] }, pc::ACPI);
        assert!(tables.len() as u64 <= pc::ACPI_SIZE, "{:#x}", tables.len());
    }
}

/// Writes the tables of all kinds for a disassembler: `iasl -d` reads them. Set ACPI_OUT to a folder.
#[test]
fn the_tables_can_be_written_for_a_disassembler() {
    let Some(folder) = std::env::var_os("ACPI_OUT") else { return };
    for kind in KINDS {
        let tables = tables(&platform(kind), pc::ACPI);
        let facs = half(reached(&tables)[0], 36).saturating_sub(pc::ACPI.0) as usize;
        let facs = if facs == 0 { &[][..] } else { &tables[facs..facs + 64] };
        for (name, table) in
            ["facp", "apic", "dsdt"].into_iter().zip(reached(&tables)).chain([("facs", facs)])
        {
            std::fs::write(std::path::Path::new(&folder).join(format!("{kind:?}-{name}.dat")), table)
                .unwrap();
        }
    }
}
