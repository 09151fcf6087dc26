//! The shapes of diskettes and hard disks.

/// The size of a sector in bytes.
pub(crate) const SECTOR: u64 = 512;
/// The most cylinders that a call can name.
const MAX_CYLINDERS: u64 = 1024;
/// The heads and sectors of a hard disk with up to 504 MiB, as other BIOSes choose them; and of a larger one.
const SMALL: (u64, u64) = (16, 63);
const LARGE: (u64, u64) = (255, 63);

/// The state of a diskette drive in the data area (0x490): the medium is known, 300 rpm, 500 kbit/s.
pub(crate) const DRIVE_STATE: u8 = 0x07;
/// The parameters of a diskette of 1.44 MB, to which vector 1Eh leads.
pub(crate) const FLOPPY_TABLE: [u8; 11] = [0xdf, 0x02, 0x25, 0x02, 18, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08];

/// The shape of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cylinders: u64,
    pub(crate) heads: u64,
    /// Sectors of a track.
    pub(crate) sectors: u64,
    /// The type of the diskette drive (int 13h, function 8). `None` for a hard disk.
    pub(crate) floppy: Option<u8>,
}

/// The diskettes of 160 KiB to 2.88 MB: KiB, cylinders, heads, sectors, type of the drive.
const FLOPPIES: [(u64, u64, u64, u64, u8); 10] = [
    (160, 40, 1, 8, 1),
    (180, 40, 1, 9, 1),
    (320, 40, 2, 8, 1),
    (360, 40, 2, 9, 1),
    (720, 80, 2, 9, 3),
    (1200, 80, 2, 15, 2),
    (1440, 80, 2, 18, 4),
    (1680, 80, 2, 21, 4),
    (1722, 82, 2, 21, 4),
    (2880, 80, 2, 36, 6),
];

/// The shapes of a disk with this number of bytes: as a hard disk (drive 0x80), and as a diskette (drive 0). A disk with the
/// size of a diskette is one. Another one is a hard disk; if it is smaller than a diskette of 1.44 MB, it is drive 0, too,
/// because many boot sectors name that drive.
pub(crate) fn shapes(bytes: u64) -> (Option<Geometry>, Option<Geometry>) {
    let exact = Geometry::of_diskette(bytes);
    let is_small = bytes <= Geometry::DISKETTE.total().saturating_mul(SECTOR);
    let hard_disk = exact.is_none().then(|| Geometry::of_hard_disk(bytes));
    (hard_disk, exact.or(is_small.then_some(Geometry::DISKETTE)))
}

/// The number of the drive from which a disk with this number of bytes starts.
pub(crate) fn boot_drive(bytes: u64) -> u8 {
    if shapes(bytes).0.is_some() { 0x80 } else { 0 }
}

impl Geometry {
    /// The diskette of 1.44 MB.
    pub(crate) const DISKETTE: Self = Self { cylinders: 80, heads: 2, sectors: 18, floppy: Some(4) };

    /// The diskette with exactly this number of bytes.
    pub(crate) fn of_diskette(bytes: u64) -> Option<Self> {
        let found = FLOPPIES.iter().find(|(kib, ..)| kib.checked_mul(1024) == Some(bytes));
        found.map(|&(_, cylinders, heads, sectors, kind)| Self {
            cylinders,
            heads,
            sectors,
            floppy: Some(kind),
        })
    }

    /// The hard disk with room for this number of bytes.
    pub(crate) fn of_hard_disk(bytes: u64) -> Self {
        let total = bytes.div_ceil(SECTOR);
        let (heads, sectors) = if total <= MAX_CYLINDERS.saturating_mul(SMALL.0.saturating_mul(SMALL.1)) {
            SMALL
        } else {
            LARGE
        };
        let cylinders = total.div_ceil(heads.saturating_mul(sectors)).clamp(1, MAX_CYLINDERS);
        Self { cylinders, heads, sectors, floppy: None }
    }

    /// The hard disk with this number of sectors, which its last cylinder does not exceed: another system may have used it.
    pub(crate) fn within(sectors: u64) -> Self {
        let shape = Self::of_hard_disk(sectors.saturating_mul(SECTOR));
        let of_cylinder = shape.heads.saturating_mul(shape.sectors);
        let cylinders = sectors.checked_div(of_cylinder).unwrap_or(0).clamp(1, MAX_CYLINDERS);
        Self { cylinders, ..shape }
    }

    /// The number of sectors that cylinder, head and sector can name.
    pub(crate) fn total(&self) -> u64 {
        self.cylinders.saturating_mul(self.heads).saturating_mul(self.sectors)
    }

    /// The number of a sector, counted from 0. `None` if the disk has no such place. Sectors of a track count from 1.
    pub(crate) fn sector(&self, cylinder: u64, head: u64, sector: u64) -> Option<u64> {
        let in_track = sector.checked_sub(1).filter(|sector| *sector < self.sectors)?;
        let is_there = cylinder < self.cylinders && head < self.heads;
        let track = cylinder.checked_mul(self.heads)?.checked_add(head)?;
        track.checked_mul(self.sectors)?.checked_add(in_track).filter(|_| is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diskettes_have_their_shapes_and_hard_disks_grow() {
        for (kib, cylinders, heads, sectors, _) in FLOPPIES {
            assert_eq!(cylinders * heads * sectors * SECTOR, kib * 1024, "{kib}");
        }
        assert_eq!(Geometry::of_diskette(1_474_560), Some(Geometry::DISKETTE));
        assert_eq!(Geometry::of_diskette(512), None);
        let shape = |bytes| {
            let disk = Geometry::of_hard_disk(bytes);
            (disk.cylinders, disk.heads, disk.sectors)
        };
        assert_eq!(shape(0), (1, 16, 63));
        assert_eq!(shape(1024 * 1008 * 512), (1024, 16, 63));
        assert_eq!(shape(1024 * 1008 * 512 + 1), (65, 255, 63));
        assert_eq!(shape(u64::MAX), (1024, 255, 63));
        let within = [0, 1007, 2016, 2017, u64::MAX].map(|sectors| Geometry::within(sectors).cylinders);
        assert_eq!(within, [1, 1, 2, 2, 1024]);
    }

    #[test]
    fn a_sector_has_one_number() {
        let disk = Geometry::DISKETTE;
        assert_eq!(
            (disk.sector(0, 0, 1), disk.sector(0, 1, 1), disk.sector(1, 0, 18)),
            (Some(0), Some(18), Some(53))
        );
        for (cylinder, head, sector) in [(80, 0, 1), (0, 2, 1), (0, 0, 0), (0, 0, 19), (u64::MAX, 1, 1)] {
            assert_eq!(disk.sector(cylinder, head, sector), None);
        }
    }
}
