//! The disk behind a block device: reads and writes its image, and flushes it.
//!
//! The size of the disk is the size of the image when it was opened. If the file is truncated later, reads of the missing
//! part fail, and writes to it extend the file again.
//!
//! All work is done in pieces of a few milliseconds. Between two pieces it ends if the run must end.

use crate::device::virtio::image::{Image, SECTOR};
use crate::error::Error;
use crate::host::{WriteBack, printable, write_back};
use crate::memory::{GuestMemory, Span, TransferError};
use std::io;
use std::ops::Range;
use std::path::Path;

/// The most bytes that a flush leaves to fdatasync. It writes more in pieces of at least this size.
const FLUSH_PIECE: u64 = 4 << 20;
/// The most pieces of a flush. A larger disk has larger pieces, because each one takes two system calls even if it has no
/// data to write.
const FLUSH_PIECES: u64 = 1 << 16;
/// The number of pieces that are on their way to the storage while a flush waits for one of them.
const PIECES_AHEAD: u64 = 16;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    /// Set by a write, and cleared by a successful flush.
    dirty: bool,
    /// The data that may wait in the host's cache for the next flush. Before the first flush it is the whole image, which
    /// another program may have just written.
    unflushed: Unflushed,
    /// The error of the first flush that failed. The kernel reports a lost write only once, and forgets it then.
    lost: Option<String>,
    /// The kinds of failures that were reported.
    reported: Vec<(&'static str, i32)>,
}

/// Data in the host's cache.
#[derive(Clone, Debug, Default)]
struct Unflushed {
    /// The number of bytes.
    bytes: u64,
    /// The range that contains them. Empty if there are none.
    range: Range<u64>,
}

