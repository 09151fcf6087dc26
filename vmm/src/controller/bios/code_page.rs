//! Code page 437, in which a PC stores the characters of its screen.

/// The characters from 0x80.
const UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The character with this code.
pub(super) fn character(code: u8) -> char {
    match code.checked_sub(0x80) {
        None => code.into(),
        Some(upper) => UPPER.chars().nth(upper.into()).unwrap_or(' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_character() {
        assert_eq!(UPPER.chars().count(), 128);
        for (code, expected) in [(b'A', 'A'), (0x80, 'Ç'), (0xb3, '│'), (0xc9, '╔'), (0xdb, '█'), (0xfe, '■')] {
            assert_eq!(character(code), expected);
        }
    }
}
