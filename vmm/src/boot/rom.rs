//! ROMs: firmware that the processor enters at its reset vector.
//!
//! The ROM ends at 4 GiB, where a processor begins after a reset: 16 bytes before the end (Intel SDM volume 3, section
//! 10.1.4). The end of the ROM is also below 1 MiB, in RAM, because firmware continues there in real mode.

use super::{Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::x86::modes::{Mode, Start};
use std::borrow::Cow;

/// The address after the ROM.
const END: u64 = 1 << 32;
/// The address of the first instruction.
const RESET_VECTOR: u64 = END - 16;
/// The sizes of a ROM: the smallest one, of which all are a multiple, and the largest one.
const UNIT: u64 = 64 << 10;
const LARGEST: u64 = 16 << 20;
/// The address after the copy in low memory, and the most bytes of it.
const LOW_END: u64 = 1 << 20;
const MOST_LOW: u64 = 128 << 10;

impl Image {
    /// Creates an image from a ROM, which is 64 KiB to 16 MiB long.
    ///
    /// # Errors
    /// [`ImageError::BadRom`]: its size cannot be that of a ROM, or it has no code at its end.
    pub fn rom(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ImageError> {
        let bytes = bytes.into();
        let len = bytes.len();
        let size = len as u64;
        if !(UNIT..=LARGEST).contains(&size) || !size.is_multiple_of(UNIT) {
            return Err(ImageError::BadRom(format!(
                "it has {size} bytes, and a ROM has 64 KiB to 16 MiB, in steps of 64 KiB"
            )));
        }
        let vector = bytes.get(len.saturating_sub(16)..).unwrap_or_default();
        if vector.iter().all(|byte| *byte == 0) || vector.iter().all(|byte| *byte == 0xff) {
            return Err(ImageError::BadRom(
                "it has no code at its reset vector, 16 bytes before its end".into(),
            ));
        }
        let low = size.min(MOST_LOW);
        let tail = len.saturating_sub(usize::try_from(low).unwrap_or(len));
        let part = |end: u64, size: u64, file| Segment {
            start: Gpa(end.saturating_sub(size)),
            file,
            size,
            executable: true,
        };
        let segments = vec![part(LOW_END, low, tail..len), part(END, size, 0..len)];
        let start = Start { from_reset: true, ..Start::new(Mode::Real, Gpa(RESET_VECTOR)) };
        Ok(Self::of(bytes, segments, start, true))
    }

    /// The address and the size of the ROM. `None` if the image is none.
    pub(crate) fn rom_range(&self) -> Option<(Gpa, u64)> {
        let high = self.segments.last().filter(|_| self.start.from_reset)?;
        Some((high.start, high.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rom_ends_at_4_gib_and_its_end_is_below_1_mib() {
        let mut bytes = vec![0xff; 256 << 10];
        bytes[(256 << 10) - 16] = 0xea;
        let image = Image::rom(bytes).unwrap();
        let places: Vec<_> =
            image.segments().iter().map(|part| (part.start.0, part.file.clone(), part.size)).collect();
        assert_eq!(places, [(0xe_0000, 0x2_0000..0x4_0000, 0x2_0000), (0xfffc_0000, 0..0x4_0000, 0x4_0000)]);
        assert_eq!(
            (image.entry(), image.rom_range()),
            (Gpa(0xffff_fff0), Some((Gpa(0xfffc_0000), 0x4_0000)))
        );
        assert!(image.check(1 << 20).is_ok());
    }

    #[test]
    fn what_cannot_be_a_rom_is_refused() {
        for (len, text) in [
            (0, "64 KiB to 16 MiB"),
            (65_535, "64 KiB to 16 MiB"),
            ((64 << 10) + 512, "it has 66048 bytes"),
            ((16 << 20) + (64 << 10), "64 KiB to 16 MiB"),
            (64 << 10, "no code at its reset vector"),
        ] {
            let message = Image::rom(vec![0xff; len]).unwrap_err().to_string();
            assert!(message.contains(text), "{len}: {message}");
        }
        assert!(Image::rom(vec![0; 64 << 10]).is_err());
        assert!(Image::rom(vec![0x90; 16 << 20]).is_ok());
    }
}
