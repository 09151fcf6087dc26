//! The keys of a keyboard with a US layout, and their scan codes.
//!
//! IBM PS/2 Hardware Interface Technical Reference, "Keyboard Scan Codes".

/// A key: its scan codes in the sets 2 and 3. That of set 1 follows from set 2, as in the keyboard controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The scan code in set 2, after 0xE0 if the key is an extended one.
    second: u8,
    is_extended: bool,
    /// The scan code in set 3.
    third: u8,
}

/// A key of the main block whose codes in the sets 2 and 3 are equal.
const fn plain(code: u8) -> Key {
    Key { second: code, is_extended: false, third: code }
}

const fn key(second: u8, third: u8) -> Key {
    Key { second, is_extended: false, third }
}

const fn extended(second: u8, third: u8) -> Key {
    Key { second, is_extended: true, third }
}

pub(super) const CONTROL: Key = key(0x14, 0x11);
pub(super) const ALT: Key = key(0x11, 0x19);
pub(super) const SHIFT: Key = plain(0x12);
pub(super) const ESCAPE: Key = key(0x76, 0x08);
pub(super) const BACKSPACE: Key = plain(0x66);
pub(super) const TAB: Key = plain(0x0d);
pub(super) const ENTER: Key = plain(0x5a);
pub(super) const SPACE: Key = plain(0x29);
pub(super) const UP: Key = extended(0x75, 0x63);
pub(super) const DOWN: Key = extended(0x72, 0x60);
pub(super) const RIGHT: Key = extended(0x74, 0x6a);
pub(super) const LEFT: Key = extended(0x6b, 0x61);
pub(super) const HOME: Key = extended(0x6c, 0x6e);
pub(super) const END: Key = extended(0x69, 0x65);
pub(super) const INSERT: Key = extended(0x70, 0x67);
pub(super) const DELETE: Key = extended(0x71, 0x64);
pub(super) const PAGE_UP: Key = extended(0x7d, 0x6f);
pub(super) const PAGE_DOWN: Key = extended(0x7a, 0x6d);
/// F1 to F12.
pub(super) const FUNCTION: [Key; 12] = [
    key(0x05, 0x07),
    key(0x06, 0x0f),
    key(0x04, 0x17),
    key(0x0c, 0x1f),
    key(0x03, 0x27),
    key(0x0b, 0x2f),
    key(0x83, 0x37),
    key(0x0a, 0x3f),
    key(0x01, 0x47),
    key(0x09, 0x4f),
    key(0x78, 0x56),
    key(0x07, 0x5e),
];

/// The keys with characters: the character, that with shift, and the key.
const CHARACTERS: [(u8, u8, Key); 47] = [
    (b'a', b'A', plain(0x1c)),
    (b'b', b'B', plain(0x32)),
    (b'c', b'C', plain(0x21)),
    (b'd', b'D', plain(0x23)),
    (b'e', b'E', plain(0x24)),
    (b'f', b'F', plain(0x2b)),
    (b'g', b'G', plain(0x34)),
    (b'h', b'H', plain(0x33)),
    (b'i', b'I', plain(0x43)),
    (b'j', b'J', plain(0x3b)),
    (b'k', b'K', plain(0x42)),
    (b'l', b'L', plain(0x4b)),
    (b'm', b'M', plain(0x3a)),
    (b'n', b'N', plain(0x31)),
    (b'o', b'O', plain(0x44)),
    (b'p', b'P', plain(0x4d)),
    (b'q', b'Q', plain(0x15)),
    (b'r', b'R', plain(0x2d)),
    (b's', b'S', plain(0x1b)),
    (b't', b'T', plain(0x2c)),
    (b'u', b'U', plain(0x3c)),
    (b'v', b'V', plain(0x2a)),
    (b'w', b'W', plain(0x1d)),
    (b'x', b'X', plain(0x22)),
    (b'y', b'Y', plain(0x35)),
    (b'z', b'Z', plain(0x1a)),
    (b'0', b')', plain(0x45)),
    (b'1', b'!', plain(0x16)),
    (b'2', b'@', plain(0x1e)),
    (b'3', b'#', plain(0x26)),
    (b'4', b'$', plain(0x25)),
    (b'5', b'%', plain(0x2e)),
    (b'6', b'^', plain(0x36)),
    (b'7', b'&', plain(0x3d)),
    (b'8', b'*', plain(0x3e)),
    (b'9', b'(', plain(0x46)),
    (b'`', b'~', plain(0x0e)),
    (b'-', b'_', plain(0x4e)),
    (b'=', b'+', plain(0x55)),
    (b'[', b'{', plain(0x54)),
    (b']', b'}', plain(0x5b)),
    (b'\\', b'|', key(0x5d, 0x5c)),
    (b';', b':', plain(0x4c)),
    (b'\'', b'"', plain(0x52)),
    (b',', b'<', plain(0x41)),
    (b'.', b'>', plain(0x49)),
    (b'/', b'?', plain(0x4a)),
];

