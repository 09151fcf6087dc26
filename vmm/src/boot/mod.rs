//! From a file, or an embedded guest, to an [`Image`]: what to copy where, and where to begin.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub(crate) mod acpi;
pub(crate) mod elf;
pub(crate) mod flat;
pub(crate) mod linux;

pub use elf::is_elf;
pub use linux::{Kernel, is_kernel};

use crate::error::ImageError;
use crate::host::printable;
use crate::memory::{Gpa, GuestMemory, MAX_RAM};
use crate::x86::modes::Mode;
use std::borrow::Cow;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A part of an image: bytes of the file, and zeroes after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes.
    pub start: Gpa,
    /// Its bytes in the file.
    pub file: Range<usize>,
    /// Its size in memory, in bytes: at least that in the file.
    pub size: u64,
}

impl Segment {
    /// The address after its last, or the last address of all.
    pub fn end(&self) -> u64 {
        self.start.0.saturating_add(self.size)
    }
}

/// What to load, where, and how to begin.
#[derive(Clone, Debug)]
pub struct Image {
    /// Shared, so that a clone costs nothing.
    bytes: Arc<Cow<'static, [u8]>>,
    segments: Vec<Segment>,
    entry: Gpa,
    mode: Mode,
}

/// Nothing, which fits everywhere.
impl Default for Image {
    fn default() -> Self {
        Self { bytes: Arc::default(), segments: Vec::new(), entry: Gpa(0), mode: Mode::Real }
    }
}

impl Image {
    /// What to copy where.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The bytes of each segment, and their address.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (Gpa, &[u8])> {
        let bytes = |segment: &Segment| self.bytes.get(segment.file.clone()).unwrap_or_default();
        self.segments.iter().map(move |segment| (segment.start, bytes(segment)))
    }

    /// Where the guest begins.
    pub fn entry(&self) -> Gpa {
        self.entry
    }

    /// The mode that it begins in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The same, entered in another mode.
    pub fn entered_in(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The addresses that it takes, a range for each segment.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.segments.iter().map(|segment| segment.start.0..segment.end()).collect()
    }

    /// The address after the last that it takes.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }

    /// Whether it takes any of `[start, end)`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.segments.iter().any(|segment| segment.start.0 < end && start < segment.end())
    }

    /// Whether one of its own bytes in `[start, end)` is not zero.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        self.segments.iter().any(|segment| {
            let bytes = self.bytes.get(segment.file.clone()).unwrap_or_default();
            let index = |gpa: u64| {
                let offset = usize::try_from(gpa.saturating_sub(segment.start.0)).unwrap_or(usize::MAX);
                offset.min(bytes.len())
            };
            bytes.get(index(start)..index(end)).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0))
        })
    }

    /// Checks that the image fits into RAM of `ram` bytes, and that its mode can start at its entry point.
    ///
    /// # Errors
    /// It does not, or it cannot.
    pub(crate) fn check(&self, ram: u64) -> Result<(), ImageError> {
        match self.mode {
            Mode::Real if self.entry.0 > 0xffff => return Err(ImageError::BeyondRealMode(self.entry.0)),
            Mode::Protected | Mode::Long | Mode::User if self.entry.0 > 0xffff_ffff => {
                return Err(ImageError::BeyondMode { mode: self.mode, entry: self.entry.0 });
            }
            _ => {}
        }
        let fits =
            |segment: &&Segment| segment.start.0.checked_add(segment.size).is_some_and(|end| end <= ram);
        match self.segments.iter().find(|segment| !fits(segment)) {
            Some(segment) => Err(ImageError::OutsideRam { start: segment.start.0, end: segment.end(), ram }),
            None => Ok(()),
        }
    }

    /// Copies the image into RAM of `ram` bytes.
    ///
    /// # Errors
    /// It does not fit, or cannot start in its mode.
    pub fn load(&self, memory: &GuestMemory, ram: u64) -> Result<(), ImageError> {
        self.check(ram)?;
        // RAM is new and therefore zero: bytes that are not in the file need no clearing.
        for (start, bytes) in self.contents() {
            let end = start.0.saturating_add(bytes.len() as u64);
            memory.write(start, bytes).map_err(|_| ImageError::OutsideRam { start: start.0, end, ram })?;
        }
        Ok(())
    }
}

/// Reads a file that holds an image: an ELF file, or a flat binary of `limit` bytes at most.
///
/// # Errors
/// It cannot be read, is no regular file, is empty, or is too large.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let (file, length) = open(path)?;
    // Files that the kernel makes up have no size either, and some of them wait for ever.
    if length == 0 {
        return Err(ImageError::Empty);
    }
    read_image(file, length, limit, path)
}

/// Opens a regular file, and gives its length in bytes.
fn open(path: &Path) -> Result<(fs::File, u64), ImageError> {
    let failed = |source| ImageError::Read { path: printable(path), source };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile { path: printable(path) });
    }
    Ok((fs::File::open(path).map_err(failed)?, metadata.len()))
}

