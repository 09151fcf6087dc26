//! Formats of files that are not raw images. A guest that writes to such a file as a disk destroys it, and a guest that
//! reads it finds no file system.
//!
//! The signatures are those of the documentation of each format. A raw disk has none of them: it begins with a boot sector
//! or a partition table, with the superblock of a file system, or with zeroes.

use crate::device::virtio::image::SECTOR;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A format, and the command that makes a raw image of a file in this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// The name, with its article.
    pub(super) name: &'static str,
    pub(super) command: &'static str,
}

const QEMU: &str = "qemu-img convert -O raw FILE NEW";
const QCOW: Format = Format { name: "a qcow image", command: QEMU };
const QCOW2: Format = Format { name: "a qcow2 image", command: QEMU };
const VMDK: Format = Format { name: "a VMDK image", command: QEMU };
const PARALLELS: Format = Format { name: "a Parallels image", command: QEMU };
// qemu-img takes a VHD image of fixed size for a raw one, unless it is told.
const VHD: Format = Format { name: "a VHD image", command: "qemu-img convert -f vpc -O raw FILE NEW" };
const DMG: Format = Format { name: "a DMG image", command: "qemu-img convert -f dmg -O raw FILE NEW" };

/// The signatures in the first bytes of a file: their offset, and the bytes.
const AT_START: &[(usize, &[u8], Format)] = &[
    (0, b"QFI\xfb\0\0\0\x01", QCOW),
    (0, b"QFI\xfb\0\0\0\x02", QCOW2),
    (0, b"QFI\xfb\0\0\0\x03", QCOW2),
    (0, b"QED\0", Format { name: "a QED image", command: QEMU }),
    (0, b"vhdxfile", Format { name: "a VHDX image", command: QEMU }),
    (0, b"KDMV", VMDK),
    (0, b"COWD", VMDK),
    (0, b"# Disk DescriptorFile", VMDK),
    (0x40, b"\x7f\x10\xda\xbe", Format { name: "a VDI image", command: QEMU }),
    (0, b"WithoutFreeSpace", PARALLELS),
    (0, b"WithouFreSpacExt", PARALLELS),
    (0, b"conectix", VHD),
    (0, b"\x3a\xff\x26\xed\x01\0", Format { name: "an Android sparse image", command: "simg2img FILE NEW" }),
    (0, b"\x1f\x8b\x08", Format { name: "a gzip-compressed file", command: "gzip -dc FILE > NEW" }),
    (0, b"\xfd7zXZ\0", Format { name: "an xz-compressed file", command: "xz -dc FILE > NEW" }),
    (0, b"\x28\xb5\x2f\xfd", Format { name: "a zstd-compressed file", command: "zstd -dc FILE > NEW" }),
    (0, b"\x04\x22\x4d\x18", Format { name: "an lz4-compressed file", command: "lz4 -dc FILE > NEW" }),
    (0, b"BZh", Format { name: "a bzip2-compressed file", command: "bzip2 -dc FILE > NEW" }),
    (0, b"PK\x03\x04", Format { name: "a zip archive", command: "unzip FILE" }),
    (0, b"7z\xbc\xaf\x27\x1c", Format { name: "a 7z archive", command: "7z x FILE" }),
];

/// The signatures at the start of the last sector of a file.
const AT_END: &[(&[u8], Format)] = &[(b"conectix", VHD), (b"koly\0\0\0\x04\0\0\x02\0", DMG)];

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
    let at_start = AT_START
        .iter()
        .find(|(at, signature, _)| first.get(*at..).is_some_and(|bytes| bytes.starts_with(signature)));
    let at_end = AT_END.iter().find(|(signature, _)| last.starts_with(signature));
    Ok(at_start.map(|(_, _, format)| *format).or(at_end.map(|(_, format)| *format)))
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
