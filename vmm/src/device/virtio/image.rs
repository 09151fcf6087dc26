//! The image of a disk: a raw file or a block device with the content of the disk.
//!
//! An image is locked while a machine uses it (flock(2)): one machine may write it, or any number of machines may read
//! it. An image that the host itself uses can only be read: a block device that is mounted, or a file behind a loop device.

use crate::error::Error;
use crate::host::{is_shortage, printable};
use format::Format;
use loop_device::SYS_BLOCK;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

mod format;
mod loop_device;

/// The size of a sector, in bytes: the unit of the protocol (virtio 1.2, section 5.2).
pub const SECTOR: u64 = 512;

/// An open and locked image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// The size in bytes.
    pub(crate) size: u64,
}

impl Image {
    /// Opens and locks the image at `path`. With `is_raw`, its content is not looked at.
    ///
    /// # Errors
    /// The image does not exist, cannot be used as a disk, is not a raw image, or is in use. The message says what to do.
    pub(crate) fn open(path: &Path, read_only: bool, is_raw: bool) -> Result<Self, Error> {
        let refuse = |why: String| Error::Config(format!("the disk image {} {why}", printable(path)));
        if path.as_os_str().is_empty() {
            return Err(Error::Config("--disk needs a file name: give --disk FILE or --disk FILE,ro".into()));
        }
        let mut file = open_file(path, read_only).map_err(|error| match is_shortage(&error) {
            true => Error::host("opening a disk image")(error),
            false => refuse(refusal(&error, read_only)),
        })?;
        let failed = |error: io::Error| refuse(format!("cannot be used: {error}: choose another file"));
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(refuse(NOT_A_FILE.into()));
        }
        if !read_only && let Some(device) = loop_device::attached(Path::new(SYS_BLOCK), &metadata) {
            return Err(refuse(format!(
                "is attached to the loop device /dev/{device}, which may be mounted: detach it (umount, losetup -d \
                 /dev/{device}), or use it read-only (FILE,ro)"
            )));
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
        if size == 0 && metadata.file_type().is_block_device() {
            return Err(refuse("has no medium: attach one (for a loop device: losetup)".into()));
        }
        if size == 0 {
            return Err(refuse("is empty: give it a size (truncate -s 64M FILE)".into()));
        }
        let format = if is_raw { None } else { format::of_file(&file, size).map_err(failed)? };
        if let Some(Format { name, command }) = format {
            return Err(refuse(format!(
                "is {name}, and no raw image: make a raw image of it ({command}), or give FILE,raw if a raw disk begins or \
                 ends with these bytes"
            )));
        }
        if size != whole {
            return Err(refuse(format!(
                "has a size of {size}, which is not a multiple of {SECTOR} bytes: pad it (truncate -s {whole} FILE)"
            )));
        }
        Ok(Self { file, path: path.to_owned(), read_only, size })
    }
}

const NOT_A_FILE: &str = "is neither a file nor a block device: give a raw image";

/// Opens an image. A block device that will be written is opened exclusively (O_EXCL without O_CREAT, open(2)): the kernel
/// refuses it while it is mounted or used in another way, and refuses to mount it later.
fn open_file(path: &Path, read_only: bool) -> io::Result<File> {
    let is_device = |metadata: &Metadata| metadata.file_type().is_block_device();
    // Without O_CREAT, O_EXCL is defined for block devices only.
    let exclusive = !read_only && fs::metadata(path).is_ok_and(|metadata| is_device(&metadata));
    // O_NONBLOCK, because opening a pipe would wait for its writer. It has no effect on files.
    let flags = libc::O_NONBLOCK | if exclusive { libc::O_EXCL } else { 0 };
    let file = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)?;
    if !read_only && !exclusive && is_device(&file.metadata()?) {
        // Another file was put at this path meanwhile.
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok(file)
}

/// The reason why an image cannot be opened, and what to do.
fn refusal(error: &io::Error, read_only: bool) -> String {
    use io::ErrorKind::{self, IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        NotFound => "does not exist: create it (truncate -s 64M FILE), or correct the path".into(),
        IsADirectory => NOT_A_FILE.into(),
        PermissionDenied | ReadOnlyFilesystem if !read_only => {
            format!("cannot be written: {error}: use it read-only (FILE,ro), or allow writing (chmod u+w)")
        }
        ErrorKind::ResourceBusy => {
            "is mounted or in use: unmount it (findmnt, lsblk), or use it read-only (FILE,ro)".into()
        }
        ErrorKind::ExecutableFileBusy => "is a running program: use a copy".into(),
        // The error of opening a socket.
        _ if error.raw_os_error() == Some(libc::ENXIO) => NOT_A_FILE.into(),
        _ => format!("cannot be opened: {error}: allow this user to read it (ls -l)"),
    }
}

#[cfg(test)]
mod tests;
