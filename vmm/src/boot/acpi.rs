//! The ACPI tables: they describe the CPUs, the interrupt controllers and the devices, and how to power off. There are two
//! kinds, [`Hardware`].
//!
//! ACPI specification 6.5: section 5.2 for the tables, sections 19 and 20 for the device descriptions (ASL and AML).
//! The crate acpi_tables encodes most of them.

mod dsdt;

use crate::boot::mp::{LEVEL_HIGH, TIMER_IRQ, TIMER_PIN};
use crate::device::pc::{pm_timer, power, rtc};
use crate::memory::{Gpa, pc};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"VMM   ";
const TABLE: [u8; 8] = *b"VMMPC   ";
const REVISION: u32 = 1;

/// FADT, boot architecture flags: there are devices on an ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// FADT, boot architecture flags: there is a keyboard controller (8042).
const HAS_8042: u16 = 1 << 1;
/// FADT, boot architecture flags: no VGA hardware.
const NO_VGA: u16 = 1 << 2;
/// FADT, boot architecture flags: no message-signalled interrupts.
const NO_MSI: u16 = 1 << 3;
/// FADT, boot architecture flags: no PCI Express power control.
const NO_ASPM: u16 = 1 << 4;
/// FADT: a latency in microseconds that says that the processor lacks the sleep state C2.
const NO_C2: u16 = 101;
/// FADT: a latency in microseconds that says that the processor lacks the sleep state C3.
const NO_C3: u16 = 1001;
/// MADT, flags: there are two 8259 interrupt controllers.
const HAS_8259: u32 = 1;

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

/// The kind of machine that the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// Hardware-reduced: no fixed registers, no timer (PIT), no 8259.
    Reduced,
    /// The fixed registers with the PM timer, a PIT and two 8259.
    Timers,
    /// As [`Hardware::Timers`], with a keyboard controller and VGA text memory.
    Classic,
}

/// A machine, as the tables describe it.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// The number of CPUs.
    pub cpus: u32,
    /// The kind of machine.
    pub hardware: Hardware,
    /// The virtio devices.
    pub virtio: &'a [VirtioMmio],
}

/// The size of the RSDP, the root of the tables, in bytes.
pub const RSDP_SIZE: usize = 36;

/// The tables, to be written to `at`, which is below 4 GiB and a multiple of 64. They begin with the RSDP.
pub fn tables(platform: &Platform<'_>, at: Gpa) -> Vec<u8> {
    let mut tables = Tables { at, bytes: vec![0; RSDP_SIZE] };
    let dsdt = tables.append(&dsdt::table(platform));
    let fadt = match platform.hardware {
        Hardware::Reduced => tables.append(&reduced_fadt(dsdt)),
        hardware => {
            let facs = tables.append(&FACS::new());
            tables.append(&full_fadt(dsdt, facs, hardware))
        }
    };
    let madt = tables.append(&madt(platform));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    [fadt, madt].into_iter().for_each(|table| xsdt.add_entry(table.0));
    let xsdt = tables.append(&xsdt);
    let mut rsdp = bytes(&Rsdp::new(OEM, xsdt.0));
    if platform.hardware != Hardware::Reduced {
        let mut rsdt = Sdt::new(*b"RSDT", 36, 1, OEM, TABLE, REVISION);
        [fadt, madt].into_iter().for_each(|table| rsdt.append_slice(&low(table).to_le_bytes()));
        let rsdt = tables.append(&rsdt);
        add_rsdt(&mut rsdp, low(rsdt));
    }
    tables.bytes.iter_mut().zip(rsdp).for_each(|(to, from)| *to = from);
    tables.bytes
}

/// Tables that follow each other in memory.
struct Tables {
    /// The guest physical address of the first byte.
    at: Gpa,
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends a table, at a multiple of 64 as the FACS needs it. Returns its guest physical address.
    fn append(&mut self, table: &dyn Aml) -> Gpa {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let at = Gpa(self.at.0.saturating_add(self.bytes.len() as u64));
        self.bytes.extend(bytes(table));
        at
    }
}

/// Adds the address of the RSDT to an RSDP, with both checksums.
fn add_rsdt(rsdp: &mut [u8], rsdt: u32) {
    /// The size of the RSDP of ACPI 1.0, which the first checksum covers.
    const FIRST: usize = 20;
    rsdp.iter_mut().skip(16).zip(rsdt.to_le_bytes()).for_each(|(to, from)| *to = from);
    for (at, len) in [(8, FIRST), (32, RSDP_SIZE)] {
        let sum = rsdp.iter().take(len).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(byte) = rsdp.get_mut(at) {
            *byte = byte.wrapping_sub(sum);
        }
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The address of a table, which is below 4 GiB.
fn low(table: Gpa) -> u32 {
    u32::try_from(table.0).unwrap_or(0)
}

/// Registers of `bits` bits in I/O space, accessed with this size.
fn ports(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

/// The parts of the FADT that all machines have.
fn fadt() -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.century = rtc::CENTURY;
    fadt.reset_reg = ports(power::PORT + 2, 8, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt
}

fn reduced_fadt(dsdt: Gpa) -> impl Aml {
    let mut fadt = fadt().dsdt_64(dsdt.0).flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.sleep_control_reg = ports(power::PORT, 8, AccessSize::ByteAccess);
    fadt.sleep_status_reg = ports(power::PORT + 1, 8, AccessSize::ByteAccess);
    fadt.finalize()
}

/// Older kernels read the 32-bit fields, and newer ones the 64-bit fields. Both say the same.
fn full_fadt(dsdt: Gpa, facs: Gpa, hardware: Hardware) -> impl Aml {
    let mut fadt = fadt()
        .dsdt_64(dsdt.0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt);
    fadt.dsdt = low(dsdt).into();
    fadt.firmware_ctrl = low(facs).into();
    fadt.iapc_boot_arch = match hardware {
        Hardware::Classic => LEGACY_DEVICES | HAS_8042 | NO_MSI | NO_ASPM,
        _ => LEGACY_DEVICES | NO_VGA | NO_ASPM,
    }
    .into();
    fadt.sci_int = u16::from(pm_timer::SCI).into();
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    fadt.pm1a_evt_blk = u32::from(pm_timer::EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(pm_timer::CONTROL).into();
    fadt.pm_tmr_blk = u32::from(pm_timer::TIMER).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = ports(pm_timer::EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = ports(pm_timer::CONTROL, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = ports(pm_timer::TIMER, 32, AccessSize::DwordAccess);
    fadt.finalize()
}

fn madt(platform: &Platform<'_>) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 1, OEM, TABLE, REVISION);
    madt.append_slice(&pc::LOCAL_APIC.to_le_bytes());
    let is_full = platform.hardware != Hardware::Reduced;
    madt.append_slice(&if is_full { HAS_8259 } else { 0 }.to_le_bytes());
    for id in (0..platform.cpus).filter_map(|id| u8::try_from(id).ok()) {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(0, pc::IOAPIC, 0)));
    if is_full {
        madt.append_slice(&source_override(TIMER_IRQ, TIMER_PIN, 0));
        madt.append_slice(&source_override(pm_timer::SCI, pm_timer::SCI, LEVEL_HIGH));
        // The second input of all local APICs is for NMIs.
        madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    }
    madt
}

/// An ISA interrupt that has another input of the I/O APIC, or another polarity and trigger mode, than its number says
/// (section 5.2.12.5).
fn source_override(irq: u8, pin: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, 0, irq, pin, 0, 0, 0, low, high]
}

#[cfg(test)]
mod tests;
