//! Guests to load: an [`Image`] from a file or from an embedded guest, and Linux kernels with their ACPI tables.

// May import `device`, `x86`, `memory`, `file_format`, `host` and the errors.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used
)]

#[cfg(has_kvm)]
pub(crate) mod acpi;
mod detect;
pub(crate) mod elf;
mod file;
pub(crate) mod flat;
pub(crate) mod geometry;
mod known;
#[cfg_attr(not(has_kvm), path = "absent.rs")]
pub(crate) mod linux;
#[cfg(has_kvm)]
pub(crate) mod mp;
mod protocol;
mod rom;
mod spec;

pub use detect::is_kernel;
pub use elf::{ElfCode, ElfKind, is_elf};
pub use file::read_file;
pub use known::{is_boot_sector, is_multiboot, refuse_known_formats};
pub use linux::Kernel;
pub(crate) use protocol::Firmware;
pub use protocol::{Module, Protocol};
pub use spec::ImageSpec;

use crate::error::{Error, ImageError};
use crate::memory::{Gpa, GuestMemory};
use crate::x86::general::InitialValue;
use crate::x86::modes::{Mode, Start};
use protocol::Handover;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// The address at which a BIOS loads the boot sector.
pub(crate) const BOOT_SECTOR: u64 = 0x7c00;
/// The memory into which the guest of a boot disk or a ROM may load itself.
const LOADED_BY_GUESTS: Range<u64> = 0..1 << 32;

/// A part of an image: bytes of the file, followed by zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The guest physical address of the first byte.
    pub start: Gpa,
    /// The range of its bytes in the file.
    pub file: Range<usize>,
    /// The size in memory, in bytes. At least the size in the file.
    pub size: u64,
    /// It may hold code (PF_X in an ELF file).
    pub executable: bool,
}

impl Segment {
    /// The address after the last byte, at most `u64::MAX`.
    pub fn end(&self) -> u64 {
        self.start.0.saturating_add(self.size)
    }
}

/// A guest program: its segments, its entry point and its mode.
///
/// The default image is empty: it has no segments, and its entry point is 0 in real mode.
///
/// ```
/// use vmm::boot::Image;
/// use vmm::memory::Gpa;
/// use vmm::x86::Mode;
///
/// // mov al, 42; hlt
/// let image = Image::flat(vec![0xb0, 42, 0xf4], Mode::Real, Gpa(0x1000))?;
/// assert_eq!((image.entry(), image.end()), (Gpa(0x1000), 0x1003));
/// assert_eq!(image.segments()[0].file, 0..3);
/// # Ok::<(), vmm::ImageError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Image {
    /// The content of the file. Shared, so that a clone is cheap.
    bytes: Arc<Cow<'static, [u8]>>,
    segments: Vec<Segment>,
    /// The memory besides the file: modules, and information for a kernel.
    additions: Vec<Addition>,
    start: Start,
    /// The addresses come from the file, which is an ELF file in most cases, and not from the user.
    is_elf: bool,
    /// The file is a disk, of which a BIOS loads the first sector.
    is_boot_disk: bool,
    /// The values that a kernel with its own protocol gets from its boot loader.
    handover: Option<Box<Handover>>,
}

/// Bytes that are loaded together with an image, but are not from its file.
#[derive(Clone, Debug)]
struct Addition {
    start: Gpa,
    bytes: Arc<Vec<u8>>,
}

impl Addition {
    fn range(&self) -> Range<u64> {
        self.start.0..self.start.0.saturating_add(self.bytes.len() as u64)
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::of(Cow::default(), Vec::new(), Start::new(Mode::Real, Gpa(0)), false)
    }
}

impl Image {
    /// An image without additions.
    fn of(bytes: Cow<'static, [u8]>, segments: Vec<Segment>, start: Start, is_elf: bool) -> Self {
        let bytes = Arc::new(bytes);
        Self { bytes, segments, additions: Vec::new(), start, is_elf, is_boot_disk: false, handover: None }
    }

