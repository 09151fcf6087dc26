//! The MP table: processors, interrupt controllers and interrupt lines for kernels that do not read ACPI tables.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4.

use crate::memory::{Gpa, pc};

/// The interrupt of the timer (PIT), which is on another input of the I/O APIC than its number says.
pub(crate) const TIMER_IRQ: u8 = 0;
/// The input of the I/O APIC that gets the timer's interrupt.
pub(crate) const TIMER_PIN: u8 = 2;
/// The interrupt of the cascade between the two 8259. No device has it.
pub(crate) const CASCADE_IRQ: u8 = 2;
/// The number of ISA interrupts.
pub(crate) const ISA_IRQS: u8 = 16;

const SPECIFICATION: u8 = 4;
/// The ID of the I/O APIC. Its register has this value after a reset.
const IOAPIC_ID: u8 = 0;
/// The version of the APICs (section 4.3.1).
const APIC_VERSION: u8 = 0x14;
/// The version of the I/O APIC.
const IOAPIC_VERSION: u8 = 0x11;
/// All local APICs.
const ALL: u8 = 0xff;
/// The size of the header of the configuration table, in bytes.
const HEADER: u16 = 44;
/// The size of the floating pointer, in bytes.
const POINTER: u32 = 16;

/// Interrupt type: a vectored interrupt.
const INT: u8 = 0;
/// Interrupt type: NMI.
const NMI: u8 = 1;
/// Interrupt type: the vector comes from the 8259.
const EXT_INT: u8 = 3;
/// Polarity and trigger mode: those of the bus.
const LIKE_THE_BUS: u16 = 0;
/// Polarity and trigger mode: active high, level-triggered.
pub(crate) const LEVEL_HIGH: u16 = 0x0d;

/// The floating pointer and the configuration table, to be written to `at`, which is below 4 GiB and a multiple of 16.
/// `level` is the ISA interrupt that is level-triggered, the one of ACPI.
pub fn table(cpus: u32, level: Option<u8>, at: Gpa) -> Vec<u8> {
    let (entries, count) = entries(cpus, level);
    let at = u32::try_from(at.0).unwrap_or(0);
    let mut table = Vec::from(*b"_MP_");
    table.extend(at.saturating_add(POINTER).to_le_bytes());
    // The length in units of 16 bytes, the version, the checksum, and five feature bytes: a table follows, no IMCR.
    table.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    fix_checksum(&mut table, 10);
    let mut configuration = header(&entries, count);
    configuration.extend(entries);
    fix_checksum(&mut configuration, 7);
    table.extend(configuration);
    table
}

/// The header of the configuration table (section 4.2).
fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let length = u16::try_from(entries.len()).unwrap_or(u16::MAX).saturating_add(HEADER);
    let mut header = Vec::from(*b"PCMP");
    header.extend(length.to_le_bytes());
    header.extend([SPECIFICATION, 0]);
    header.extend(*b"VMM     PC          ");
    // No OEM table.
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(pc::LOCAL_APIC.to_le_bytes());
    // No extended table.
    header.extend([0; 4]);
    header
}

/// The entries of the configuration table, in the order of their types, and their number (section 4.3).
fn entries(cpus: u32, level: Option<u8>) -> (Vec<u8>, u16) {
    let (mut bytes, mut count) = (Vec::new(), 0u16);
    let mut add = |entry: &[u8]| {
        bytes.extend(entry);
        count = count.saturating_add(1);
    };
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        // Enabled; the first one is the bootstrap processor. Family 6, with FPU and APIC; a kernel asks CPUID.
        let flags = if id == 0 { 3 } else { 1 };
        add(&[0, id, APIC_VERSION, flags, 0, 6, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    add(b"\x01\x00ISA   ");
    let [a, b, c, d] = pc::IOAPIC.to_le_bytes();
    add(&[2, IOAPIC_ID, IOAPIC_VERSION, 1, a, b, c, d]);
    for irq in (0..ISA_IRQS).filter(|irq| *irq != CASCADE_IRQ) {
        let pin = if irq == TIMER_IRQ { TIMER_PIN } else { irq };
        let flags = if level == Some(irq) { LEVEL_HIGH } else { LIKE_THE_BUS };
        add(&interrupt(3, INT, flags, irq, IOAPIC_ID, pin));
    }
    add(&interrupt(4, EXT_INT, LIKE_THE_BUS, 0, ALL, 0));
    add(&interrupt(4, NMI, LIKE_THE_BUS, 0, ALL, 1));
    (bytes, count)
}

/// An interrupt entry: `entry` is 3 for an input of the I/O APIC, 4 for one of local APICs.
fn interrupt(entry: u8, kind: u8, flags: u16, irq: u8, apic: u8, pin: u8) -> [u8; 8] {
    let [low, high] = flags.to_le_bytes();
    [entry, kind, low, high, 0, irq, apic, pin]
}

/// Sets the byte at `at` so that the sum of all bytes is 0.
fn fix_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::memory::MAX_CPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The entries of a table, after checks of both headers.
    fn parse(table: &[u8]) -> Vec<&[u8]> {
        let (pointer, configuration) = table.split_at(16);
        assert_eq!((&pointer[..4], pointer[8], pointer[9], sum(pointer)), (&b"_MP_"[..], 1, 4, 0));
        assert_eq!(pointer[4..8], (pc::MP.0 as u32 + 16).to_le_bytes());
        assert_eq!((&configuration[..4], configuration[6], sum(configuration)), (&b"PCMP"[..], 4, 0));
        assert_eq!(configuration[4..6], (configuration.len() as u16).to_le_bytes());
        assert_eq!(configuration[36..40], 0xfee0_0000u32.to_le_bytes());
        let mut rest = &configuration[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, after) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = after;
        }
        assert_eq!(configuration[34..36], (entries.len() as u16).to_le_bytes());
        assert!(entries.is_sorted_by_key(|entry| entry[0]));
        entries
    }

    #[test]
    fn the_table_has_the_processors_and_the_lines_of_a_pc() {
        let table = table(3, Some(9), pc::MP);
        let entries = parse(&table);
        let processors: Vec<_> =
            entries.iter().filter(|entry| entry[0] == 0).map(|entry| (entry[1], entry[3])).collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)], "the first one is the bootstrap processor");
        let lines: Vec<_> = entries
            .iter()
            .filter(|entry| entry[0] == 3)
            .map(|entry| (entry[5], entry[7], entry[2]))
            .collect();
        assert_eq!(lines.len(), 15);
        assert!(lines.contains(&(0, 2, 0)) && lines.contains(&(4, 4, 0)) && lines.contains(&(9, 9, 0x0d)));
        assert!(lines.iter().all(|line| line.0 != 2), "no device has the interrupt of the cascade");
        let local: Vec<_> =
            entries.iter().filter(|entry| entry[0] == 4).map(|entry| (entry[1], entry[7])).collect();
        assert_eq!(local, [(3, 0), (1, 1)]);
    }

    #[test]
    fn the_largest_table_fits() {
        let table = table(MAX_CPUS, None, pc::MP);
        parse(&table);
        assert!(table.len() as u64 <= pc::MP_SIZE, "{:#x}", table.len());
    }
}
