//! The ACPI tables of the PC: they describe the CPUs, the interrupt controllers and the devices, and how to power off.
//! They are hardware-reduced tables, without the fixed registers of older machines.
//!
//! ACPI specification 6.5: section 5.2 for the tables, sections 19 and 20 for the device descriptions (ASL and AML).
//! The crate acpi_tables encodes them.

use crate::device::pc::{power, rtc};
use crate::device::serial;
use crate::memory::{Gpa, pc};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"VMM   ";
const TABLE: [u8; 8] = *b"VMMPC   ";
const REVISION: u32 = 1;

/// FADT, boot architecture flags: no VGA hardware.
const NO_VGA: u16 = 1 << 2;
/// FADT, boot architecture flags: no PCI Express power control.
const NO_ASPM: u16 = 1 << 4;

/// A virtio device over MMIO, as the tables describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// The guest physical address of its registers.
    pub address: u32,
    /// The size of its registers, in bytes.
    pub size: u32,
    /// Its interrupt: the number of the input of the I/O interrupt controller.
    pub irq: u32,
}

/// The tables, to be written to [`pc::ACPI`]. They begin with the RSDP.
pub fn tables(cpus: u32, devices: &[VirtioMmio]) -> Vec<u8> {
    let mut tables = vec![0; Rsdp::len()];
    let dsdt = append(&mut tables, &dsdt(cpus, devices));
    let fadt = append(&mut tables, &fadt(dsdt));
    let madt = append(&mut tables, &madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    [fadt, madt].into_iter().for_each(|table| xsdt.add_entry(table.0));
    let xsdt = append(&mut tables, &xsdt);
    let rsdp = bytes(&Rsdp::new(OEM, xsdt.0));
    tables.iter_mut().zip(rsdp).for_each(|(to, from)| *to = from);
    tables
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Appends a table. Returns its guest physical address.
fn append(tables: &mut Vec<u8>, table: &dyn Aml) -> Gpa {
    tables.resize(tables.len().next_multiple_of(16), 0);
    let at = Gpa(pc::ACPI.0.saturating_add(tables.len() as u64));
    tables.extend(bytes(table));
    at
}

/// A byte register in I/O space.
fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: Gpa) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt.0)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.century = rtc::CENTURY;
    fadt.sleep_control_reg = port(power::PORT);
    fadt.sleep_status_reg = port(power::PORT + 1);
    fadt.reset_reg = port(power::PORT + 2);
    fadt.reset_value = power::RESET;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(pc::LOCAL_APIC));
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, pc::IOAPIC, 0));
    madt
}

/// The DSDT: the devices that a kernel cannot find by itself, and the soft-off sleep type.
fn dsdt(cpus: u32, devices: &[VirtioMmio]) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let edge = |irq| Interrupt::new(true, true, false, false, irq);
    let soft_off = Package::new(vec![&power::SOFT_OFF]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &soft_off)));
    let ports = IO::new(serial::PORT, serial::PORT, 1, 8);
    let serial = device("COM1", &EISAName::new("PNP0501"), 0, vec![&ports, &edge(serial::IRQ)]);
    dsdt.append_slice(&serial);
    let clock = IO::new(rtc::PORT, rtc::PORT, 1, 2);
    dsdt.append_slice(&device("RTC_", &EISAName::new("PNP0B00"), 0, vec![&clock]));
    for (number, virtio) in (0u8..).zip(devices) {
        let registers = Memory32Fixed::new(true, virtio.address, virtio.size);
        let name = format!("VR{number:02X}");
        dsdt.append_slice(&device(&name, &"LNRO0005", number, vec![&registers, &edge(virtio.irq)]));
    }
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        dsdt.append_slice(&device(&format!("C{id:03X}"), &"ACPI0007", id, Vec::new()));
    }
    dsdt
}

/// A device below the system bus, with its name, its hardware ID, its number among the devices with this ID, and its
/// resources.
fn device(name: &str, kind: &dyn Aml, number: u8, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let kind = Name::new(Path::new("_HID"), kind);
    let number = Name::new(Path::new("_UID"), &number);
    let any = !resources.is_empty();
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let mut parts: Vec<&dyn Aml> = vec![&kind, &number];
    if any {
        parts.push(&resources);
    }
    bytes(&Device::new(Path::new(&format!("_SB_.{name}")), parts))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at an address, with the length from its header. Panics if the checksum is wrong.
    fn table(tables: &[u8], at: u64) -> &[u8] {
        let rest = &tables[(at - pc::ACPI.0) as usize..];
        let table = &rest[..u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        table
    }

    fn disk() -> VirtioMmio {
        VirtioMmio { address: 0xd000_0000, size: 0x1000, irq: 5 }
    }

    #[test]
    fn all_tables_are_reachable_from_the_rsdp() {
        let tables = tables(2, &[disk()]);
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(tables[..36].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&tables, word(&tables, 24));
        let entries: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(&tables, word(entry, 0))).collect();
        let names: Vec<_> = entries.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC"]);
        let dsdt = table(&tables, word(entries[0], 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let names = |what: &[u8]| dsdt.windows(what.len()).any(|window| window == what);
        assert!(names(b"LNRO0005") && names(b"_S5_") && names(&0xd000_0000u32.to_le_bytes()));
        assert!(!names(b"VR01"));
    }

    #[test]
    fn each_cpu_is_in_the_madt() {
        let madt = bytes(&madt(3));
        let cpus = madt[44..].chunks(8).take_while(|entry| entry[0] == 0).map(|entry| entry[3]);
        assert_eq!(cpus.collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(madt[44 + 24], 1, "then the I/O interrupt controller");
    }

    #[test]
    fn the_largest_tables_fit() {
        let tables = tables(crate::memory::MAX_CPUS, &[disk(); 32]);
        assert!(tables.len() as u64 <= pc::ACPI_SIZE, "{:#x}", tables.len());
    }
}
