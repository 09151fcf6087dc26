//! Numbers on a command line.

/// Parses a number in decimal, or in hexadecimal after 0x. An underscore may separate digits.
///
/// ```
/// assert_eq!(vmm::host::parse_number("0x10_0000"), Ok(1 << 20));
/// ```
///
/// # Errors
/// The text is not a number, or the number has more than 64 bits.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        // from_str_radix accepts a sign, which is not a digit here.
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16),
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse(),
        _ => return Err("give a number, such as 4096 or 0x1000".into()),
    }
    .map_err(|_| "give a number of at most 64 bits, such as 4096 or 0x1000".into())
}

/// Parses a number of bytes. The suffixes K, M and G stand for powers of 1024.
///
/// # Errors
/// The text is not a size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "give a size in bytes, such as 0x100000, 64M or 2G";
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let shift = match text.chars().last().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') if !hex => 10,
        Some('M') if !hex => 20,
        Some('G') if !hex => 30,
        _ => return parse_number(text).map_err(|_| EXPECTED.into()),
    };
    let number = text.get(..text.len() - 1).unwrap_or_default();
    parse_number(number).ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(|| EXPECTED.into())
}

/// Formats a number of bytes in the largest unit that divides it: G, M or K, which stand for powers of 1024.
///
/// ```
/// use vmm::host::format_size;
///
/// assert_eq!([0, 4095, 512 << 10, 600 << 30].map(format_size), ["0", "4095 bytes", "512K", "600G"]);
/// ```
pub fn format_size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    match units.iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift)) {
        _ if bytes == 0 => "0".into(),
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
