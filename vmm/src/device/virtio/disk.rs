//! The image behind a disk: a raw file, or a block device, whose bytes are the disk's.
//!
//! An image is locked while a machine has it (flock(2)): one machine may write it, or any number read it.
//! Its size is what it was when it was opened. If somebody shrinks it, reads of what is missing fail, and
//! writes there make it longer again.

use crate::error::Error;
use crate::host::printable;
use crate::memory::{GuestMemory, Span};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Size of a sector, in bytes: the unit of the protocol (virtio 1.2, section 5.2).
pub const SECTOR: u64 = 512;

/// An image, open and locked.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    /// In bytes.
    size: u64,
    /// Something was written since the last flush.
    dirty: bool,
    /// Somebody has been told of a failure.
    told: bool,
}

impl Disk {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// It is not there, cannot be used as a disk, or another machine has it; the sentence says what to do.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let refuse = |why: String| Error::Config(format!("the disk image {} {why}", printable(path)));
        if path.as_os_str().is_empty() {
            return Err(Error::Config("the disk image has no name: give --disk FILE, or FILE,ro".into()));
        }
        let mut options = OpenOptions::new();
        // A pipe that nobody writes would keep the program waiting; files do not care.
        options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Error::host("opening a disk image")(error),
            _ => refuse(refusal(&error, read_only)),
        })?;
        let failed = |error: io::Error| refuse(format!("cannot be used: {error}: choose another file"));
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(refuse(NOT_A_FILE.into()));
        }
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse(
                    "is in use by another machine: end that one, or give a copy (two machines may share it where \
                     both have it read-only: FILE,ro)"
                        .into(),
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(refuse(format!("cannot be locked: {error}: move it to another file system")));
            }
        }
        // A block device has its size only here.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let whole = size.next_multiple_of(SECTOR);
        if size == 0 {
            return Err(refuse("is empty: give it a size (truncate -s 64M FILE)".into()));
        }
        if size != whole {
            return Err(refuse(format!(
                "has {size} bytes, which is no multiple of {SECTOR}: pad it (truncate -s {whole} FILE)"
            )));
        }
        Ok(Self { file, path: path.to_owned(), read_only, size, dirty: false, told: false })
    }

    /// Its size in sectors.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    /// Whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The last part of its path, as far as that is 20 characters of ASCII: what a guest may know of it.
    pub(crate) fn serial(&self) -> [u8; 20] {
        let mut serial = [0; 20];
        let name = self.path.file_name().unwrap_or_default().as_encoded_bytes();
        for (to, from) in serial.iter_mut().zip(name) {
            *to = if from.is_ascii_graphic() { *from } else { b'_' };
        }
        serial
    }

    /// Whether a failure was told.
    #[cfg(test)]
    pub(crate) fn has_warned(&self) -> bool {
        self.told
    }

    /// Where a request for `len` bytes from `sector` starts, in bytes, if it lies in the disk.
    fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        (start.checked_add(len)? <= self.size && len.is_multiple_of(SECTOR)).then_some(start)
    }

    /// Reads from `sector` on into `spans`. Returns how many bytes; `None` where that failed.
    pub(crate) fn read(&mut self, memory: &GuestMemory, sector: u64, spans: &[Span]) -> Option<u64> {
        let len = total(spans);
        let answer = memory.read_from_file_at(&self.file, self.offset(sector, len)?, spans);
        self.all(len, "read", answer)
    }

    /// Writes `spans` from `sector` on. Returns how many bytes; `None` where that failed.
    pub(crate) fn write(&mut self, memory: &GuestMemory, sector: u64, spans: &[Span]) -> Option<u64> {
        let len = total(spans);
        let offset = self.offset(sector, len).filter(|_| !self.read_only)?;
        self.dirty = true;
        let answer = memory.write_to_file_at(&self.file, offset, spans);
        self.all(len, "written", answer)
    }

    /// Returns once what was written will outlast the host's power; `None` where that failed.
    pub(crate) fn flush(&mut self) -> Option<()> {
        if self.read_only {
            return Some(());
        }
        let answer = self.file.sync_data();
        self.dirty &= answer.is_err();
        self.all(0, "flushed", answer.map(|()| 0)).map(drop)
    }

    /// The machine has ended: what it wrote shall outlast the host's power, too. This takes a time, so it is
    /// done only where something was written.
    pub(crate) fn close(&mut self) {
        if self.dirty {
            self.flush();
        }
    }

    /// What was asked for, or a warning: one, since a guest may try again and again.
    fn all(&mut self, len: u64, done: &str, answer: io::Result<u64>) -> Option<u64> {
        let why = match answer {
            Ok(bytes) if bytes == len => return Some(bytes),
            Ok(_) => format!("it ends before its {} bytes, which it had when the machine started", self.size),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.told, true) {
            let image = printable(&self.path);
            log::warn!("the disk image {image} could not be {done}: {why}");
        }
        None
    }
}

const NOT_A_FILE: &str = "is neither a file nor a block device: give a raw image";

/// Why an image cannot be opened, and what to do.
fn refusal(error: &io::Error, read_only: bool) -> String {
    use io::ErrorKind::{self, IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        NotFound => "is not there: make one (truncate -s 64M FILE), or correct the path".into(),
        IsADirectory => NOT_A_FILE.into(),
        PermissionDenied | ReadOnlyFilesystem if !read_only => {
            format!("cannot be written: {error}: give it read-only (FILE,ro), or allow writing (chmod u+w)")
        }
        ErrorKind::ExecutableFileBusy => "is a program that runs: give a copy of it".into(),
        // What opening a socket says.
        _ if error.raw_os_error() == Some(libc::ENXIO) => NOT_A_FILE.into(),
        _ => format!("cannot be opened: {error}: see that this user may read it (ls -l)"),
    }
}

/// How many bytes a request has.
fn total(spans: &[Span]) -> u64 {
    // So many of 32 bits do not fit into memory as would overflow this.
    spans.iter().fold(0, |total: u64, span| total.saturating_add(span.len.into()))
}

#[cfg(test)]
mod tests;