    /// The segments to load. An ELF image has them in order of their addresses.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The address of each segment, and its bytes in the file.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (Gpa, &[u8])> {
        let bytes = |segment: &Segment| self.bytes.get(segment.file.clone()).unwrap_or_default();
        let additions = self.additions.iter().map(|addition| (addition.start, addition.bytes.as_slice()));
        self.segments.iter().map(move |segment| (segment.start, bytes(segment))).chain(additions)
    }

    /// The guest physical address of the first instruction.
    pub fn entry(&self) -> Gpa {
        self.start.entry
    }

    /// The registers with which vCPUs enter it.
    pub(crate) fn start(&self) -> &Start {
        &self.start
    }

    /// The mode at the entry point.
    pub fn mode(&self) -> Mode {
        self.start.mode
    }

    /// Returns the image with another mode at its entry point. [`Self::load`] checks that the mode can reach it.
    pub fn entered_in(self, mode: Mode) -> Self {
        Self { start: Start { mode, ..self.start }, ..self }
    }

    /// Returns the image, which is for real mode, with a segment in CS and in the data segments. The entry point stays at its
    /// address, which must be in the segment.
    pub fn in_segment(self, segment: u16) -> Self {
        Self { start: Start { segment, ..self.start }, ..self }
    }

    /// Returns the image with values for general registers at its entry point.
    ///
    /// # Errors
    /// The mode has no such register, or the value does not fit into it, or a register is given twice, or the protocol of the
    /// kernel sets it.
    pub fn with_registers(mut self, values: &[InitialValue]) -> Result<Self, Error> {
        for value in values {
            value.check(self.mode()).map_err(Error::Config)?;
            if let Some(protocol) = self.protocol().filter(|protocol| protocol.sets(value.register)) {
                return Err(Error::Config(format!(
                    "--set {value}: this is a {protocol} kernel, which gets another value there: leave it out, or start the kernel \
                     without its protocol, by a mode (FILE:32)"
                )));
            }
            if self.start.registers.iter().any(|other| other.register == value.register) {
                return Err(Error::Config(format!(
                    "--set {value}: the register is given twice: give it once"
                )));
            }
            self.start.registers.push(*value);
        }
        Ok(self)
    }

    /// The bytes of the disk, if the image is one from which a BIOS starts.
    pub(crate) fn boot_disk(&self) -> Option<Arc<Cow<'static, [u8]>>> {
        self.is_boot_disk.then(|| self.bytes.clone())
    }

    /// True if the guest loads its own code, to any place: from a boot disk, or out of a ROM.
    pub(crate) fn loads_itself(&self) -> bool {
        self.is_boot_disk || self.start.from_reset
    }

    /// The guest physical addresses that the image takes, one range for each segment, and for each module. Empty for a boot disk
    /// and for a ROM, whose guests load their own code.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        if self.loads_itself() {
            return Vec::new();
        }
        let segments = self.segments.iter().map(|segment| segment.start.0..segment.end());
        segments.chain(self.additions.iter().map(Addition::range)).collect()
    }

    /// The ranges that may hold code: the executable segments, or all if the entry point is in none of these.
    pub(crate) fn code_ranges(&self) -> Vec<Range<u64>> {
        if self.loads_itself() {
            return vec![LOADED_BY_GUESTS];
        }
        let range = |segment: &Segment| segment.start.0..segment.end();
        let mut code: Vec<_> = self.segments.iter().filter(|segment| segment.executable).map(range).collect();
        if !code.iter().any(|range| range.contains(&self.entry().0)) {
            return self.ranges();
        }
        // A kernel may run the code of its modules.
        code.extend(self.additions.iter().map(Addition::range));
        code
    }

    /// The byte of the file at a guest physical address. Zero in the part of a segment after its bytes; `None` outside all
    /// segments.
    pub(crate) fn byte_at(&self, gpa: u64) -> Option<u8> {
        let is_inside = self.segments.iter().any(|segment| segment.start.0 <= gpa && gpa < segment.end());
        let byte = self.bytes_from(gpa).and_then(|bytes| bytes.first().copied());
        is_inside.then(|| byte.unwrap_or(0))
    }

    /// The bytes of the file from a guest physical address to the end of its segment. `None` outside all segments.
    pub(crate) fn bytes_from(&self, gpa: u64) -> Option<&[u8]> {
        let segment = self.segments.iter().find(|segment| segment.start.0 <= gpa && gpa < segment.end())?;
        let offset = usize::try_from(gpa.checked_sub(segment.start.0)?).ok()?;
        self.bytes.get(segment.file.clone())?.get(offset..)
    }

    /// The address and the bytes of a flat binary that was read from a file. `None` for other images.
    pub(crate) fn flat_file(&self) -> Option<(u64, &[u8])> {
        match (&*self.bytes, self.segments.as_slice()) {
            (Cow::Owned(bytes), [segment])
                if !self.is_elf && !self.is_boot_disk && self.start.segment == 0 =>
            {
                Some((segment.start.0, bytes))
            }
            _ => None,
        }
    }

    /// The first and the last address of the first segments, in words.
    pub(crate) fn places(&self) -> String {
        list_ranges(&self.ranges())
    }

    /// The lowest address of a segment that is not in RAM. 0 if all are.
    fn lowest_outside(&self, ram: u64) -> u64 {
        let outside = self.segments.iter().filter(|segment| segment.end() > ram);
        outside.map(|segment| segment.start.0).min().unwrap_or(0)
    }

    /// The address after the last byte of the image. 0 for an empty image.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }

    /// True if a segment overlaps `[start, end)`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.segments.iter().any(|segment| segment.start.0 < end && start < segment.end())
    }

    /// True if the file has a byte for `[start, end)` that is not zero.
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
    /// * [`ImageError::OutsideRam`]: a segment is not completely in RAM.
    /// * [`ImageError::BeyondRealMode`]: the entry point of a real-mode image is not below 0x10000.
    /// * [`ImageError::BeyondMode`]: the entry point of another image is not below 4 GiB.
    /// * [`ImageError::Segments`]: an ELF file fails one of these checks.
    pub(crate) fn check(&self, ram: u64) -> Result<(), ImageError> {
        self.fits(ram).map_err(|error| match error {
            ImageError::OutsideRam { .. } | ImageError::BeyondMode { .. } if self.is_elf => {
                ImageError::Segments { places: self.places(), lowest: self.lowest_outside(ram), ram }
            }
            error => error,
        })
    }

    /// Checks the addresses of the image, without regard to their source.
    fn fits(&self, ram: u64) -> Result<(), ImageError> {
        let (mode, entry) = (self.mode(), self.entry().0);
        match mode {
            _ if self.start.from_reset => {}
            Mode::Real if entry.saturating_sub(self.start.base()) > 0xffff => {
                return Err(ImageError::BeyondRealMode(entry));
            }
            Mode::Protected | Mode::Long | Mode::User if entry > 0xffff_ffff => {
                return Err(ImageError::BeyondMode { mode, entry });
            }
            _ => {}
        }
        let rom = self.rom_range().map(|(start, _)| start);
        let fits = |segment: &&Segment| {
            let end = segment.start.0.checked_add(segment.size);
            end.is_some_and(|end| end <= ram) || rom == Some(segment.start)
        };
        match self.segments.iter().find(|segment| !fits(segment)) {
            Some(segment) => Err(ImageError::OutsideRam { start: segment.start.0, end: segment.end(), ram }),
            None => Ok(()),
        }
    }

    /// Copies the image into `memory`, whose RAM is `[0, ram)`. The memory must be new, because zeroes are not written.
    ///
    /// # Errors
    /// * [`ImageError::OutsideRam`]: a segment is not completely in RAM.
    /// * [`ImageError::BeyondRealMode`]: the entry point of a real-mode image is not below 0x10000.
    /// * [`ImageError::BeyondMode`]: the entry point of another image is not below 4 GiB.
    pub fn load(&self, memory: &GuestMemory, ram: u64) -> Result<(), ImageError> {
        self.check(ram)?;
        // RAM is new and therefore zero, so the zeroes after the bytes of the file need no store.
        for (start, bytes) in self.contents() {
            let end = start.0.saturating_add(bytes.len() as u64);
            memory.write(start, bytes).map_err(|_| ImageError::OutsideRam { start: start.0, end, ram })?;
        }
        Ok(())
    }
}

