//! Text of a guest that is made safe for a terminal piece by piece.

use std::fmt::Write;

/// Makes the control characters of a text visible. The text comes in pieces, which may split a character.
///
/// These pass: line ends (LF and CR LF), tabs, and complete UTF-8 characters. Bytes below 0x20, DEL, a CR without its
/// LF, and bytes that are not UTF-8 are shown like `\x1b`. C1 control characters (U+0080 to U+009F) are shown like
/// `\u{9b}`.
#[derive(Debug, Default)]
pub(crate) struct ControlEscaper {
    /// The beginning of a character whose end is in the next piece: at most 3 bytes.
    begun: Vec<u8>,
    /// Set after a CR that may belong to a line end.
    carriage_return: bool,
}

impl ControlEscaper {
    /// Adds the visible form of the next piece of text to `to`.
    pub(crate) fn push(&mut self, piece: &[u8], to: &mut Vec<u8>) {
        let mut begun = std::mem::take(&mut self.begun);
        let mut rest = piece;
        if !begun.is_empty() {
            begun.extend_from_slice(piece);
            rest = &begun;
        }
        loop {
            let error = match str::from_utf8(rest) {
                Ok(text) => return self.characters(text, to),
                Err(error) => error,
            };
            let (valid, other) = rest.split_at_checked(error.valid_up_to()).unwrap_or((rest, &[]));
            self.characters(str::from_utf8(valid).unwrap_or_default(), to);
            let Some((wrong, after)) = error.error_len().and_then(|len| other.split_at_checked(len)) else {
                self.begun = other.to_vec();
                return;
            };
            self.bytes(wrong, to);
            rest = after;
        }
    }

    /// Adds what was held back at the end of the last piece.
    pub(crate) fn finish(&mut self, to: &mut Vec<u8>) {
        let begun = std::mem::take(&mut self.begun);
        self.bytes(&begun, to);
    }

    fn characters(&mut self, text: &str, to: &mut Vec<u8>) {
        for character in text.chars() {
            match character {
                '\n' if std::mem::take(&mut self.carriage_return) => to.extend_from_slice(b"\r\n"),
                '\r' => {
                    self.bytes(&[], to);
                    self.carriage_return = true;
                }
                '\n' | '\t' | ' '..='~' => {
                    self.bytes(&[], to);
                    to.push(character as u8);
                }
                '\0'..='\x7f' => self.bytes(&[character as u8], to),
                _ => {
                    self.bytes(&[], to);
                    let plain = character.encode_utf8(&mut [0; 4]).as_bytes().to_vec();
                    let escaped = || character.escape_unicode().to_string().into_bytes();
                    to.extend(if character.is_control() { escaped() } else { plain });
                }
            }
        }
    }

    /// Adds the visible form of bytes that may not reach the terminal, after that of a CR that was no line end.
    fn bytes(&mut self, bytes: &[u8], to: &mut Vec<u8>) {
        let before = std::mem::take(&mut self.carriage_return).then_some(b'\r');
        let mut text = String::new();
        for byte in before.iter().chain(bytes) {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
        to.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The visible form of a text that comes in these pieces.
    fn visible(pieces: &[&[u8]]) -> String {
        let (mut escaper, mut text) = (ControlEscaper::default(), Vec::new());
        pieces.iter().for_each(|piece| escaper.push(piece, &mut text));
        escaper.finish(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn text_passes_and_controls_become_visible() {
        for (text, expected) in [
            (&b"plain \t text\n"[..], "plain \t text\n"),
            ("caf\u{e9} \u{2713} \u{1f980} e\u{301}".as_bytes(), "caf\u{e9} \u{2713} \u{1f980} e\u{301}"),
            (b"a\r\nb\rc\r\r\nd\r", "a\r\nb\\x0dc\\x0d\r\nd\\x0d"),
            (b"\x1b[31mred\x07\x08\x00\x7f", "\\x1b[31mred\\x07\\x08\\x00\\x7f"),
            (b"\xc2\x9b31m \xc2\x85", "\\u{9b}31m \\u{85}"),
            (b"\xff\xfe\x9b\xc0\x80", "\\xff\\xfe\\x9b\\xc0\\x80"),
            (b"\xed\xa0\x80 \xf4\x90\x80\x80", "\\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80"),
            (b"cut \xe2\x9c", "cut \\xe2\\x9c"),
            (b"\r\xff\r\x1b", "\\x0d\\xff\\x0d\\x1b"),
        ] {
            assert_eq!(visible(&[text]), expected);
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(visible(&bytes), expected, "byte by byte");
            let pairs: Vec<&[u8]> = text.chunks(2).collect();
            assert_eq!(visible(&pairs), expected, "in pairs");
        }
    }

    #[test]
    fn a_character_is_held_back_until_it_is_complete() {
        let (mut escaper, mut text) = (ControlEscaper::default(), Vec::new());
        escaper.push(b"\xe2\x9c", &mut text);
        assert_eq!(text, b"");
        escaper.push(b"\x93", &mut text);
        assert_eq!(text, "\u{2713}".as_bytes());
        escaper.push(b"\r", &mut text);
        escaper.push(b"\n", &mut text);
        assert_eq!(text, "\u{2713}\r\n".as_bytes());
    }
}
