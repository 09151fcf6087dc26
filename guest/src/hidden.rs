//! The hidden guests of `vmm grade --vmm`: small programs that the grader copies over the guest of a student's VMM. Each
//! prints a text, and leaves words, that only the seed tells ([`Params`]).
//!
//! A template has placeholders, 32-bit numbers that occur once. [`image`](Template::image) replaces them.

use crate::catalogue::HIDDEN;

/// The bits of the code of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Real mode.
    Bits16,
    /// Protected mode.
    Bits32,
    /// Long mode.
    Bits64,
}

/// A hidden guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// Prints a text on port 0xE9.
    Text(Width),
    /// Sends a message over SIMVIRTIO. There is none for real mode.
    Driver(Width),
}

/// The values for the placeholders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// The seed of the text.
    pub seed: u32,
    /// The number of letters; for a driver, the number beyond the length of the queue.
    pub letters: u32,
    /// The word at [`WORD`].
    pub word: u32,
    /// The linear address of the first byte.
    pub address: u32,
    /// The layout that the driver takes: 0 to find out, 1 for the table, 2 for the struct.
    pub layout: u32,
}

/// The guest physical address of the word of the seed.
pub const WORD: u64 = 0x408;

const SEED: u32 = 0x5EED_0001;
const LETTERS: u32 = 0x5EED_0002;
const WORD_VALUE: u32 = 0x5EED_0003;
const LOG: u32 = 0x5EED_0004;
const LAYOUT: u32 = 0x5EED_0005;

/// The size of a driver's log, at the end of its image.
const LOG_SIZE: usize = 52;

impl Template {
    fn code(self) -> &'static [u8] {
        let [text16, text32, text64, driver32, driver64] = &HIDDEN;
        match self {
            Self::Text(Width::Bits16) => text16.image,
            Self::Text(Width::Bits32) => text32.image,
            Self::Text(Width::Bits64) => text64.image,
            Self::Driver(Width::Bits16 | Width::Bits32) => driver32.image,
            Self::Driver(Width::Bits64) => driver64.image,
        }
    }

    /// The size of the image in bytes.
    pub fn size(self) -> usize {
        self.code().len()
    }

    /// The offset of the log in the image.
    pub fn log_at(self) -> usize {
        self.size().saturating_sub(LOG_SIZE)
    }

    /// The image for these values.
    pub fn image(self, params: Params) -> Vec<u8> {
        let log = params.address.wrapping_add(u32::try_from(self.log_at()).unwrap_or_default());
        let values = [
            (SEED, params.seed),
            (LETTERS, params.letters),
            (WORD_VALUE, params.word),
            (LOG, log),
            (LAYOUT, params.layout),
        ];
        let mut image = self.code().to_vec();
        for (index, bytes) in self.code().windows(4).enumerate() {
            let value = values.iter().find(|(placeholder, _)| bytes == placeholder.to_le_bytes());
            let place = image.get_mut(index..).and_then(|rest| rest.first_chunk_mut());
            if let (Some((_, value)), Some(place)) = (value, place) {
                *place = value.to_le_bytes();
            }
        }
        image
    }
}

/// The text that a hidden guest makes from a seed, without the line feed that may follow.
pub fn text(seed: u32, letters: usize) -> String {
    let mut state = seed;
    let letter = |_| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        char::from(b'j'.wrapping_add(u8::try_from(state >> 28).unwrap_or_default()))
    };
    (0..letters).map(letter).collect()
}

/// The log of a driver: what it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The number of finished steps: 1 magic and length read, 2 RESET, 3 CONFIG, 4 READY, 5 message sent, 6 message taken.
    pub step: u32,
    /// The magic as read.
    pub magic: u32,
    /// The four bytes after the magic, as they were at the start.
    pub config: u32,
    /// The layout: 1 for the table, 2 for the struct.
    pub layout: u32,
    /// The length of the queue that it used.
    pub length: u32,
    /// The device status as it was last read.
    pub status: u32,
    /// The wait that it was last in: 1 the device takes R, 2 RESET, 3 CONFIG, 4 the device takes C, 5 READY, 6 space in the
    /// queue, 7 an empty queue.
    pub waits_for: u32,
    /// TX tail as it was last read.
    pub tail: u32,
    /// The letters that were sent.
    pub sent: u32,
    /// The count of the device table at CONFIG.
    pub count: u32,
    /// The word of the seed.
    pub word: u32,
}

impl Log {
    /// The number of bytes of a log.
    pub const SIZE: usize = LOG_SIZE;

    /// Reads a log.
    pub fn of(bytes: &[u8; Self::SIZE]) -> Self {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Self {
            step: next(),
            magic: next(),
            config: next(),
            layout: next(),
            length: next(),
            status: next(),
            waits_for: next(),
            tail: next(),
            sent: next(),
            count: next(),
            word: next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Template; 5] = [
        Template::Text(Width::Bits16),
        Template::Text(Width::Bits32),
        Template::Text(Width::Bits64),
        Template::Driver(Width::Bits32),
        Template::Driver(Width::Bits64),
    ];

    #[test]
    fn each_placeholder_occurs_once() {
        for template in ALL {
            let count = |value: u32| {
                template.code().windows(4).filter(|bytes| **bytes == value.to_le_bytes()).count()
            };
            let driver = usize::from(matches!(template, Template::Driver(_)));
            assert_eq!((count(SEED), count(LETTERS)), (1, 1), "{template:?}");
            assert_eq!(count(WORD_VALUE), 1 + driver, "{template:?}");
            assert_eq!((count(LOG), count(LAYOUT)), (driver, driver), "{template:?}");
            let left = template.image(Params::default());
            assert!(!left.windows(3).any(|bytes| bytes == [0, 0xed, 0x5e]), "{template:?}");
        }
    }

    /// An assignment's guest is loaded at 0, and its result is at 0x400.
    #[test]
    fn every_image_fits_below_the_result() {
        for template in ALL {
            assert!(template.size() <= 0x400, "{template:?} has {} bytes", template.size());
        }
    }

    #[test]
    fn a_text_has_no_word_that_a_vmm_prints() {
        let long = text(7, 5000);
        assert_eq!(long.len(), 5000);
        assert!(long.starts_with(&text(7, 24)) && text(8, 24) != text(7, 24));
        assert!(long.bytes().all(|letter| (b'j'..=b'y').contains(&letter)), "no e and no i: not `exit`");
    }

    #[test]
    fn a_log_has_its_words_in_order() {
        let mut bytes = [0; Log::SIZE];
        for (index, byte) in bytes.iter_mut().step_by(4).enumerate() {
            *byte = u8::try_from(index).unwrap() + 1;
        }
        let log = Log::of(&bytes);
        assert_eq!((log.step, log.magic, log.length, log.count, log.word), (1, 2, 5, 10, 11));
    }
}
