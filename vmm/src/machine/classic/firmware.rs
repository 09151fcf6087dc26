//! The data that firmware leaves in the memory of a classic PC: the BIOS data area, the ACPI tables and the MP table. A kernel that is
//! loaded over one of them overwrites it.

use crate::boot::acpi::{self, Hardware, Platform};
use crate::boot::{Firmware, Image, mp};
use crate::device::serial;
use crate::error::Error;
use crate::memory::{Gpa, GuestMemory, pc};

/// The BIOS data area.
const DATA_AREA: Gpa = Gpa(0x400);
/// The size of the BIOS data area, in bytes.
const DATA_SIZE: usize = 0x100;
/// The size of the extended BIOS data area, in KiB. Its first byte has it.
const EXTENDED_KIB: u8 = 1;
/// The size of the root pointer of the ACPI tables, in bytes.
const RSDP_SIZE: usize = 36;

/// The fields of the BIOS data area that are not zero: offset, size in bytes, value (IBM PC AT Technical Reference,
/// section 5, "ROM BIOS Data Areas").
const DATA: [(usize, usize, u64); 9] = [
    // The first serial port.
    (0x00, 2, serial::PORT as u64),
    // The segment of the extended BIOS data area.
    (0x0e, 2, pc::LOW_RAM_END >> 4),
    // Equipment: a coprocessor, a screen of 80 columns with colours, one serial port.
    (0x10, 2, 0x0222),
    // The memory below the extended BIOS data area, in KiB.
    (0x13, 2, pc::LOW_RAM_END >> 10),
    // The screen: its mode, columns, size of a page, address of the controller, and rows without the last one.
    (0x49, 1, 3),
    (0x4a, 2, 80),
    (0x4c, 2, 0x1000),
    (0x63, 2, 0x3d4),
    (0x84, 1, 24),
];

/// The tables of a machine.
pub(super) struct Tables {
    parts: Vec<(Gpa, Vec<u8>)>,
    /// The content of the BIOS data area.
    data_area: [u8; DATA_SIZE],
}

impl Tables {
    /// The tables of a machine with this number of vCPUs and `disks` disks.
    pub(super) fn new(cpus: u32, disks: u8) -> Self {
        let platform = Platform { cpus, hardware: Hardware::Classic, virtio: &[] };
        let mut data_area = [0; DATA_SIZE];
        for (offset, size, value) in DATA.into_iter().chain([(0x75, 1, disks.into())]) {
            let to = data_area.iter_mut().skip(offset).take(size);
            to.zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        let parts = vec![
            (DATA_AREA, data_area.to_vec()),
            (Gpa(pc::LOW_RAM_END), vec![EXTENDED_KIB]),
            (pc::ACPI, acpi::tables(&platform, pc::ACPI)),
            (pc::MP, mp::table(cpus, None, pc::MP)),
        ];
        Self { parts, data_area }
    }

    /// The places of the tables, for a kernel. The kernel `image` may cover them.
    pub(super) fn firmware(&self, image: &Image) -> Firmware {
        let rsdp = self.free(image).find(|(start, _)| *start == pc::ACPI);
        let rsdp = rsdp.map(|(start, bytes)| (start, bytes.iter().take(RSDP_SIZE).copied().collect()));
        Firmware { low_end: pc::LOW_RAM_END, rsdp }
    }

    /// The first bytes of the BIOS data area, which are also the place of a guest's result.
    pub(super) fn result_place(&self) -> [u8; 8] {
        self.data_area.first_chunk().copied().unwrap_or_default()
    }

    /// Writes the tables, except those that `image` covers.
    ///
    /// # Errors
    /// They are not in memory.
    pub(super) fn write(&self, image: &Image, memory: &GuestMemory) -> Result<(), Error> {
        self.free(image).try_for_each(|(start, bytes)| memory.write(start, bytes))
    }

    /// The tables that `image` does not cover.
    fn free(&self, image: &Image) -> impl Iterator<Item = (Gpa, &[u8])> {
        let parts = self.parts.iter().map(|(start, bytes)| (*start, bytes.as_slice()));
        parts.filter(|(start, bytes)| !image.overlaps(start.0, start.0.saturating_add(bytes.len() as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::modes::Mode;

    #[test]
    fn the_tables_are_below_1_mib_and_give_way_to_a_kernel() {
        let tables = Tables::new(2, 1);
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        let low = Image::flat(vec![0xf4], Mode::Real, Gpa(0x1000)).unwrap();
        tables.write(&low, &memory).unwrap();
        let read = |at| {
            let mut word = [0; 4];
            memory.read(Gpa(at), &mut word);
            word
        };
        assert_eq!((read(0x400), read(0x40e)), ([0xf8, 3, 0, 0], [0xc0, 0x9f, 0x22, 2]));
        assert_eq!((read(0x412), read(0x474)), ([0, 0x7f, 2, 0], [0, 1, 0, 0]));
        assert_eq!((read(0x9fc00), &read(0xe0000), &read(0xf0000)), ([1, 0, 0, 0], b"RSD ", b"_MP_"));
        let firmware = tables.firmware(&low);
        let (at, rsdp) = firmware.rsdp.unwrap();
        assert_eq!((at, rsdp.len(), firmware.low_end), (pc::ACPI, 36, 0x9_fc00));

        let over = Image::flat(vec![0xf4; 16], Mode::Real, Gpa(0xe_0000)).unwrap();
        assert_eq!(tables.firmware(&over).rsdp, None);
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        tables.write(&over, &memory).unwrap();
        let mut word = [0; 4];
        memory.read(Gpa(0xe_0000), &mut word);
        assert_eq!(word, [0; 4]);
    }
}
