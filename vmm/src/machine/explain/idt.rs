//! The entries of the interrupt descriptor table (IDT), and the mistakes in them.
//!
//! Intel SDM volume 3, sections 7.10 to 7.14 (6.10 to 6.14 in older editions) for the IDT, 22.1.4 (21.1.4) for the vectors of
//! real mode.

use super::View;
use crate::memory::ReadMemory;
use crate::x86::modes;
use crate::x86::registers::Sregs;

/// The types of a gate descriptor that an exception or interrupt goes through.
const TASK_GATE: u64 = 0x5;
const GATES_32: [u64; 2] = [0xe, 0xf];
const GATES_16: [u64; 2] = [0x6, 0x7];
/// The number of vectors of exceptions.
const EXCEPTIONS: u8 = 32;

/// The IDT of a vCPU.
pub(super) struct Idt<'a> {
    pub(super) sregs: &'a Sregs,
    pub(super) probe: &'a View<'a>,
    pub(super) memory: &'a dyn ReadMemory,
}

/// A mistake in the entry of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// It is beyond the limit of the table.
    PastLimit,
    /// Its linear address is not in memory.
    Nowhere,
    /// It is 0.
    Empty,
    /// Its type is no gate of this mode.
    NotAGate(u64),
    NotPresent,
}

impl Mistake {
    /// The mistake as a clause about an entry with this name.
    fn clause(self, name: &str) -> String {
        match self {
            Self::PastLimit => format!("{name} is past the limit"),
            Self::Nowhere => format!("{name} is not in memory"),
            Self::Empty => format!("{name} is empty"),
            Self::NotAGate(kind) => format!("{name} is not a gate for this mode (its type is {kind:#x})"),
            Self::NotPresent => format!("{name} is not present"),
        }
    }
}

impl Idt<'_> {
    /// The mistake in the entry of a vector, as a clause. `None` if nothing is, or if the entry is not in memory.
    pub(super) fn mistake(&self, vector: u8) -> Option<String> {
        let table = if self.is_protected() { "IDT" } else { "IVT" };
        match self.judge(vector)? {
            Mistake::Nowhere => None,
            Mistake::PastLimit => {
                Some(format!("the IDT has no entry {vector} (its limit is {:#x})", self.sregs.idt.limit))
            }
            mistake => Some(mistake.clause(&format!("entry {vector} of the {table}"))),
        }
    }

    /// The reason why the exception of a probable cause such as `#UD: ...` has no handler. Without a known exception: the
    /// reason why none of them has one. `None` if there is a handler, or in real mode, where it may be anywhere.
    pub(super) fn missing_handler(&self, cause: Option<&str>) -> Option<String> {
        if !self.is_protected() {
            return None;
        }
        let place =
            format!("the IDT at {:#x}, with the limit {:#x},", self.sregs.idt.base, self.sregs.idt.limit);
        match cause.and_then(exception) {
            Some((name, vector)) => {
                let entry = match self.judge(vector)? {
                    mistake @ Mistake::PastLimit => mistake.clause("its entry"),
                    mistake => mistake.clause(&format!("its entry at {:#x}", self.address(vector))),
                };
                Some(format!("{place} has no gate for {name} (vector {vector}): {entry}"))
            }
            None => {
                let is_empty = (0..EXCEPTIONS).all(|vector| self.judge(vector).is_some());
                is_empty.then(|| format!("{place} has no gate for any exception"))
            }
        }
    }

    fn judge(&self, vector: u8) -> Option<Mistake> {
        let raw = match self.read(vector) {
            Ok(raw) => raw,
            Err(mistake) => return Some(mistake),
        };
        if !self.is_protected() {
            return (raw & 0xffff_ffff == 0).then_some(Mistake::Empty);
        }
        let kind = raw >> 40 & 0x1f;
        let is_gate =
            GATES_32.contains(&kind) || !self.is_long() && (GATES_16.contains(&kind) || kind == TASK_GATE);
        match () {
            () if raw == 0 => Some(Mistake::Empty),
            () if !is_gate => Some(Mistake::NotAGate(kind)),
            () if raw >> 47 & 1 == 0 => Some(Mistake::NotPresent),
            () => None,
        }
    }

    fn is_protected(&self) -> bool {
        self.sregs.cr0 & modes::CR0_PE != 0
    }

    fn is_long(&self) -> bool {
        self.sregs.efer & modes::EFER_LMA != 0
    }

    /// The size of an entry in bytes.
    fn size(&self) -> u64 {
        match () {
            () if !self.is_protected() => 4,
            () if self.is_long() => 16,
            () => 8,
        }
    }

    /// The linear address of an entry.
    fn address(&self, vector: u8) -> u64 {
        self.sregs.idt.base.wrapping_add(u64::from(vector) * self.size())
    }

    /// True if the entry of a vector is a task gate.
    pub(super) fn is_task_gate(&self, vector: u8) -> bool {
        let has_tasks = self.is_protected() && !self.is_long();
        has_tasks && self.read(vector).is_ok_and(|raw| raw >> 40 & 0x1f == TASK_GATE)
    }

    /// The privilege level from which software may use the entry of a vector. `None` if the entry cannot be read.
    pub(super) fn privilege(&self, vector: u8) -> Option<u64> {
        self.read(vector).ok().filter(|_| self.is_protected()).map(|raw| raw >> 45 & 3)
    }

    /// The first 8 bytes of an entry, or all of one that has 4.
    ///
    /// # Errors
    /// The entry is beyond the limit, or not in memory.
    fn read(&self, vector: u8) -> Result<u64, Mistake> {
        let size = self.size();
        let last = u64::from(vector) * size + size - 1;
        if last > u64::from(self.sregs.idt.limit) {
            return Err(Mistake::PastLimit);
        }
        let place = self.probe.translate_linear(self.address(vector)).map_err(|_| Mistake::Nowhere)?;
        let mut bytes = [0; 8];
        let read = bytes.get_mut(..size.min(8) as usize).unwrap_or_default();
        let is_read = self.memory.read(place.gpa, read);
        is_read.then(|| u64::from_le_bytes(bytes)).ok_or(Mistake::Nowhere)
    }
}

