//! Flat images: bytes that are copied to one address and entered at the first byte.

use super::geometry::{SECTOR, boot_drive};
use super::{BOOT_SECTOR, Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::x86::modes::{Mode, Start};
use std::borrow::Cow;

impl Image {
    /// Creates an image from a flat binary: `bytes` at `start`, entered at the first byte in `mode`.
    ///
    /// # Errors
    /// [`ImageError::Empty`] if there are no bytes.
    pub fn flat(bytes: impl Into<Cow<'static, [u8]>>, mode: Mode, start: Gpa) -> Result<Self, ImageError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        let segment = Segment { start, file: 0..bytes.len(), size: bytes.len() as u64, executable: true };
        Ok(Self::of(bytes, vec![segment], Start::new(mode, start), false))
    }

    /// Creates an image from a disk: a BIOS loads its first sector to 0x7c00, and enters it there in real mode. The machine
    /// answers the calls of a BIOS, and the disk is the boot disk. Writes to it stay in memory.
    ///
    /// # Errors
    /// [`ImageError::Empty`] if there are no bytes.
    pub fn disk(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ImageError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        let start = Gpa(BOOT_SECTOR);
        let file = 0..bytes.len().min(SECTOR as usize);
        let segment = Segment { start, file, size: SECTOR, executable: true };
        let boot_drive = Some(boot_drive(bytes.len() as u64));
        let start = Start { boot_drive, ..Start::new(Mode::Real, start) };
        Ok(Self { is_boot_disk: true, ..Self::of(bytes, vec![segment], start, false) })
    }
}
