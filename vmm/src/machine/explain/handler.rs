//! The handler of the exception that a guest died of: the reason why there is none.
//!
//! Intel SDM volume 3, sections 7.10 to 7.11 and 7.14.1 (6.10 to 6.11 and 6.14.1 in older editions) for the IDT, 22.1.4
//! (21.1.4) for the vectors of real mode.

use super::View;
use crate::memory::ReadMemory;
use crate::x86::modes::{EFER_LMA, Mode};
use crate::x86::registers::Sregs;

/// The number of vectors of exceptions.
const EXCEPTIONS: u64 = 32;
/// A gate is present.
const PRESENT: u64 = 1 << 47;

/// The reason why the exception of a probable cause such as `#UD: ...` has no handler. Without a known exception: the
/// reason why none of them has one. `None` if there is a handler, or in real mode, where it may be anywhere.
pub(super) fn missing(
    cause: Option<&str>,
    mode: Mode,
    sregs: &Sregs,
    memory: &dyn ReadMemory,
) -> Option<String> {
    if mode == Mode::Real {
        return None;
    }
    let place = format!("the IDT at {:#x}, with the limit {:#x},", sregs.idt.base, sregs.idt.limit);
    match cause.and_then(vector) {
        Some((name, vector)) => {
            let why = gate(vector, sregs, memory)?;
            Some(format!("{place} has no gate for {name} (vector {vector}): {why}"))
        }
        None => {
            let is_empty = (0..EXCEPTIONS).all(|vector| gate(vector, sregs, memory).is_some());
            is_empty.then(|| format!("{place} has no gate for any exception"))
        }
    }
}

/// The name and the vector of the exception at the beginning of a text.
fn vector(cause: &str) -> Option<(&str, u64)> {
    let name = cause.get(..3)?;
    let vector = match name {
        "#DE" => 0,
        "#UD" => 6,
        "#NM" => 7,
        "#NP" => 11,
        "#SS" => 12,
        "#GP" => 13,
        "#PF" => 14,
        _ => return None,
    };
    Some((name, vector))
}

/// The reason why a vector has no gate. `None` if it has one.
fn gate(vector: u64, sregs: &Sregs, memory: &dyn ReadMemory) -> Option<String> {
    let size = if sregs.efer & EFER_LMA != 0 { 16 } else { 8 };
    let offset = vector.saturating_mul(size);
    if offset.saturating_add(size).saturating_sub(1) > sregs.idt.limit.into() {
        return Some("its entry is past the limit".into());
    }
    let at = sregs.idt.base.wrapping_add(offset);
    let mut bytes = [0; 8];
    let place = View::new(memory, *sregs).translate_linear(at);
    let is_read = place.is_ok_and(|place| memory.read(place.gpa, &mut bytes));
    let entry = u64::from_le_bytes(bytes);
    match (is_read, entry & PRESENT != 0) {
        (false, _) => Some(format!("its entry at {at:#x} is not in memory")),
        (true, false) => Some(format!("its entry at {at:#x} is {entry:#x}, which is not present")),
        (true, true) => None,
    }
}