/// The key with a character, and true if it needs shift.
pub(super) fn with_character(character: u8) -> Option<(Key, bool)> {
    if character == b' ' {
        return Some((SPACE, false));
    }
    let found = CHARACTERS.iter().find(|(plain, shifted, _)| [*plain, *shifted].contains(&character));
    found.map(|(_, shifted, key)| (*key, *shifted == character))
}

/// The scan codes of set 1 for those of set 2 below 0x80, as the keyboard controller translates them.
#[rustfmt::skip]
const TRANSLATION: [u8; 0x80] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// The byte that the controller makes of a byte of the keyboard when it translates set 2 into set 1. The byte 0xF0, after
/// which a code means a released key, is not for this function.
pub(in crate::device::pc) fn translated(byte: u8) -> u8 {
    match byte {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => TRANSLATION.get(usize::from(byte)).copied().unwrap_or(byte),
    }
}

impl Key {
    /// The bytes that report the key as pressed.
    pub(super) fn pressed(self, set: u8) -> Vec<u8> {
        match set {
            3 => vec![self.third],
            1 => self.prefixed(&[translated(self.second)]),
            _ => self.prefixed(&[self.second]),
        }
    }

    /// The bytes that report the key as released.
    pub(super) fn released(self, set: u8) -> Vec<u8> {
        match set {
            3 => vec![0xf0, self.third],
            1 => self.prefixed(&[translated(self.second) | 0x80]),
            _ => self.prefixed(&[0xf0, self.second]),
        }
    }

    fn prefixed(self, codes: &[u8]) -> Vec<u8> {
        let prefix: &[u8] = if self.is_extended { &[0xe0] } else { &[] };
        [prefix, codes].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_has_a_key_of_its_own() {
        let mut seen = Vec::new();
        for character in b' '..=b'~' {
            let found = with_character(character).unwrap();
            assert!(!seen.contains(&found), "{character:#x}");
            seen.push(found);
        }
        assert_eq!([0, 0x1f, 0x7f, 0x80, 0xff].map(with_character), [None; 5]);
    }

    #[test]
    fn set_1_has_the_codes_of_the_first_pc() {
        let first = |character| with_character(character).unwrap().0.pressed(1);
        for (character, code) in [
            (b'1', 0x02),
            (b'q', 0x10),
            (b'a', 0x1e),
            (b'z', 0x2c),
            (b' ', 0x39),
            (b'\\', 0x2b),
            (b'/', 0x35),
        ] {
            assert_eq!(first(character), [code], "{}", char::from(character));
        }
        let codes = FUNCTION.map(|key| key.pressed(1)[0]);
        assert_eq!(codes, [0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43, 0x44, 0x57, 0x58]);
        assert_eq!((UP.pressed(1), UP.released(1)), (vec![0xe0, 0x48], vec![0xe0, 0xc8]));
        assert_eq!((DELETE.pressed(1), PAGE_DOWN.released(1)), (vec![0xe0, 0x53], vec![0xe0, 0xd1]));
    }

    #[test]
    fn the_translation_is_one_to_one() {
        let mut codes: Vec<u8> = TRANSLATION.to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TRANSLATION.len());
        for byte in [0xaa, 0xab, 0xe0, 0xe1, 0xee, 0xfa, 0xfe, 0xff] {
            assert_eq!(translated(byte), byte, "answers and prefixes stay as they are");
        }
    }
}