/// The name and the vector of the exception at the beginning of a text.
fn exception(cause: &str) -> Option<(&str, u8)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Gpa, GuestMemory};

    #[test]
    fn the_mistake_of_an_entry_is_named() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).unwrap();
        let mistake = |cr0, efer, limit, vector: u64, entry: u64| {
            let mut sregs = Sregs { cr0, efer, ..Default::default() };
            (sregs.idt.base, sregs.idt.limit) = (0x1000, limit);
            sregs.cs.l = u8::from(efer != 0);
            let size: u64 = match (cr0, efer) {
                (0, _) => 4,
                (_, 0) => 8,
                _ => 16,
            };
            memory.write(Gpa(0x1000 + vector * size), &entry.to_le_bytes()).unwrap();
            let idt = Idt { sregs: &sregs, probe: &View::new(&memory, sregs), memory: &memory };
            idt.mistake(vector as u8)
        };
        const GATE: u64 = 0x8e00_0008_1000;
        assert_eq!(mistake(1, 0, 0x7f, 8, GATE), None);
        assert_eq!(mistake(1, 0, 0x7f, 8, 0x8500_0020_0000), None, "a task gate");
        for (limit, entry, text) in [
            (0x46, GATE, "the IDT has no entry 8 (its limit is 0x46)"),
            (0x7f, 0, "entry 8 of the IDT is empty"),
            (0x7f, 0x0e00_0008_1000, "entry 8 of the IDT is not present"),
            (0x7f, 0x8900_0008_1000, "entry 8 of the IDT is not a gate for this mode (its type is 0x9)"),
        ] {
            assert_eq!(mistake(1, 0, limit, 8, entry).unwrap(), text);
        }
        // Entries of 16 bytes, and no 16-bit gates.
        let long = |limit, entry| mistake(1, modes::EFER_LMA, limit, 8, entry);
        assert_eq!(long(0x7f, GATE).unwrap(), "the IDT has no entry 8 (its limit is 0x7f)");
        assert_eq!(long(0xff, GATE), None);
        assert!(long(0xff, 0x8600_0008_1000).unwrap().contains("not a gate for this mode"));
        assert_eq!(mistake(0, 0, 0x3ff, 8, 0).unwrap(), "entry 8 of the IVT is empty");
        assert_eq!(mistake(0, 0, 0x3ff, 8, 0x1000), None);
    }
}
