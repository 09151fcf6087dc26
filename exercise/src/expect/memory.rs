//! The content of memory at a guest physical address.

use super::Check;
use super::number::{parse, shown};
use crate::facts::Facts;
use std::fmt::Write;
use vmm::host::parse_number;

/// The most bytes that a check of memory compares.
pub const MAX_BYTES: usize = 1 << 20;
/// The bytes that a sentence shows.
const SHOWN: usize = 8;

/// The content that memory must have at the end of the run.
#[derive(Clone, Debug)]
pub struct MemoryCheck {
    address: u64,
    bytes: Vec<u8>,
    /// The width of a word in bits. `None` for a range of bytes.
    word: Option<u32>,
}

impl MemoryCheck {
    /// Parses a word, such as `u16@0x400`, and its value. Words are little-endian.
    ///
    /// # Errors
    /// The type, the address or the value is wrong.
    pub fn word(place: &str, value: &str) -> Result<Self, String> {
        const TYPES: [(&str, u32); 4] = [("u8", 8), ("u16", 16), ("u32", 32), ("u64", 64)];
        let (name, address) = place.split_once('@').unwrap_or((place, ""));
        let bits = TYPES.iter().find(|(known, _)| *known == name.trim()).map(|(_, bits)| *bits);
        let bits = bits.ok_or("give a word of memory as u8, u16, u32 or u64, such as u16@0x400=42")?;
        let address = parse_number(address.trim())
            .map_err(|_| "give the word's guest physical address, such as u16@0x400=42".to_string())?;
        let value = parse(value, bits).map_err(|error| format!("{place}: {error}"))?;
        let size = usize::try_from(bits / 8).unwrap_or(8);
        let bytes = value.to_le_bytes().get(..size).unwrap_or_default().to_vec();
        Ok(Self { address, bytes, word: Some(bits) })
    }

    /// A range that must hold these bytes.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn bytes(address: u64, bytes: Vec<u8>) -> Result<Self, String> {
        match bytes.len() {
            1..=MAX_BYTES => Ok(Self { address, bytes, word: None }),
            len => Err(format!("give 1 to {MAX_BYTES} bytes, not {len}")),
        }
    }

    /// The address and the size of the memory.
    pub fn range_of(&self) -> (u64, usize) {
        (self.address, self.bytes.len())
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let mut seen = vec![0; self.bytes.len()];
        let is_memory = facts.memory.read(self.address, &mut seen);
        let passed = is_memory && seen == self.bytes;
        let (subject, expected, fact) = match self.word {
            Some(bits) => (
                format!("u{bits}@{:#x}", self.address),
                format!("must be {}", shown(number(&self.bytes))),
                format!("is {}", shown(number(&seen))),
            ),
            None => self.range(&seen),
        };
        let seen = match is_memory {
            true => fact,
            false if facts.is_observed() && facts.registers.is_none() => {
                "is not known, because no HLT of the guest was seen".into()
            }
            false => "there is no memory".into(),
        };
        Check { passed, subject, expected, seen, possible: is_memory }
    }

    /// The subject, the condition and the fact of a range that holds `seen`: from the first byte that differs.
    fn range(&self, seen: &[u8]) -> (String, String, String) {
        let differs = self.bytes.iter().zip(seen).position(|(one, other)| one != other);
        let at = differs.unwrap_or(0);
        let place = self.address.saturating_add(at as u64);
        let subject = match differs {
            None => format!("memory at {place:#x}, {} bytes,", self.bytes.len()),
            Some(_) => format!("memory at {place:#x}"),
        };
        (subject, format!("must hold {}", hex(&self.bytes, at)), format!("holds {}", hex(seen, at)))
    }
}

/// The number in these little-endian bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Some bytes from `start`, in hexadecimal.
fn hex(bytes: &[u8], start: usize) -> String {
    let mut text = String::new();
    for byte in bytes.iter().skip(start).take(SHOWN) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x} ");
    }
    let more = if bytes.len().saturating_sub(start) > SHOWN { "..." } else { "" };
    (text + more).trim_end().into()
}