impl Unflushed {
    fn add(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        self.range = match self.range.is_empty() {
            true => start..end,
            false => self.range.start.min(start)..self.range.end.max(end),
        };
        self.bytes = self.bytes.saturating_add(len);
    }
}

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The guest's mistake: the request is not inside the disk.
    #[error("is outside the disk")]
    Outside,
    /// The guest's mistake: the request is not a whole number of sectors.
    #[error("is not a whole number of sectors of {SECTOR} bytes")]
    PartOfSector,
    /// The guest's mistake: a buffer is not in guest memory. Nothing was transferred.
    #[error("has a buffer that is not in guest memory")]
    NotMemory,
    /// The guest's mistake: it wrote to a read-only disk.
    #[error("is a write, and the disk is read-only")]
    ReadOnly,
    /// The guest's mistake: the device does not have this type of request.
    #[error("is of a type that the disk does not support")]
    Unsupported,
    /// The host's failure. The first field is the participle of the operation.
    #[error("could not be {0}: {1}")]
    Host(&'static str, io::Error),
    /// The image has become shorter.
    #[error("could not be {0}: the file is shorter than the {1} bytes that it had at the start")]
    Short(&'static str, u64),
    /// An earlier flush has failed.
    #[error("could not be flushed: an earlier flush failed: {0}")]
    Lost(String),
    /// The run must end. The request is not complete.
    #[error("was cut off")]
    CutOff,
}

impl Failure {
    fn of_transfer(done: &'static str) -> impl FnOnce(TransferError) -> Self {
        move |error| match error {
            TransferError::NotMemory => Self::NotMemory,
            TransferError::CutOff => Self::CutOff,
            TransferError::Host(error) => Self::Host(done, error),
        }
    }

    /// The kind of failure: a name, and the errno of the host.
    fn kind(&self) -> (&'static str, i32) {
        match self {
            Self::Outside => ("outside", 0),
            Self::PartOfSector => ("part of a sector", 0),
            Self::NotMemory => ("buffer", 0),
            Self::ReadOnly => ("read-only", 0),
            Self::Unsupported => ("unsupported", 0),
            Self::Host(done, error) => (done, error.raw_os_error().unwrap_or(0)),
            Self::Short(done, _) => (done, -1),
            Self::Lost(_) => ("lost", 0),
            Self::CutOff => ("cut off", 0),
        }
    }

    /// True if the host failed, and not the guest.
    fn is_of_host(&self) -> bool {
        matches!(self, Self::Host(..) | Self::Short(..) | Self::Lost(_))
    }
}

impl Disk {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// The image does not exist, cannot be used as a disk, or is in use. The message says what to do.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        Ok(Self::of(Image::open(path, read_only, false)?))
    }

    /// The same for an image that is raw, even if its first or last bytes are those of another format.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_raw(path: &Path, read_only: bool) -> Result<Self, Error> {
        Ok(Self::of(Image::open(path, read_only, true)?))
    }

    fn of(image: Image) -> Self {
        let unflushed = Unflushed { bytes: image.size, range: 0..image.size };
        Self { image, dirty: false, unflushed, lost: None, reported: Vec::new() }
    }

    /// The size in sectors.
    pub fn sectors(&self) -> u64 {
        self.image.size / SECTOR
    }

    /// True if the disk is read-only.
    pub fn is_read_only(&self) -> bool {
        self.image.read_only
    }

    /// The serial number that the guest sees: the first 20 bytes of the file name, with `_` for each byte that is not a
    /// visible ASCII character, padded with zeroes.
    pub(crate) fn serial(&self) -> [u8; 20] {
        let mut serial = [0; 20];
        let name = self.image.path.file_name().unwrap_or_default().as_encoded_bytes();
        for (to, from) in serial.iter_mut().zip(name) {
            *to = if from.is_ascii_graphic() { *from } else { b'_' };
        }
        serial
    }

    /// The kinds of failures that were reported.
    #[cfg(test)]
    pub(crate) fn reported(&self) -> Vec<&'static str> {
        self.reported.iter().map(|(name, _)| *name).collect()
    }

    /// The byte offset of a request for `len` bytes from `sector`.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Failure::PartOfSector);
        }
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(len));
        start.filter(|_| end.is_some_and(|end| end <= self.image.size)).ok_or(Failure::Outside)
    }

    /// Reads from `sector` into `spans`, until `must_end` returns true. Returns the number of bytes.
    pub(crate) fn read(
        &mut self,
        memory: &GuestMemory,
        sector: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
    ) -> Result<u64, Failure> {
        const DONE: &str = "read";
        let len = total(spans);
        let offset = self.offset(sector, len)?;
        let moved = memory.read_from_file_at(&self.image.file, offset, spans, must_end);
        match moved.map_err(Failure::of_transfer(DONE))? {
            moved if moved == len => Ok(moved),
            _ => Err(Failure::Short(DONE, self.image.size)),
        }
    }

    /// Writes `spans` from `sector`, until `must_end` returns true. Returns the number of bytes.
    pub(crate) fn write(
        &mut self,
        memory: &GuestMemory,
        sector: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
    ) -> Result<u64, Failure> {
        const DONE: &str = "written";
        let len = total(spans);
        let offset = self.offset(sector, len)?;
        if self.image.read_only {
            return Err(Failure::ReadOnly);
        }
        self.dirty = true;
        self.unflushed.add(offset, len);
        let moved = memory.write_to_file_at(&self.image.file, offset, spans, must_end);
        match moved.map_err(Failure::of_transfer(DONE))? {
            moved if moved == len => Ok(moved),
            _ => Err(Failure::Short(DONE, self.image.size)),
        }
    }

    /// Flushes earlier writes to the storage of the host, until `must_end` returns true. After one flush has failed, every
    /// later one fails: the data of the first is lost, and the kernel does not report that again.
    pub(crate) fn flush(&mut self, must_end: &dyn Fn() -> bool) -> Result<(), Failure> {
        if self.image.read_only {
            return Ok(());
        }
        if let Some(why) = &self.lost {
            return Err(Failure::Lost(why.clone()));
        }
        let answer = self
            .write_back(must_end)
            .and_then(|()| self.image.file.sync_data().map_err(|error| Failure::Host("flushed", error)));
        match &answer {
            Ok(()) => (self.dirty, self.unflushed) = (false, Unflushed::default()),
            Err(Failure::Host(_, error)) => self.lost = Some(error.to_string()),
            Err(_) => {}
        }
        answer
    }

    /// Writes the data in the host's cache to the storage, if it may be too much for a single fdatasync, which cannot be
    /// interrupted. While it waits for one piece, the next ones are on their way.
    fn write_back(&self, must_end: &dyn Fn() -> bool) -> Result<(), Failure> {
        let Unflushed { bytes, range: Range { start, end } } = self.unflushed.clone();
        if bytes <= FLUSH_PIECE {
            return Ok(());
        }
        let piece = FLUSH_PIECE.max(self.image.size / FLUSH_PIECES);
        let step = |start, step| {
            write_back(&self.image.file, start, piece, step).map_err(|error| Failure::Host("flushed", error))
        };
        let pieces = || (start..end).step_by(usize::try_from(piece).unwrap_or(usize::MAX));
        let mut ahead = pieces().peekable();
        for start in pieces() {
            if must_end() {
                return Err(Failure::CutOff);
            }
            let limit = start.saturating_add(piece.saturating_mul(PIECES_AHEAD));
            while let Some(next) = ahead.next_if(|next| *next < limit) {
                step(next, WriteBack::Begin)?;
            }
            step(start, WriteBack::Wait)?;
        }
        Ok(())
    }

    /// Flushes at the end of the machine, until `must_end` returns true: the data is then in the host's cache, as after a
    /// kill. A flush takes time, so this does nothing if there was no write since the last one.
    ///
    /// # Errors
    /// Data was lost. The text says which image.
    pub(crate) fn close(&mut self, must_end: &dyn Fn() -> bool) -> Result<(), String> {
        if !self.dirty || must_end() {
            return Ok(());
        }
        match self.flush(must_end) {
            Err(failure) if failure.is_of_host() => Err(self.describe(&failure)),
            _ => Ok(()),
        }
    }

    /// Reports a failure of a request. Each kind is reported once, because a guest may repeat the request without end.
    pub(crate) fn report(&mut self, failure: &Failure) {
        let kind = failure.kind();
        // The failure of the first flush was reported, and requests that are cut off are not failures.
        if matches!(failure, Failure::Lost(_) | Failure::CutOff) || self.reported.contains(&kind) {
            return;
        }
        self.reported.push(kind);
        log::warn!("{}", self.describe(failure));
    }

    /// A sentence about a failure.
    fn describe(&self, failure: &Failure) -> String {
        let image = printable(&self.image.path);
        match failure.is_of_host() {
            true => format!("the disk image {image} {failure}"),
            false => format!("a request of the guest to the disk {image} failed, because it {failure}"),
        }
    }
}

/// The number of bytes of a request.
fn total(spans: &[Span]) -> u64 {
    // This cannot saturate: memory has no room for that many spans of 32-bit lengths.
    spans.iter().fold(0, |total: u64, span| total.saturating_add(span.len.into()))
}

#[cfg(test)]
mod tests;