/// Reads what should be `expected` bytes. The file may change meanwhile: what counts is what comes.
fn read_image(mut file: impl Read, expected: u64, limit: u64, path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { path: printable(path), source };
    let mut bytes = Vec::new();
    file.by_ref().take(4).read_to_end(&mut bytes).map_err(failed)?;
    // An ELF file may have more that is not loaded, such as debug information.
    let limit = if is_elf(&bytes) { MAX_RAM } else { limit };
    let too_large = |size| ImageError::TooLarge { path: printable(path), size, limit };
    if expected > limit {
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
    fn what_is_no_image_is_refused() {
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
    fn an_elf_file_may_be_larger_than_memory_but_not_endless() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\x7fELF").unwrap();
        file.as_file().set_len(0x2000).unwrap();
        assert_eq!(read_file(file.path(), 0x1000).unwrap().len(), 0x2000);
        file.as_file().set_len(MAX_RAM + 1).unwrap();
        assert!(matches!(read_file(file.path(), 0x1000), Err(ImageError::TooLarge { limit: MAX_RAM, .. })));
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_what_comes() {
        let read = |comes: &[u8], expected| read_image(comes, expected, 0x10, Path::new("x"));
        assert_eq!(read(&[1; 0x10], 1).unwrap(), [1; 0x10], "it grew");
        assert_eq!(read(&[1; 3], 0x10).unwrap(), [1; 3], "it shrank");
        assert!(matches!(read(&[], 0x10), Err(ImageError::Empty)));
        assert!(matches!(read(&[1; 0x11], 1), Err(ImageError::TooLarge { size: 0x11, .. })));
        assert!(matches!(read(&[1; 0x100], 1), Err(ImageError::TooLarge { .. })));
        // A reader that fails halfway is an error, not half an image.
        let fails = Read::chain(&[1u8; 8][..], fs::File::open("/").unwrap());
        assert!(matches!(read_image(fails, 0x10, 0x10, Path::new("x")), Err(ImageError::Read { .. })));
    }

    fn memory() -> GuestMemory {
        GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap()
    }

    #[test]
    fn an_image_must_fit_into_ram() {
        for (address, fits) in [(0, true), (0x1ffe, true), (0x1fff, false), (u64::MAX, false)] {
            let image = Image::flat(&[1, 2][..], Mode::Long, Gpa(address)).unwrap();
            let loaded = image.load(&memory(), 0x2000);
            assert_eq!(loaded.is_ok(), fits, "{address:#x}: {loaded:?}");
        }
    }

    /// Also the zeroes after its bytes, and not what lies behind RAM, such as SIMVIRTIO's window.
    #[test]
    fn all_of_a_segment_must_fit_into_ram() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000), (Gpa(0x2000), 0x1000)]).unwrap();
        for (start, len, size, fits) in [
            (0x1000, 1, 0x1000, true),
            (0x1000, 1, 0x1001, false),
            (0x1fff, 2, 2, false),
            (0x2000, 1, 1, false),
        ] {
            let segments = vec![Segment { start: Gpa(start), file: 0..len, size }];
            let bytes = Arc::new(Cow::from(vec![0xf4; 2]));
            let image = Image { bytes, segments, entry: Gpa(start), mode: Mode::Long };
            let loaded = image.load(&memory, 0x2000);
            assert_eq!(loaded.is_ok(), fits, "{start:#x} {size:#x}: {loaded:?}");
        }
    }

    #[test]
    fn only_bytes_of_its_own_cover_a_place() {
        let image = Image::flat(&[1, 0, 0, 2][..], Mode::Long, Gpa(0x3ff)).unwrap();
        let covered = [(0, 0x3ff), (0x3ff, 0x400), (0x400, 0x402), (0x400, 0x408), (0x403, u64::MAX)];
        assert_eq!(covered.map(|(start, end)| image.covers(start, end)), [false, true, false, true, false]);
        assert!(image.overlaps(0x400, 0x402) && !image.overlaps(0x403, 0x500));
    }

    #[test]
    fn an_image_must_begin_where_its_mode_can() {
        let ram = 0x2_0000;
        let memory = GuestMemory::new(&[(Gpa(0), ram)]).unwrap();
        let load = |mode, at| Image::flat(&[1][..], mode, Gpa(at)).unwrap().load(&memory, ram);
        assert!(load(Mode::Real, 0xffff).is_ok());
        assert!(matches!(load(Mode::Real, 0x1_0000), Err(ImageError::BeyondRealMode(0x1_0000))));
        assert!(load(Mode::Protected, 0x1_0000).is_ok());
        assert!(matches!(load(Mode::Long, 1 << 32), Err(ImageError::BeyondMode { .. })));
    }
}
