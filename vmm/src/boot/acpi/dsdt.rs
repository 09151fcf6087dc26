//! The DSDT: the devices that a kernel cannot find by itself, and the soft-off sleep type.

use super::{Hardware, OEM, Platform, REVISION, TABLE, bytes};
use crate::boot::mp::{CASCADE_IRQ, TIMER_IRQ};
use crate::device::pc::{i8042, power, rtc};
use crate::device::serial;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

/// The first port of the timer (PIT).
const PIT: u16 = 0x40;
/// The first ports of the two 8259.
const PIC: [u16; 2] = [0x20, 0xa0];
/// The interrupt of the keyboard.
const KEYBOARD_IRQ: u8 = 1;
/// The interrupt of the real-time clock.
const CLOCK_IRQ: u8 = 8;

/// An edge-triggered ISA interrupt, active high (section 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

pub(super) fn table(platform: &Platform<'_>) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&soft_off(platform.hardware));
    let edge = |irq| Interrupt::new(true, true, false, false, irq);
    let ports = IO::new(serial::PORT, serial::PORT, 1, 8);
    let serial = device("COM1", &EISAName::new("PNP0501"), 0, vec![&ports, &edge(serial::IRQ)]);
    dsdt.append_slice(&serial);
    let clock = IO::new(rtc::PORT, rtc::PORT, 1, 2);
    let mut clock: Vec<&dyn Aml> = vec![&clock];
    if platform.hardware == Hardware::Classic {
        clock.push(&Irq(CLOCK_IRQ));
    }
    dsdt.append_slice(&device("RTC_", &EISAName::new("PNP0B00"), 0, clock));
    if platform.hardware != Hardware::Reduced {
        add_timers(&mut dsdt);
    }
    if platform.hardware == Hardware::Classic {
        let (data, status) =
            (IO::new(i8042::PORT, i8042::PORT, 1, 1), IO::new(i8042::PORT + 4, i8042::PORT + 4, 1, 1));
        dsdt.append_slice(&device(
            "KBD_",
            &EISAName::new("PNP0303"),
            0,
            vec![&data, &status, &Irq(KEYBOARD_IRQ)],
        ));
    }
    for (number, virtio) in (0u8..).zip(platform.virtio) {
        let registers = Memory32Fixed::new(true, virtio.address, virtio.size);
        let name = format!("VR{number:02X}");
        dsdt.append_slice(&device(&name, &"LNRO0005", number, vec![&registers, &edge(virtio.irq)]));
    }
    for id in (0..platform.cpus).filter_map(|id| u8::try_from(id).ok()) {
        dsdt.append_slice(&device(&format!("C{id:03X}"), &"ACPI0007", id, Vec::new()));
    }
    dsdt
}

/// The sleep type of soft-off. With fixed registers, the types of PM1a and PM1b, and two reserved elements.
fn soft_off(hardware: Hardware) -> Vec<u8> {
    let types: Vec<&dyn Aml> = match hardware {
        Hardware::Reduced => vec![&power::SOFT_OFF],
        _ => vec![&power::SOFT_OFF, &power::SOFT_OFF, &0u8, &0u8],
    };
    bytes(&Name::new(Path::new("_S5_"), &Package::new(types)))
}

/// Adds the PIT and the two 8259.
fn add_timers(dsdt: &mut Sdt) {
    let ports = IO::new(PIT, PIT, 1, 4);
    dsdt.append_slice(&device("PIT_", &EISAName::new("PNP0100"), 0, vec![&ports, &Irq(TIMER_IRQ)]));
    let [first, second] = PIC.map(|port| IO::new(port, port, 1, 2));
    dsdt.append_slice(&device(
        "PIC_",
        &EISAName::new("PNP0000"),
        0,
        vec![&first, &second, &Irq(CASCADE_IRQ)],
    ));
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
