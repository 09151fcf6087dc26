//! Changes of the user to what CPUID shows the guest.

use crate::x86::registers::CpuidEntry;
use std::str::FromStr;

/// A result register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// An override of bits in one result register of one CPUID leaf.
///
/// As text: `LEAF[.SUBLEAF].REGISTER[.BIT[-BIT]]=VALUE`, such as `1.ecx.24=1`, `7.0.ebx=0` or
/// `1.ebx.31-24=0xba`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidOverride {
    /// The leaf: EAX at the CPUID instruction.
    pub leaf: u32,
    /// The subleaf: ECX at the CPUID instruction. `None` if the leaf has no subleaves, or for the first subleaf.
    pub subleaf: Option<u32>,
    /// The register that changes.
    pub register: Register,
    /// The lowest bit that changes.
    pub low: u8,
    /// The highest bit that changes.
    pub high: u8,
    /// The new value of the bits, right-aligned.
    pub value: u32,
}

impl CpuidOverride {
    /// The bits that change.
    pub(super) fn mask(&self) -> u32 {
        let upper = u32::MAX.checked_shr(31u32.saturating_sub(self.high.into())).unwrap_or(0);
        upper & u32::MAX.checked_shl(self.low.into()).unwrap_or(0)
    }

    /// Changes the leaf in `entries`. A missing leaf is added with zeros in all other bits.
    pub(super) fn apply(&self, entries: &mut Vec<CpuidEntry>) {
        let wanted = self.subleaf.unwrap_or(0);
        let place = entries.iter().position(|entry| {
            let by_index = entry.flags & CpuidEntry::HAS_INDEX != 0;
            entry.function == self.leaf && (!by_index || entry.index == wanted)
        });
        let place = place.unwrap_or_else(|| {
            let flags = if self.subleaf.is_some() { CpuidEntry::HAS_INDEX } else { 0 };
            entries.push(CpuidEntry { function: self.leaf, index: wanted, flags, ..Default::default() });
            entries.len().saturating_sub(1)
        });
        let Some(entry) = entries.get_mut(place) else { return };
        let register = match self.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        };
        let value = self.value.checked_shl(self.low.into()).unwrap_or(0);
        *register = *register & !self.mask() | value & self.mask();
    }
}

impl FromStr for CpuidOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || {
            format!(
                "{text:?} is not a change to CPUID: give LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=1, \
                 7.0.ebx=0 or 1.ebx.31-24=0xba"
            )
        };
        let (place, value) = text.split_once('=').ok_or_else(usage)?;
        let mut parts = place.split('.');
        let leaf = parts.next().and_then(number).ok_or_else(usage)?;
        let mut part = parts.next().ok_or_else(usage)?;
        let subleaf = number(part);
        if subleaf.is_some() {
            part = parts.next().ok_or_else(usage)?;
        }
        let register = match part.to_ascii_lowercase().as_str() {
            "eax" => Register::Eax,
            "ebx" => Register::Ebx,
            "ecx" => Register::Ecx,
            "edx" => Register::Edx,
            _ => return Err(usage()),
        };
        let (high, low) = match parts.next() {
            None => (31, 0),
            Some(bits) => {
                let (high, low) = bits.split_once('-').unwrap_or((bits, bits));
                let bit = |text: &str| text.parse::<u8>().ok().filter(|bit| *bit < 32);
                let (high, low) = bit(high).zip(bit(low)).ok_or_else(usage)?;
                (high.max(low), high.min(low))
            }
        };
        let value = number(value).filter(|_| parts.next().is_none()).ok_or_else(usage)?;
        let change = Self { leaf, subleaf, register, low, high, value };
        if value > change.mask() >> low {
            return Err(format!(
                "{text:?} is not a change to CPUID: {value:#x} does not fit into bits {high} to {low}: give a smaller value"
            ));
        }
        Ok(change)
    }
}

/// Parses a decimal number, or a hexadecimal one with the prefix 0x.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}
