//! The disk behind an ATA drive: whole sectors, into and out of bytes. The BIOS reads and writes the same disk.

use crate::device::virtio::Disk;
use crate::device::virtio::disk::Failure;
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::{Gpa, GuestMemory, PAGE, Span};
use crate::shutdown::Deadline;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The size of a sector, in bytes.
pub(crate) const SECTOR: usize = 512;
/// The most sectors that one call moves.
pub(crate) const MAX_SECTORS: usize = 128;
/// The most sectors that one call moves, in bytes.
const BUFFER: usize = MAX_SECTORS * SECTOR;
const _: () = assert!((BUFFER as u64).is_multiple_of(PAGE));

/// The reason why an access failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The sectors are not on the disk.
    Outside,
    /// The disk is read-only.
    ReadOnly,
    /// The host failed. The failure has been reported.
    Host,
    /// The run must end, for this reason.
    Stop(Stop),
}

/// A disk with a buffer.
#[derive(Debug)]
pub(crate) struct Media {
    disk: Disk,
    /// Memory into which the disk reads, and from which it writes.
    buffer: GuestMemory,
    deadline: Deadline,
}

/// A disk that several devices have in common.
pub(crate) type SharedMedia = Arc<Mutex<Media>>;

/// Locks a disk. After a panic the run is over, so its state no longer matters.
pub(crate) fn lock(media: &Mutex<Media>) -> MutexGuard<'_, Media> {
    media.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Media {
    /// A disk with its buffer.
    ///
    /// # Errors
    /// The host has no memory left.
    pub(crate) fn new(disk: Disk) -> Result<Self, Error> {
        let buffer = GuestMemory::new(&[(Gpa(0), BUFFER as u64)])?;
        Ok(Self { disk, buffer, deadline: Deadline::default() })
    }

    /// The number of sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    /// True if the disk cannot be written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    /// The serial number, padded with zeroes.
    pub(crate) fn serial(&self) -> [u8; 20] {
        self.disk.serial()
    }

    /// Sets the deadline of a run. An access gives up when it has passed.
    pub(crate) fn begin_run(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Reads whole sectors from `sector`, at most [`MAX_SECTORS`].
    pub(crate) fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Fault> {
        let spans = [span(data.len())?];
        let deadline = &self.deadline;
        let read = self.disk.read(&self.buffer, sector, &spans, &|| deadline.must_end().is_some());
        read.map_err(|failure| self.fault(&failure))?;
        self.buffer.read(Gpa(0), data);
        Ok(())
    }

    /// Writes whole sectors from `sector`, at most [`MAX_SECTORS`].
    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Fault> {
        let spans = [span(data.len())?];
        // The whole buffer is memory.
        self.buffer.restore(Gpa(0), data).map_err(|_| Fault::Outside)?;
        let deadline = &self.deadline;
        let written = self.disk.write(&self.buffer, sector, &spans, &|| deadline.must_end().is_some());
        written.map(drop).map_err(|failure| self.fault(&failure))
    }

    /// Flushes earlier writes to the storage of the host.
    pub(crate) fn flush(&mut self) -> Result<(), Fault> {
        let deadline = &self.deadline;
        let flushed = self.disk.flush(&|| deadline.must_end().is_some());
        flushed.map_err(|failure| self.fault(&failure))
    }

    /// Flushes at the end of a run.
    ///
    /// # Errors
    /// Data was lost.
    pub(crate) fn close(&mut self) -> Result<(), Stop> {
        let deadline = &self.deadline;
        self.disk.close(&|| deadline.must_give_up().is_some()).map_err(Stop::host)
    }

    /// Reports a failure.
    fn fault(&mut self, failure: &Failure) -> Fault {
        self.disk.report(failure);
        match failure {
            Failure::CutOff => Fault::Stop(self.deadline.must_end().unwrap_or(Stop::Interrupted)),
            Failure::Outside | Failure::PartOfSector => Fault::Outside,
            Failure::ReadOnly => Fault::ReadOnly,
            _ => Fault::Host,
        }
    }
}

/// The first bytes of the buffer.
fn span(len: usize) -> Result<Span, Fault> {
    let len = u32::try_from(len).ok().filter(|_| len <= BUFFER && len.is_multiple_of(SECTOR));
    len.map(|len| Span { start: Gpa(0), len }).ok_or(Fault::Outside)
}
