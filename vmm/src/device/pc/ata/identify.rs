//! The answer to IDENTIFY DEVICE: what the drive is and can do (ATA/ATAPI-6, section 8.15).

use super::drive::Geometry;
use crate::device::pc::medium::SECTOR;

/// The number of words.
const WORDS: usize = SECTOR / 2;
/// The most sectors that LBA28 reaches.
const MAX_LBA28: u64 = (1 << 28) - 1;

const MODEL: &[u8] = b"VMM DISK";
const FIRMWARE: &[u8] = b"1.0";

/// The values that the answer depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) sectors: u64,
    pub(super) serial: [u8; 20],
    /// The geometry after power-on, and the one that is set.
    pub(super) default_geometry: Geometry,
    pub(super) geometry: Geometry,
    /// The sectors of a block of READ MULTIPLE, and their maximum. 0 if it is not set.
    pub(super) multiple: u8,
    pub(super) max_multiple: u8,
    pub(super) write_cache: bool,
}

impl Identity {
    /// The answer.
    pub(super) fn bytes(&self) -> [u8; SECTOR] {
        let mut words = [0u16; WORDS];
        let mut set = |word: usize, value: u16| {
            if let Some(to) = words.get_mut(word) {
                *to = value;
            }
        };
        let half = |value: u64, index: u32| value.wrapping_shr(index.saturating_mul(16)) as u16;
        let (first, now) = (self.default_geometry, self.geometry);
        let lba28 = self.sectors.min(MAX_LBA28);
        let cache = if self.write_cache { 0x20 } else { 0 };
        let multiple = if self.multiple == 0 { 0 } else { 0x100 | u16::from(self.multiple) };
        let fields = [
            // A fixed drive.
            (0, 0x0040),
            (1, first.cylinders(self.sectors)),
            (3, first.heads.into()),
            (6, first.sectors.into()),
            (47, 0x8000 | u16::from(self.max_multiple)),
            // LBA.
            (49, 0x0200),
            (50, 0x4000),
            // The words 54 to 58 and 64 to 70 are valid.
            (53, 3),
            (54, now.cylinders(self.sectors)),
            (55, now.heads.into()),
            (56, now.sectors.into()),
            (57, half(now.reach(self.sectors), 0)),
            (58, half(now.reach(self.sectors), 1)),
            (59, multiple),
            (60, half(lba28, 0)),
            (61, half(lba28, 1)),
            // PIO modes 3 and 4, and their cycle times in nanoseconds.
            (64, 3),
            (67, 120),
            (68, 120),
            // ATA-1 to ATA/ATAPI-6.
            (80, 0x7e),
            // Supported: NOP, look-ahead, write cache, power management; flush, flush for LBA48, LBA48.
            (82, 0x4068),
            (83, 0x7400),
            (84, 0x4000),
            // Enabled.
            (85, 0x4048 | cache),
            (86, 0x3400),
            (87, 0x4000),
            // The hardware reset found the drive by its jumper.
            (93, 0x4009),
        ];
        fields.into_iter().for_each(|(word, value)| set(word, value));
        (0..4).for_each(|index| set((index as usize).saturating_add(100), half(self.sectors, index)));
        for (word, text, len) in [(10, &self.serial[..], 20), (23, FIRMWARE, 8), (27, MODEL, 40)] {
            text_words(text, len)
                .enumerate()
                .for_each(|(index, value)| set(index.saturating_add(word), value));
        }
        with_checksum(&words)
    }
}

/// The words of a text of `len` bytes, padded with blanks. The first byte of a word is its high one.
fn text_words(text: &[u8], len: usize) -> impl Iterator<Item = u16> {
    let byte = |index: usize| text.get(index).copied().filter(|byte| *byte != 0).unwrap_or(b' ');
    (0..len).step_by(2).map(move |at| u16::from_be_bytes([byte(at), byte(at.saturating_add(1))]))
}

/// The bytes of the words. The last word has the signature 0xa5, and a checksum that makes the sum of all bytes 0.
fn with_checksum(words: &[u16; WORDS]) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())).for_each(|(to, from)| *to = from);
    let [.., signature, checksum] = &mut bytes;
    (*signature, *checksum) = (0xa5, 0);
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let [.., checksum] = &mut bytes;
    *checksum = sum.wrapping_neg();
    bytes
}
