//! The bytes of a terminal as keys: characters, control characters, and the sequences of the other keys (ECMA-48, and
//! "XTerm Control Sequences").

use super::Stroke;
use super::layout::{self, Key};

const ESCAPE: u8 = 0x1b;
/// The most parameters of a sequence that are looked at.
const PARAMETERS: usize = 2;

/// The keys in the bytes that a terminal sends.
#[derive(Debug, Default)]
pub(crate) struct TerminalKeys {
    /// Set after the message about keys that a US keyboard does not have.
    has_warned: bool,
}

impl TerminalKeys {
    /// The first key in `bytes`, and the number of its bytes, which is not 0 unless there are none. The key is `None` if a
    /// US keyboard does not have it.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> (Option<Stroke>, usize) {
        match *bytes {
            [] => (None, 0),
            [0x80..=0xff, ..] => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    log::warn!(
                        "the guest's keyboard has a US layout: other characters than those of ASCII are lost"
                    );
                }
                let rest = bytes.iter().take_while(|byte| **byte >= 0x80).count();
                (None, rest)
            }
            [ESCAPE, b'[', ref rest @ ..] if !rest.is_empty() => sequence(rest, 2),
            [ESCAPE, b'O', byte, ..] => (function(byte), 3),
            [ESCAPE, byte @ (..=0x1a | 0x1c..=0x7f), ..] => {
                (typed(byte).map(|stroke| Stroke { alt: true, ..stroke }), 2)
            }
            [byte, ..] => (typed(byte), 1),
        }
    }
}

fn pressed(key: Key) -> Stroke {
    Stroke { key, shift: false, control: false, alt: false }
}

/// The key that makes a terminal send this byte alone.
fn typed(byte: u8) -> Option<Stroke> {
    let with_control = |character| {
        layout::with_character(character).map(|(key, _)| Stroke { control: true, ..pressed(key) })
    };
    match byte {
        b'\r' | b'\n' => Some(pressed(layout::ENTER)),
        b'\t' => Some(pressed(layout::TAB)),
        0x08 | 0x7f => Some(pressed(layout::BACKSPACE)),
        ESCAPE => Some(pressed(layout::ESCAPE)),
        0 => with_control(b' '),
        0x01..=0x1a => with_control(byte.saturating_add(b'a').saturating_sub(1)),
        0x1c => with_control(b'\\'),
        0x1d => with_control(b']'),
        0x1e => with_control(b'6'),
        0x1f => with_control(b'-'),
        _ => layout::with_character(byte).map(|(key, shift)| Stroke { shift, ..pressed(key) }),
    }
}

/// The key of a sequence after ESC [, and the number of all its bytes, of which `before` were read.
fn sequence(bytes: &[u8], before: usize) -> (Option<Stroke>, usize) {
    // The console of Linux sends F1 to F5 like this.
    if let [b'[', byte, ..] = *bytes {
        let key = byte.checked_sub(b'A').and_then(|number| layout::FUNCTION.get(usize::from(number)));
        return (key.filter(|_| byte <= b'E').copied().map(pressed), before.saturating_add(2));
    }
    let mut parameters = [0u16; PARAMETERS];
    let mut place = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                if let Some(parameter) = parameters.get_mut(place) {
                    let digit = u16::from(byte.saturating_sub(b'0'));
                    *parameter = parameter.saturating_mul(10).saturating_add(digit);
                }
            }
            b';' => place = place.saturating_add(1),
            // The end of the sequence.
            0x40..0x7f => {
                let stroke = if *byte == b'~' { numbered(parameters[0]) } else { function(*byte) };
                let length = before.saturating_add(at).saturating_add(1);
                return (stroke.map(|stroke| modified(stroke, parameters[1])), length);
            }
            0x20..0x40 => {}
            // No sequence has this byte. It is the next key.
            _ => return (None, before.saturating_add(at)),
        }
    }
    (None, before.saturating_add(bytes.len()))
}

/// The key of a sequence that ends in this byte.
fn function(byte: u8) -> Option<Stroke> {
    let [f1, f2, f3, f4, ..] = layout::FUNCTION;
    let key = match byte {
        b'A' => layout::UP,
        b'B' => layout::DOWN,
        b'C' => layout::RIGHT,
        b'D' => layout::LEFT,
        b'H' => layout::HOME,
        b'F' => layout::END,
        b'P' => f1,
        b'Q' => f2,
        b'R' => f3,
        b'S' => f4,
        b'Z' => return Some(Stroke { shift: true, ..pressed(layout::TAB) }),
        b'M' => layout::ENTER,
        _ => return None,
    };
    Some(pressed(key))
}

