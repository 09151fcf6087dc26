//! Code page 437: the characters of a PC's text screen.

/// The characters 0x00 to 0x1F. The screen shows glyphs for them; they control nothing.
const LOW: [char; 32] = [
    ' ', '☺', '☻', '♥', '♦', '♣', '♠', '•', '◘', '○', '◙', '♂', '♀', '♪', '♫', '☼', '►', '◄', '↕', '‼', '¶',
    '§', '▬', '↨', '↑', '↓', '→', '←', '∟', '↔', '▲', '▼',
];

/// The characters 0x7F to 0xFF. The last one is a blank.
const HIGH: [char; 129] = [
    '⌂', 'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å', 'É', 'æ', 'Æ', 'ô',
    'ö', 'ò', 'û', 'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ', 'á', 'í', 'ó', 'ú', 'ñ', 'Ñ', 'ª', 'º', '¿',
    '⌐', '¬', '½', '¼', '¡', '«', '»', '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕', '╣', '║', '╗', '╝', '╜',
    '╛', '┐', '└', '┴', '┬', '├', '─', '┼', '╞', '╟', '╚', '╔', '╩', '╦', '╠', '═', '╬', '╧', '╨', '╤', '╥',
    '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌', '█', '▄', '▌', '▐', '▀', 'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ',
    'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩', '≡', '±', '≥', '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ',
    '²', '■', ' ',
];

/// The Unicode character for a byte of the screen. It is never a control character.
pub(crate) fn character(byte: u8) -> char {
    match byte {
        0..0x20 => LOW.get(usize::from(byte)).copied().unwrap_or(' '),
        0x20..0x7f => char::from(byte),
        _ => HIGH.get(usize::from(byte).wrapping_sub(0x7f)).copied().unwrap_or(' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_a_control_character() {
        let all: String = (0..=255).map(character).collect();
        assert_eq!(all.chars().count(), 256);
        assert!(!all.chars().any(char::is_control), "{all:?}");
        for (byte, expected) in
            [(0, ' '), (1, '☺'), (0x1b, '←'), (b'A', 'A'), (0x7f, '⌂'), (0x80, 'Ç'), (0xb3, '│'), (0xfe, '■')]
        {
            assert_eq!(character(byte), expected, "{byte:#x}");
        }
    }
}
