//! Files that are not raw images. A guest that writes to such a file as a disk destroys it, and a guest that reads it finds
//! no file system.

use crate::device::virtio::image::SECTOR;
use crate::file_format::FileFormat;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A format, and the command that makes a raw image of a file in this format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// The name, as a noun phrase.
    pub(super) name: String,
    pub(super) command: String,
}

impl Format {
    /// `None` for a format whose bytes may well be the content of a raw disk, such as a tar archive or a boot sector.
    fn of(format: FileFormat) -> Option<Self> {
        let (name, command) = match format {
            FileFormat::Disk(name, qemu_name) => (
                format!("a disk image of the format {name}"),
                format!("qemu-img convert -f {qemu_name} -O raw FILE NEW"),
            ),
            FileFormat::Compressed(name, program) => {
                (format!("a file that {name} compressed"), format!("{program} FILE"))
            }
            FileFormat::Archive(name @ ("zip" | "7z" | "RAR"), program) => {
                (format!("an archive of the format {name}"), format!("{program} FILE"))
            }
            _ => return None,
        };
        Some(Self { name, command })
    }
}

/// The format of `file`, which has `size` bytes, if it is not a raw image.
///
/// # Errors
/// The file cannot be read.
pub(super) fn of_file(file: &File, size: u64) -> io::Result<Option<Format>> {
    let (mut first, mut last) = ([0; SECTOR as usize], [0; SECTOR as usize]);
    read(file, 0, &mut first)?;
    // A raw image of one sector has only a start.
    if let Some(at) = size.checked_sub(SECTOR).filter(|at| *at > 0) {
        read(file, at, &mut last)?;
    }
    let at_start = FileFormat::of_magic(&first).and_then(Format::of);
    Ok(at_start.or_else(|| FileFormat::of_last_sector(&last).and_then(Format::of)))
}
/// Reads the bytes at `offset`. Bytes after the end of the file stay as they are.
fn read(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => break,
            Ok(count) => {
                bytes = bytes.get_mut(count..).unwrap_or_default();
                offset = offset.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
