//! Reads the files of images.

use super::is_elf;
use super::known::refuse_format;
use crate::error::ImageError;
use crate::file_format;
use crate::host::{self, printable};
use crate::memory::MAX_RAM;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// Reads a file with an image. A flat binary may have at most `limit` bytes. An ELF file may be larger, up to
/// [`MAX_RAM`], because it may contain parts that are not loaded.
///
/// ```no_run
/// use std::path::Path;
/// use vmm::boot::{Image, is_elf, read_file, refuse_known_formats};
/// use vmm::memory::{Gpa, PLAIN_RAM};
/// use vmm::x86::Mode;
///
/// let path = Path::new("guest");
/// let bytes = read_file(path, PLAIN_RAM)?;
/// let image = if is_elf(&bytes) {
///     Image::elf(bytes)?
/// } else {
///     refuse_known_formats(path, &bytes, Some(0x1000))?;
///     Image::flat(bytes, Mode::Long, Gpa(0x1000))?
/// };
/// println!("entered at {:#x}", image.entry().0);
/// # Ok::<(), vmm::ImageError>(())
/// ```
///
/// # Errors
/// The file cannot be read, is not a regular file, is empty, or is too large.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let (file, length) = open(path)?;
    // Virtual files such as those in /proc also have length 0, and reads of some of them block forever.
    if length == 0 {
        return Err(ImageError::Empty);
    }
    read_image(file, length, limit, path)
}

/// Opens a regular file. Returns it and its length in bytes.
pub(super) fn open(path: &Path) -> Result<(fs::File, u64), ImageError> {
    let failed = |source| ImageError::Read { path: printable(path), source };
    // Check the type before the file is opened, because opening a pipe would wait for its writer.
    let metadata = host::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile { path: printable(path) });
    }
    Ok((fs::File::open(path).map_err(failed)?, metadata.len()))
}

/// Reads a file of about `expected` bytes. The file may change meanwhile, so only the bytes that are read count.
fn read_image(mut file: impl Read, expected: u64, limit: u64, path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { path: printable(path), source };
    let mut bytes = Vec::new();
    file.by_ref().take(4).read_to_end(&mut bytes).map_err(failed)?;
    // An ELF file may contain parts that are not loaded, such as debug information.
    let limit = if is_elf(&bytes) { MAX_RAM } else { limit };
    let too_large = |size| ImageError::TooLarge { path: printable(path), size, limit };
    if expected > limit {
        // The file may be the image of a disk, for example. That is the better message.
        file.take(file_format::HEAD as u64).read_to_end(&mut bytes).map_err(failed)?;
        refuse_format(path, &bytes, None)?;
        return Err(too_large(expected));
    }
    let room = bytes.try_reserve_exact(usize::try_from(expected).map_err(|_| too_large(expected))?);
    room.map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 {
        0 => Err(ImageError::Empty),
        size if size > limit => Err(too_large(size)),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_that_are_not_images_are_refused() {
        let read = |path: &str| read_file(Path::new(path), 0x1000);
        assert!(matches!(read("/"), Err(ImageError::NotAFile { .. })));
        assert!(matches!(read("/dev/zero"), Err(ImageError::NotAFile { .. })));
        assert!(matches!(read("/no/such/file"), Err(ImageError::Read { .. })));
        assert!(matches!(read("/proc/kmsg"), Err(ImageError::Empty)));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(read_file(file.path(), 1), Err(ImageError::Empty)));
        file.write_all(b"x").unwrap();
        assert_eq!(read_file(file.path(), 1).unwrap(), b"x");
        file.write_all(b"y").unwrap();
        assert!(matches!(read_file(file.path(), 1), Err(ImageError::TooLarge { size: 2, limit: 1, .. })));
    }

    #[test]
    fn an_elf_file_may_be_larger_than_memory_but_is_limited() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\x7fELF").unwrap();
        file.as_file().set_len(0x2000).unwrap();
        assert_eq!(read_file(file.path(), 0x1000).unwrap().len(), 0x2000);
        file.as_file().set_len(MAX_RAM + 1).unwrap();
        assert!(matches!(read_file(file.path(), 0x1000), Err(ImageError::TooLarge { limit: MAX_RAM, .. })));
    }

    #[test]
    fn a_file_may_change_while_it_is_read() {
        let read = |comes: &[u8], expected| read_image(comes, expected, 0x10, Path::new("x"));
        assert_eq!(read(&[1; 0x10], 1).unwrap(), [1; 0x10], "it grew");
        assert_eq!(read(&[1; 3], 0x10).unwrap(), [1; 3], "it shrank");
        assert!(matches!(read(&[], 0x10), Err(ImageError::Empty)));
        assert!(matches!(read(&[1; 0x11], 1), Err(ImageError::TooLarge { size: 0x11, .. })));
        assert!(matches!(read(&[1; 0x100], 1), Err(ImageError::TooLarge { .. })));
        // A read error after some bytes is an error, not a partial image.
        let fails = Read::chain(&[1u8; 8][..], fs::File::open("/").unwrap());
        assert!(matches!(read_image(fails, 0x10, 0x10, Path::new("x")), Err(ImageError::Read { .. })));
    }
}
