//! The drives of int 13h: the boot disk, and the other disks of the machine.

use crate::boot::geometry::{self, Geometry, SECTOR};
use crate::device::pc::medium::{Content, CopiedDisk, Fault, SharedMedium, lock};
use std::sync::{Arc, Mutex};

const SECTOR_BYTES: usize = SECTOR as usize;
/// The number of the first hard disk.
const HARD_DISK: u8 = 0x80;

/// A drive.
#[derive(Debug)]
struct Drive {
    geometry: Geometry,
    medium: SharedMedium,
}

/// The drives.
#[derive(Debug)]
pub struct Drives {
    /// Drive 0.
    diskette: Option<Drive>,
    /// Drive 0x80, and those after it.
    hard_disks: Vec<Drive>,
    /// The number of the drive from which the guest starts.
    boot: u8,
}

impl Drives {
    /// The drives of a machine that starts from a disk with this content. Writes to it stay in memory.
    pub fn new(content: &Content) -> Self {
        let bytes = content.len() as u64;
        let (hard_disk, diskette) = geometry::shapes(bytes);
        let shapes = hard_disk.iter().chain(&diskette).map(Geometry::total);
        let sectors = shapes.max().unwrap_or(0).max(bytes.div_ceil(SECTOR));
        let medium: SharedMedium = Arc::new(Mutex::new(CopiedDisk::new(content.clone(), sectors)));
        let drive = |geometry| Drive { geometry, medium: medium.clone() };
        let boot = if hard_disk.is_some() { HARD_DISK } else { 0 };
        Self { diskette: diskette.map(drive), hard_disks: hard_disk.map(drive).into_iter().collect(), boot }
    }

    /// The boot disk, if it is a hard disk: the machine has it as an ATA drive, too.
    pub fn boot_hard_disk(&self) -> Option<SharedMedium> {
        self.hard_disks.first().map(|drive| drive.medium.clone())
    }

    /// Adds a hard disk.
    pub fn add(&mut self, medium: SharedMedium) {
        let geometry = Geometry::within(lock(&medium).sectors());
        self.hard_disks.push(Drive { geometry, medium });
    }

    /// The number of the drive from which the guest starts.
    pub(super) fn boot(&self) -> u8 {
        self.boot
    }

    /// The numbers of hard disks and of diskette drives.
    pub fn counts(&self) -> (u8, u8) {
        let hard_disks = u8::try_from(self.hard_disks.len()).unwrap_or(u8::MAX);
        (hard_disks, self.diskette.is_some().into())
    }

    fn drive(&self, number: u8) -> Option<&Drive> {
        match number.checked_sub(HARD_DISK) {
            Some(index) => self.hard_disks.get(usize::from(index)),
            None => self.diskette.as_ref().filter(|_| number == 0),
        }
    }

    /// The shape of a drive. `None` if there is no such drive.
    pub(super) fn geometry(&self, number: u8) -> Option<Geometry> {
        self.drive(number).map(|drive| drive.geometry)
    }

    /// The number of sectors of a drive. A diskette has those of its shape.
    pub(super) fn sectors(&self, number: u8) -> u64 {
        self.drive(number).map_or(0, |drive| match drive.geometry.floppy {
            Some(_) => drive.geometry.total(),
            None => lock(&drive.medium).sectors(),
        })
    }

    /// Checks that a drive has a sector.
    fn with_sector(&self, number: u8, sector: u64) -> Result<&SharedMedium, Fault> {
        let drive = self.drive(number).filter(|_| sector < self.sectors(number));
        drive.map(|drive| &drive.medium).ok_or(Fault::Outside)
    }

    /// Reads a sector.
    pub(super) fn read(&self, number: u8, sector: u64) -> Result<[u8; SECTOR_BYTES], Fault> {
        let mut bytes = [0; SECTOR_BYTES];
        lock(self.with_sector(number, sector)?).read(sector, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a sector.
    pub(super) fn write(&self, number: u8, sector: u64, bytes: &[u8; SECTOR_BYTES]) -> Result<(), Fault> {
        lock(self.with_sector(number, sector)?).write(sector, bytes)
    }

    /// Checks a sector.
    pub(super) fn verify(&self, number: u8, sector: u64) -> Result<(), Fault> {
        self.with_sector(number, sector).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: usize) -> Drives {
        let bytes: Vec<u8> = (0..len).map(|at| ((at / 512) as u8).wrapping_add(1)).collect();
        Drives::new(&Arc::new(bytes.into()))
    }

    #[test]
    fn the_size_of_an_image_tells_its_drive() {
        for (len, boot, counts) in
            [(512, 0x80, (1, 1)), (1_474_560, 0, (0, 1)), (163_840, 0, (0, 1)), (4 << 20, 0x80, (1, 0))]
        {
            let drives = image(len);
            assert_eq!((drives.boot(), drives.counts()), (boot, counts), "{len}");
            assert!(drives.geometry(boot).is_some() && drives.geometry(1).is_none());
            assert_eq!(drives.boot_hard_disk().is_some(), boot == 0x80, "{len}");
        }
    }

    #[test]
    fn a_small_image_is_filled_up_and_both_of_its_drives_are_the_same() {
        let drives = image(700);
        assert_eq!((drives.sectors(0), drives.sectors(0x80), drives.sectors(0x81)), (2880, 2880, 0));
        let second = drives.read(0, 1).unwrap();
        assert_eq!((second[187], second[188]), (2, 0));
        assert_eq!(drives.read(0, 2879).unwrap(), [0; 512]);
        assert!(matches!(drives.read(0, 2880), Err(Fault::Outside)));
        assert!(matches!(drives.write(0x80, u64::MAX, &[7; 512]), Err(Fault::Outside)));
        drives.write(0x80, 1, &[7; 512]).unwrap();
        assert_eq!(drives.read(0, 1).unwrap(), [7; 512]);
    }

    #[test]
    fn other_disks_follow_the_boot_disk_and_are_not_filled_up() {
        for (len, numbers) in [(4 << 20, [0x81, 0x82]), (1_474_560, [0x80, 0x81])] {
            let mut drives = image(len);
            let content: Content = Arc::new(vec![5; 2000 * 512].into());
            for _ in numbers {
                drives.add(Arc::new(Mutex::new(CopiedDisk::new(content.clone(), 2000))));
            }
            for number in numbers {
                assert_eq!((drives.sectors(number), drives.read(number, 1999).unwrap()), (2000, [5; 512]));
                assert!(drives.verify(number, 2000).is_err());
                // 992 sectors of the second cylinder are missing.
                assert_eq!(drives.geometry(number).unwrap().cylinders, 1);
            }
            assert!(drives.geometry(numbers[1] + 1).is_none() && drives.geometry(0xff).is_none());
        }
    }
}
