//! Write-back of a file's data in parts.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The step of a write-back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WriteBack {
    /// The host starts to write the range to its storage.
    Begin,
    /// Waits until the host has written the range.
    Wait,
}

/// Writes the cached data of `len` bytes from `start` back to the storage, with sync_file_range(2). This does not replace
/// fdatasync(2), which also writes the metadata and the cache of the storage, but fdatasync is short afterwards. A file
/// system without this call does nothing.
///
/// # Errors
/// The storage failed. The kernel reports a failure once: a later fdatasync does not report it again.
pub(crate) fn write_back(file: &File, start: u64, len: u64, step: WriteBack) -> io::Result<()> {
    let flags = match step {
        WriteBack::Begin => libc::SYNC_FILE_RANGE_WRITE,
        WriteBack::Wait => {
            libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER
        }
    };
    // SAFETY: the call takes only numbers.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset(start), offset(len), flags) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(())
            }
            error => Err(error),
        },
    }
}

fn offset(bytes: u64) -> libc::off64_t {
    libc::off64_t::try_from(bytes).unwrap_or(libc::off64_t::MAX)
}
