//! The medium of a drive that is a file of the host.

use crate::device::pc::medium::{Fault, MAX_SECTORS, Medium, SECTOR};
use crate::device::virtio::Disk;
use crate::device::virtio::disk::Failure;
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::{Gpa, GuestMemory, PAGE, Span};
use crate::shutdown::Deadline;

/// The most sectors that one call moves, in bytes.
const BUFFER: usize = MAX_SECTORS * SECTOR;
const _: () = assert!((BUFFER as u64).is_multiple_of(PAGE));

/// A disk with a buffer.
#[derive(Debug)]
pub struct FileMedium {
    disk: Disk,
    /// Memory into which the disk reads, and from which it writes.
    buffer: GuestMemory,
    deadline: Deadline,
}

impl FileMedium {
    /// A disk with its buffer.
    ///
    /// # Errors
    /// The host has no memory left.
    pub fn new(disk: Disk) -> Result<Self, Error> {
        let buffer = GuestMemory::new(&[(Gpa(0), BUFFER as u64)])?;
        Ok(Self { disk, buffer, deadline: Deadline::default() })
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

impl Medium for FileMedium {
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn serial(&self) -> [u8; 20] {
        self.disk.serial()
    }

    fn begin_run(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Fault> {
        let spans = [span(data.len())?];
        let deadline = &self.deadline;
        let read = self.disk.read(&self.buffer, sector, &spans, &|| deadline.must_end().is_some());
        read.map_err(|failure| self.fault(&failure))?;
        self.buffer.read(Gpa(0), data);
        Ok(())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Fault> {
        let spans = [span(data.len())?];
        // The whole buffer is memory.
        self.buffer.restore(Gpa(0), data).map_err(|_| Fault::Outside)?;
        let deadline = &self.deadline;
        let written = self.disk.write(&self.buffer, sector, &spans, &|| deadline.must_end().is_some());
        written.map(drop).map_err(|failure| self.fault(&failure))
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let deadline = &self.deadline;
        let flushed = self.disk.flush(&|| deadline.must_end().is_some());
        flushed.map_err(|failure| self.fault(&failure))
    }

    fn close(&mut self) -> Result<(), Stop> {
        let deadline = &self.deadline;
        self.disk.close(&|| deadline.must_give_up().is_some()).map_err(Stop::host)
    }
}

/// The first bytes of the buffer.
fn span(len: usize) -> Result<Span, Fault> {
    let len = u32::try_from(len).ok().filter(|_| len <= BUFFER && len.is_multiple_of(SECTOR));
    len.map(|len| Span { start: Gpa(0), len }).ok_or(Fault::Outside)
}
