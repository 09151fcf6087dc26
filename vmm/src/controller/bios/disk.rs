//! The boot disk: the bytes of an image. Writes stay in memory.

use crate::boot::geometry::{self, Geometry, SECTOR};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

const SECTOR_BYTES: usize = SECTOR as usize;

/// The content of a disk, which is not written.
pub(crate) type Content = Arc<Cow<'static, [u8]>>;

/// The sector is not on the disk.
#[derive(Debug)]
pub(super) struct Past;

/// The disk.
pub(super) struct Disk {
    content: Content,
    /// The sectors that the guest has written. At most as many as the disk has.
    written: BTreeMap<u64, Box<[u8; SECTOR_BYTES]>>,
    /// The shape as drive 0x80. `None` if it is a diskette.
    hard_disk: Option<Geometry>,
    /// The shape as drive 0. `None` if it is a large disk.
    diskette: Option<Geometry>,
}

impl Disk {
    /// A disk with this content.
    pub(super) fn new(content: Content) -> Self {
        let (hard_disk, diskette) = geometry::shapes(content.len() as u64);
        Self { content, written: BTreeMap::new(), hard_disk, diskette }
    }

    /// The number of the drive from which the guest starts.
    pub(super) fn drive(&self) -> u8 {
        if self.hard_disk.is_some() { 0x80 } else { 0 }
    }

    /// The numbers of hard disks and of diskette drives.
    pub(super) fn drives(&self) -> (u8, u8) {
        (self.hard_disk.is_some().into(), self.diskette.is_some().into())
    }

    /// The shape of a drive. `None` if there is no such drive.
    pub(super) fn geometry(&self, drive: u8) -> Option<Geometry> {
        match drive {
            0 => self.diskette,
            0x80 => self.hard_disk,
            _ => None,
        }
    }

    /// The number of sectors of a drive. A small image is filled with zeroes up to the end of a diskette or a cylinder.
    pub(super) fn sectors(&self, geometry: &Geometry) -> u64 {
        (self.content.len() as u64).div_ceil(SECTOR).max(geometry.total())
    }

    /// Reads a sector of a disk that has `sectors`.
    ///
    /// # Errors
    /// The disk has no such sector.
    pub(super) fn read(&self, sector: u64, sectors: u64) -> Result<[u8; SECTOR_BYTES], Past> {
        if sector >= sectors {
            return Err(Past);
        }
        if let Some(written) = self.written.get(&sector) {
            return Ok(**written);
        }
        let mut bytes = [0; SECTOR_BYTES];
        let start = usize::try_from(sector.saturating_mul(SECTOR)).ok();
        let rest = start.and_then(|start| self.content.get(start..));
        for (to, from) in bytes.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
        Ok(bytes)
    }

    /// Writes a sector of a disk that has `sectors`.
    ///
    /// # Errors
    /// The disk has no such sector.
    pub(super) fn write(
        &mut self,
        sector: u64,
        sectors: u64,
        bytes: &[u8; SECTOR_BYTES],
    ) -> Result<(), Past> {
        if sector >= sectors {
            return Err(Past);
        }
        self.written.insert(sector, Box::new(*bytes));
        Ok(())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a disk of {} bytes", self.content.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: usize) -> Disk {
        let bytes: Vec<u8> = (0..len).map(|at| ((at / 512) as u8).wrapping_add(1)).collect();
        Disk::new(Arc::new(bytes.into()))
    }

    #[test]
    fn the_size_of_an_image_tells_its_drive() {
        for (len, drive, drives) in
            [(512, 0x80, (1, 1)), (1_474_560, 0, (0, 1)), (163_840, 0, (0, 1)), (4 << 20, 0x80, (1, 0))]
        {
            let disk = image(len);
            assert_eq!((disk.drive(), disk.drives()), (drive, drives), "{len}");
            assert!(disk.geometry(drive).is_some() && disk.geometry(1).is_none());
        }
    }

    #[test]
    fn an_image_is_not_written_and_a_small_one_is_filled_up() {
        let mut disk = image(700);
        let sectors = disk.sectors(&Geometry::DISKETTE);
        assert_eq!(sectors, 2880);
        let second = disk.read(1, sectors).unwrap();
        assert_eq!((second[187], second[188]), (2, 0));
        assert_eq!(disk.read(2879, sectors).unwrap(), [0; 512]);
        assert!(matches!(disk.read(2880, sectors), Err(Past)));
        assert!(matches!(disk.write(u64::MAX, sectors, &[7; 512]), Err(Past)));
        disk.write(1, sectors, &[7; 512]).unwrap();
        assert_eq!(disk.read(1, sectors).unwrap(), [7; 512]);
    }
}
