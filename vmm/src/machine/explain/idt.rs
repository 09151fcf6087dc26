//! The entries of the interrupt descriptor table (IDT), and the mistakes in them.
//!
//! Intel SDM volume 3, sections 6.10 to 6.14.

use super::View;
use crate::memory::ReadMemory;
use crate::x86::modes;
use crate::x86::registers::Sregs;

/// The types of a gate descriptor that an exception or interrupt goes through.
const TASK_GATE: u64 = 0x5;
const GATES_32: [u64; 2] = [0xe, 0xf];
const GATES_16: [u64; 2] = [0x6, 0x7];

/// The IDT of a vCPU.
pub(super) struct Idt<'a> {
    pub(super) sregs: &'a Sregs,
    pub(super) probe: &'a View<'a>,
    pub(super) memory: &'a dyn ReadMemory,
}

impl Idt<'_> {
    /// The mistake in the entry of a vector, as a clause. `None` if nothing is, or if the entry cannot be read.
    pub(super) fn mistake(&self, vector: u8) -> Option<String> {
        if self.sregs.cr0 & modes::CR0_PE == 0 {
            return self.mistake_of_real_mode(vector);
        }
        let is_long = self.sregs.efer & modes::EFER_LMA != 0;
        let raw = match self.read(vector, if is_long { 16 } else { 8 }) {
            Ok(raw) => raw?,
            Err(why) => return Some(why),
        };
        let kind = raw >> 40 & 0x1f;
        let is_gate = GATES_32.contains(&kind) || !is_long && (GATES_16.contains(&kind) || kind == TASK_GATE);
        let name = format!("entry {vector} of the IDT");
        match () {
            () if raw == 0 => Some(format!("{name} is empty")),
            () if !is_gate => Some(format!("{name} is not a gate for this mode (its type is {kind:#x})")),
            () if raw >> 47 & 1 == 0 => Some(format!("{name} is not present")),
            () => None,
        }
    }

    /// True if the entry of a vector is a task gate.
    pub(super) fn is_task_gate(&self, vector: u8) -> bool {
        let is_protected = self.sregs.cr0 & modes::CR0_PE != 0 && self.sregs.efer & modes::EFER_LMA == 0;
        let raw = if is_protected { self.read(vector, 8).ok().flatten() } else { None };
        raw.is_some_and(|raw| raw >> 40 & 0x1f == TASK_GATE)
    }

    /// The privilege level from which software may use the entry of a vector. `None` if the entry cannot be read.
    pub(super) fn privilege(&self, vector: u8) -> Option<u64> {
        let is_long = self.sregs.efer & modes::EFER_LMA != 0;
        let raw = self.read(vector, if is_long { 16 } else { 8 }).ok()??;
        Some(raw >> 45 & 3)
    }

    fn mistake_of_real_mode(&self, vector: u8) -> Option<String> {
        match self.read(vector, 4) {
            Err(why) => Some(why),
            Ok(raw) => (raw? & 0xffff_ffff == 0).then(|| format!("entry {vector} of the IVT is empty")),
        }
    }

    /// The first 8 bytes of an entry of `size` bytes. `None` if they are not in memory.
    ///
    /// # Errors
    /// The entry is beyond the limit.
    fn read(&self, vector: u8, size: u64) -> Result<Option<u64>, String> {
        let start = u64::from(vector) * size;
        let limit = self.sregs.idt.limit;
        if start + size - 1 > u64::from(limit) {
            return Err(format!("the IDT has no entry {vector} (its limit is {limit:#x})"));
        }
        let linear = self.sregs.idt.base.wrapping_add(start);
        let Ok(mapping) = self.probe.translate_linear(linear) else { return Ok(None) };
        let mut bytes = [0; 8];
        let read = bytes.get_mut(..size.min(8) as usize).unwrap_or_default();
        let is_read = self.memory.read(mapping.gpa, read);
        Ok(is_read.then(|| u64::from_le_bytes(bytes)))
    }
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
