//! The medium of a drive: whole sectors. The ATA channel and the BIOS have the same media.

use crate::exit::Stop;
use crate::shutdown::Deadline;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The size of a sector, in bytes.
pub const SECTOR: usize = 512;
/// The most sectors that one call moves.
pub const MAX_SECTORS: usize = 128;

/// The reason why an access failed.
#[derive(Debug)]
pub enum Fault {
    /// The sectors are not on the medium.
    Outside,
    /// The medium is read-only.
    ReadOnly,
    /// The host failed. The failure has been reported.
    Host,
    /// The run must end, for this reason.
    Stop(Stop),
}

/// A medium.
pub trait Medium: fmt::Debug + Send {
    /// The number of sectors.
    fn sectors(&self) -> u64;

    /// True if the medium cannot be written.
    fn is_read_only(&self) -> bool;

    /// The serial number, padded with zeroes.
    fn serial(&self) -> [u8; 20];

    /// Sets the deadline of a run. An access gives up when it has passed.
    fn begin_run(&mut self, deadline: Deadline);

    /// Reads whole sectors from `sector`, at most `MAX_SECTORS`.
    fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Fault>;

    /// Writes whole sectors from `sector`, at most `MAX_SECTORS`.
    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Fault>;

    /// Flushes earlier writes to the storage of the host.
    fn flush(&mut self) -> Result<(), Fault>;

    /// Flushes at the end of a run.
    ///
    /// # Errors
    /// Data was lost.
    fn close(&mut self) -> Result<(), Stop>;
}

/// A medium that several devices have in common.
pub type SharedMedium = Arc<Mutex<dyn Medium>>;

/// Locks a medium. After a panic the run is over, so its state no longer matters.
pub(crate) fn lock(medium: &SharedMedium) -> MutexGuard<'_, dyn Medium + 'static> {
    medium.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a disk, which are not written.
pub type Content = Arc<Cow<'static, [u8]>>;

/// A disk in memory: the bytes of an image, and the sectors that the guest has written. The image is not changed.
pub struct CopiedDisk {
    content: Content,
    /// The sectors that the guest has written. At most as many as the disk has.
    written: BTreeMap<u64, Box<[u8; SECTOR]>>,
    sectors: u64,
    /// A read past the end of the content was told.
    has_warned: bool,
}

impl CopiedDisk {
    /// A disk with this number of sectors. Those after the end of the content are zero.
    pub fn new(content: Content, sectors: u64) -> Self {
        Self { content, written: BTreeMap::new(), sectors, has_warned: false }
    }

    /// The numbers of the sectors of an access to `len` bytes.
    fn numbers(&self, sector: u64, len: usize) -> Result<std::ops::Range<u64>, Fault> {
        let end = sector.checked_add((len / SECTOR) as u64).filter(|_| len.is_multiple_of(SECTOR));
        end.filter(|end| *end <= self.sectors).map(|end| sector..end).ok_or(Fault::Outside)
    }
}

impl Medium for CopiedDisk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn serial(&self) -> [u8; 20] {
        *b"BOOT\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    }

    fn begin_run(&mut self, _: Deadline) {}

    fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Fault> {
        let numbers = self.numbers(sector, data.len())?;
        for (number, to) in numbers.zip(data.chunks_exact_mut(SECTOR)) {
            if let Some(written) = self.written.get(&number) {
                to.copy_from_slice(&written[..]);
                continue;
            }
            to.fill(0);
            let start = number.checked_mul(SECTOR as u64).and_then(|start| usize::try_from(start).ok());
            let rest = start.and_then(|start| self.content.get(start..)).unwrap_or_default();
            if rest.is_empty() && !std::mem::replace(&mut self.has_warned, true) {
                let bytes = self.content.len();
                log::warn!(
                    "the guest reads sector {number} of its boot disk (the first is 0), and the file ends after {bytes} bytes: \
                     what is missing reads as zeroes"
                );
            }
            to.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Fault> {
        let numbers = self.numbers(sector, data.len())?;
        for (number, bytes) in numbers.zip(data.chunks_exact(SECTOR)) {
            let mut sector = Box::new([0; SECTOR]);
            sector.copy_from_slice(bytes);
            self.written.insert(number, sector);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

impl fmt::Debug for CopiedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a disk of {} bytes", self.content.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_disk_keeps_what_is_written_and_ends_with_zeroes() {
        let content: Content = Arc::new(vec![1; 700].into());
        let mut disk = CopiedDisk::new(content.clone(), 10);
        let mut data = [9; 2 * SECTOR];
        disk.read(1, &mut data).unwrap();
        assert_eq!((data[187], data[188], data[SECTOR]), (1, 0, 0));
        disk.write(1, &[7; 2 * SECTOR]).unwrap();
        disk.read(1, &mut data).unwrap();
        assert_eq!(data, [7; 2 * SECTOR]);
        assert_eq!(content[600], 1);
        for (sector, len) in [(9, 2 * SECTOR), (10, SECTOR), (u64::MAX, SECTOR), (0, 100)] {
            assert!(matches!(disk.read(sector, &mut vec![0; len]), Err(Fault::Outside)), "{sector}");
            assert!(matches!(disk.write(sector, &vec![0; len]), Err(Fault::Outside)), "{sector}");
        }
    }
}