/// The first and the last address of each range, in words. At most three are listed.
///
/// ```
/// assert_eq!(vmm::boot::list_ranges(&[0x1000..0x1003, 0..1]), "0x1000 to 0x1002, 0x0 to 0x0");
/// ```
pub fn list_ranges(ranges: &[Range<u64>]) -> String {
    const LISTED: usize = 3;
    let words = |range: &Range<u64>| format!("{:#x} to {:#x}", range.start, range.end.saturating_sub(1));
    let listed: Vec<_> = ranges.iter().take(LISTED).map(words).collect();
    match ranges.len().saturating_sub(LISTED) {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// This includes the zeroes after its bytes. Memory after RAM, such as SIMVIRTIO's window, does not count.
    #[test]
    fn a_whole_segment_must_fit_into_ram() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000), (Gpa(0x2000), 0x1000)]).unwrap();
        for (start, len, size, fits) in [
            (0x1000, 1, 0x1000, true),
            (0x1000, 1, 0x1001, false),
            (0x1fff, 2, 2, false),
            (0x2000, 1, 1, false),
        ] {
            let segments = vec![Segment { start: Gpa(start), file: 0..len, size, executable: true }];
            let bytes = Cow::from(vec![0xf4; 2]);
            let image = Image::of(bytes, segments, Start::new(Mode::Long, Gpa(start)), false);
            let loaded = image.load(&memory, 0x2000);
            assert_eq!(loaded.is_ok(), fits, "{start:#x} {size:#x}: {loaded:?}");
        }
    }

    #[test]
    fn only_nonzero_bytes_of_the_file_cover_a_range() {
        let image = Image::flat(&[1, 0, 0, 2][..], Mode::Long, Gpa(0x3ff)).unwrap();
        let covered = [(0, 0x3ff), (0x3ff, 0x400), (0x400, 0x402), (0x400, 0x408), (0x403, u64::MAX)];
        assert_eq!(covered.map(|(start, end)| image.covers(start, end)), [false, true, false, true, false]);
        assert!(image.overlaps(0x400, 0x402) && !image.overlaps(0x403, 0x500));
    }

    #[test]
    fn the_mode_limits_the_entry_point() {
        let ram = 0x2_0000;
        let memory = GuestMemory::new(&[(Gpa(0), ram)]).unwrap();
        let load = |mode, at| Image::flat(&[1][..], mode, Gpa(at)).unwrap().load(&memory, ram);
        assert!(load(Mode::Real, 0xffff).is_ok());
        assert!(matches!(load(Mode::Real, 0x1_0000), Err(ImageError::BeyondRealMode(0x1_0000))));
        assert!(load(Mode::Protected, 0x1_0000).is_ok());
        assert!(matches!(load(Mode::Long, 1 << 32), Err(ImageError::BeyondMode { .. })));
    }
}
