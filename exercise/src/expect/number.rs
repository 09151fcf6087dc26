//! Numbers of a fixed width: parsed with a sign, and shown in decimal and hexadecimal.

use vmm::host::parse_number;

/// Parses a number of at most `bits` bits: decimal, hexadecimal after 0x, or negative, which stands for its two's
/// complement.
///
/// # Errors
/// It is not a number, or does not fit.
pub fn parse(text: &str, bits: u32) -> Result<u64, String> {
    let (digits, is_negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let number = parse_number(digits).map_err(|_| "give a number, such as 42, 0x2a or -1".to_string())?;
    fit(number, is_negative, bits).ok_or_else(|| format!("it has {bits} bits: give a number that fits"))
}

/// The two's complement of a number in `bits` bits; `None` if it does not fit.
fn fit(number: u64, is_negative: bool, bits: u32) -> Option<u64> {
    let bits = bits.clamp(1, 64);
    let mask = u64::MAX >> 64u32.saturating_sub(bits);
    match is_negative {
        false => Some(number).filter(|number| *number <= mask),
        true => {
            let lowest = 1u64.checked_shl(bits.saturating_sub(1))?;
            Some(number.wrapping_neg() & mask).filter(|_| number <= lowest)
        }
    }
}

/// Shows a number in decimal and in hexadecimal.
pub fn shown(number: u64) -> String {
    match number {
        0..=9 => number.to_string(),
        number => format!("{number} ({number:#x})"),
    }
}
