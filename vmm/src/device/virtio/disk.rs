//! The image of a disk: a raw file or a block device with the content of the disk.
//!
//! An image is locked while a machine uses it (flock(2)): one machine may write it, or any number of machines may read
//! it. The size of the disk is the size of the image when it was opened. If the file is truncated later, reads of the
//! missing part fail, and writes to it extend the file again.

use crate::error::Error;
use crate::host::printable;
use crate::memory::{GuestMemory, Span};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The size of a sector, in bytes: the unit of the protocol (virtio 1.2, section 5.2).
pub const SECTOR: u64 = 512;

/// An open and locked image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    /// The size in bytes.
    size: u64,
    /// Set by a write, and cleared by a successful flush.
    dirty: bool,
    /// Set after the warning about the first failure.
    has_warned: bool,
}

impl Disk {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// The image does not exist, cannot be used as a disk, or is in use by another machine. The message says what to
    /// do.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let refuse = |why: String| Error::Config(format!("the disk image {} {why}", printable(path)));
        if path.as_os_str().is_empty() {
            return Err(Error::Config("--disk needs a file name: give --disk FILE or --disk FILE,ro".into()));
        }
        let mut options = OpenOptions::new();
        // O_NONBLOCK, because opening a pipe would wait for its writer. It has no effect on files.
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
                    "is in use by another machine: end that machine, or use a copy (machines can share an image only \
                     if all of them use it read-only: FILE,ro)"
                        .into(),
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(refuse(format!("cannot be locked: {error}: move it to another file system")));
            }
        }
        // For a block device the metadata has no size, so seek to the end.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let whole = size.next_multiple_of(SECTOR);
        if size == 0 {
            return Err(refuse("is empty: give it a size (truncate -s 64M FILE)".into()));
        }
        if size != whole {
            return Err(refuse(format!(
                "has a size of {size}, which is not a multiple of {SECTOR} bytes: pad it (truncate -s {whole} FILE)"
            )));
        }
        Ok(Self { file, path: path.to_owned(), read_only, size, dirty: false, has_warned: false })
    }

    /// The size in sectors.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    /// True if the disk is read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The serial number that the guest sees: the first 20 bytes of the file name, with `_` for each byte that is not a
    /// visible ASCII character, padded with zeroes.
    pub(crate) fn serial(&self) -> [u8; 20] {
        let mut serial = [0; 20];
        let name = self.path.file_name().unwrap_or_default().as_encoded_bytes();
        for (to, from) in serial.iter_mut().zip(name) {
            *to = if from.is_ascii_graphic() { *from } else { b'_' };
        }
        serial
    }

    /// True after the warning about the first failure.
    #[cfg(test)]
    pub(crate) fn has_warned(&self) -> bool {
        self.has_warned
    }

    /// The byte offset of a request for `len` bytes from `sector`. `None` if the request is not inside the disk, or
    /// `len` is not a multiple of the sector size.
    fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        (start.checked_add(len)? <= self.size && len.is_multiple_of(SECTOR)).then_some(start)
    }

    /// Reads from `sector` into `spans`. Returns the number of bytes, or `None` after a failure.
    pub(crate) fn read(&mut self, memory: &GuestMemory, sector: u64, spans: &[Span]) -> Option<u64> {
        let len = total(spans);
        let answer = memory.read_from_file_at(&self.file, self.offset(sector, len)?, spans);
        self.complete(len, "read", answer)
    }

    /// Writes `spans` from `sector`. Returns the number of bytes, or `None` after a failure.
    pub(crate) fn write(&mut self, memory: &GuestMemory, sector: u64, spans: &[Span]) -> Option<u64> {
        let len = total(spans);
        let offset = self.offset(sector, len).filter(|_| !self.read_only)?;
        self.dirty = true;
        let answer = memory.write_to_file_at(&self.file, offset, spans);
        self.complete(len, "written", answer)
    }

    /// Flushes earlier writes to the storage of the host (fdatasync). `None` after a failure.
    pub(crate) fn flush(&mut self) -> Option<()> {
        if self.read_only {
            return Some(());
        }
        let answer = self.file.sync_data();
        self.dirty &= answer.is_err();
        self.complete(0, "flushed", answer.map(|()| 0)).map(drop)
    }

    /// Flushes at the end of the machine. A flush takes time, so this does nothing if there was no write since the last
    /// one.
    pub(crate) fn close(&mut self) {
        if self.dirty {
            self.flush();
        }
    }

    /// Checks that a transfer moved all `len` bytes. Returns `len`, or warns and returns `None`. Only the first failure
    /// is logged, because a guest may repeat the request without end.
    fn complete(&mut self, len: u64, done: &str, answer: io::Result<u64>) -> Option<u64> {
        let why = match answer {
            Ok(bytes) if bytes == len => return Some(bytes),
            Ok(_) => format!("the file is shorter than the {} bytes that it had at the start", self.size),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.has_warned, true) {
            let image = printable(&self.path);
            log::warn!("the disk image {image} could not be {done}: {why}");
        }
        None
    }
}

const NOT_A_FILE: &str = "is neither a file nor a block device: give a raw image";

/// The reason why an image cannot be opened, and what to do.
fn refusal(error: &io::Error, read_only: bool) -> String {
    use io::ErrorKind::{self, IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        NotFound => "does not exist: create it (truncate -s 64M FILE), or correct the path".into(),
        IsADirectory => NOT_A_FILE.into(),
        PermissionDenied | ReadOnlyFilesystem if !read_only => {
            format!("cannot be written: {error}: use it read-only (FILE,ro), or allow writing (chmod u+w)")
        }
        ErrorKind::ExecutableFileBusy => "is a running program: use a copy".into(),
        // The error of opening a socket.
        _ if error.raw_os_error() == Some(libc::ENXIO) => NOT_A_FILE.into(),
        _ => format!("cannot be opened: {error}: allow this user to read it (ls -l)"),
    }
}

/// The number of bytes of a request.
fn total(spans: &[Span]) -> u64 {
    // This cannot saturate: memory has no room for that many spans of 32-bit lengths.
    spans.iter().fold(0, |total: u64, span| total.saturating_add(span.len.into()))
}

#[cfg(test)]
mod tests;