/// The key of a sequence with this number, which ends in `~`.
fn numbered(number: u16) -> Option<Stroke> {
    let f = |number: usize| layout::FUNCTION.get(number.saturating_sub(1)).copied();
    let key = match usize::from(number) {
        1 | 7 => layout::HOME,
        2 => layout::INSERT,
        3 => layout::DELETE,
        4 | 8 => layout::END,
        5 => layout::PAGE_UP,
        6 => layout::PAGE_DOWN,
        number @ 11..=15 => f(number.saturating_sub(10))?,
        number @ 17..=21 => f(number.saturating_sub(11))?,
        number @ 23..=24 => f(number.saturating_sub(12))?,
        _ => return None,
    };
    Some(pressed(key))
}

/// Adds the modifiers of a sequence: 1, and bits for shift, alt and control.
fn modified(stroke: Stroke, parameter: u16) -> Stroke {
    let bits = parameter.saturating_sub(1);
    Stroke {
        shift: stroke.shift || bits & 1 != 0,
        alt: stroke.alt || bits & 2 != 0,
        control: stroke.control || bits & 4 != 0,
        ..stroke
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scan codes of set 1 for the bytes of a terminal.
    fn codes(bytes: &[u8]) -> Vec<u8> {
        let (mut keys, mut rest, mut codes) = (TerminalKeys::default(), bytes, Vec::new());
        while !rest.is_empty() {
            let (stroke, length) = keys.next(rest);
            assert!((1..=rest.len()).contains(&length), "{rest:?}");
            codes.extend(stroke.into_iter().flat_map(|stroke| stroke.codes(1)));
            rest = &rest[length..];
        }
        codes
    }

    #[test]
    fn characters_press_shift_and_control_as_needed() {
        assert_eq!(codes(b"a"), [0x1e, 0x9e]);
        assert_eq!(codes(b"A"), [0x2a, 0x1e, 0x9e, 0xaa]);
        assert_eq!(codes(b"?"), [0x2a, 0x35, 0xb5, 0xaa]);
        assert_eq!(codes(b"\x03"), [0x1d, 0x2e, 0xae, 0x9d]);
        assert_eq!(codes(b"\r\n\t\x7f\x08"), [0x1c, 0x9c, 0x1c, 0x9c, 0x0f, 0x8f, 0x0e, 0x8e, 0x0e, 0x8e]);
        assert_eq!(codes(b"\0\x1c"), [0x1d, 0x39, 0xb9, 0x9d, 0x1d, 0x2b, 0xab, 0x9d]);
    }

    #[test]
    fn escape_alone_is_a_key_and_begins_sequences_of_others() {
        assert_eq!(codes(b"\x1b"), [0x01, 0x81]);
        assert_eq!(codes(b"\x1b\x1b"), [0x01, 0x81, 0x01, 0x81]);
        assert_eq!(codes(b"\x1bx"), [0x38, 0x2d, 0xad, 0xb8], "alt");
        for (bytes, code) in [
            (&b"\x1b[A"[..], 0x48),
            (b"\x1bOB", 0x50),
            (b"\x1b[C", 0x4d),
            (b"\x1b[D", 0x4b),
            (b"\x1b[H", 0x47),
            (b"\x1b[F", 0x4f),
            (b"\x1b[1~", 0x47),
            (b"\x1b[2~", 0x52),
            (b"\x1b[3~", 0x53),
            (b"\x1b[4~", 0x4f),
            (b"\x1b[5~", 0x49),
            (b"\x1b[6~", 0x51),
        ] {
            assert_eq!(codes(bytes), [0xe0, code, 0xe0, code | 0x80], "{bytes:?}");
        }
        for (bytes, code) in [
            (&b"\x1bOP"[..], 0x3b),
            (b"\x1b[[E", 0x3f),
            (b"\x1b[11~", 0x3b),
            (b"\x1b[15~", 0x3f),
            (b"\x1b[17~", 0x40),
            (b"\x1b[21~", 0x44),
            (b"\x1b[23~", 0x57),
            (b"\x1b[24~", 0x58),
        ] {
            assert_eq!(codes(bytes), [code, code | 0x80], "{bytes:?}");
        }
        assert_eq!(codes(b"\x1b[1;5C"), [0x1d, 0xe0, 0x4d, 0xe0, 0xcd, 0x9d]);
        assert_eq!(codes(b"\x1b[Z"), [0x2a, 0x0f, 0x8f, 0xaa]);
    }

    #[test]
    fn what_a_us_keyboard_lacks_is_left_out() {
        assert_eq!(codes("aéb🦀".as_bytes()), [0x1e, 0x9e, 0x30, 0xb0]);
        assert_eq!(codes(b"\x1b[200~\x1b[9;99;99;99X\x1b[99999999~a"), [0x1e, 0x9e]);
        assert_eq!(codes(b"\x1b[1\x03"), [0x1d, 0x2e, 0xae, 0x9d]);
    }

    #[test]
    fn every_stroke_fits_into_the_buffer() {
        for set in 1..=3 {
            for key in [layout::UP, layout::ENTER, layout::ALT] {
                let stroke = Stroke { key, shift: true, control: true, alt: true };
                assert!(stroke.codes(set).len() <= super::super::BUFFER, "{stroke:?}");
            }
        }
    }
}
