//! The memory map of a VM, with its mistakes.

use super::calls::{region_flags, slot};
use super::values::{range, size};
use crate::memory::MemorySlot;
use report::SavedSetup;
use report::setup::{MOST_SETUP, SavedSlot};
use report::view::plural;
use std::collections::BTreeMap;
use std::fmt::Write;
use vmm::host::sort_by_key;

/// The number of slots that are listed.
pub(super) const MOST_ROWS: usize = 48;
/// The end of the addresses that 32 bits can name.
const FOUR_GIB: u64 = 1 << 32;
/// The registers of the I/O APIC and of the local APIC, a page each (Intel SDM volume 3, section 12.4.1).
const CONTROLLERS: [(u64, &str); 2] = [(0xfec0_0000, "I/O APIC"), (0xfee0_0000, "local APIC")];
/// The size of what KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR take (api.rst, sections 4.40 and 4.41).
const TSS_SIZE: u64 = 0x3000;
const IDENTITY_SIZE: u64 = 0x1000;

/// The memory of a VM at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    /// The slots by number.
    pub(super) slots: BTreeMap<u32, MemorySlot>,
    /// The numbers of the slots that hold only zeroes, if that is known.
    pub(super) zeroes: Vec<u32>,
    /// The addresses of the program's KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR.
    pub(super) tss: Option<u64>,
    pub(super) identity: Option<u64>,
    /// The interrupt controllers are in the kernel.
    pub(super) has_irqchip: bool,
}

impl Map {
    /// Changes a slot, or removes it.
    pub(super) fn set(&mut self, number: u32, slot: Option<MemorySlot>) {
        match slot {
            Some(slot) => self.slots.insert(number, slot),
            None => self.slots.remove(&number),
        };
    }

    /// The slots in the order of their rows.
    pub(super) fn rows(&self) -> Vec<&MemorySlot> {
        let mut slots: Vec<&MemorySlot> = self.slots.values().collect();
        sort_by_key(&mut slots, |slot| (slot.number >> 16, slot.gpa, slot.number));
        slots
    }

    /// The table of the slots by address, with the holes between them, and a line for each thing to note.
    pub(super) fn text(&self, vm: u32) -> String {
        if self.slots.is_empty() {
            return format!("vmm: VM {vm} has no memory slot\n");
        }
        let slots = self.rows();
        let mut text = format!("vmm: memory of VM {vm}:\n");
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "  {:>12}   {:<12} {:>12}  {:<14}  slot", "first", "last", "size", "host address");
        let mut end: Option<(u32, u64)> = None;
        for found in slots.iter().take(MOST_ROWS) {
            let space = found.number >> 16;
            if let Some((_, before)) = end.filter(|(of, end)| *of == space && *end < found.gpa) {
                let _ = writeln!(text, "  {:>30} {:>12}", "hole", size(found.gpa.saturating_sub(before)));
            }
            let last = found.gpa.saturating_add(found.size.saturating_sub(1));
            let host = format!("{:#x}", found.address);
            let (place, number) = (format!("{:#x}", found.gpa), slot(found.number));
            let notes = self.words(found);
            let row = format!(
                "  {place:>12} - {last:<#12x} {:>12}  {host:<14}  {number}  {notes}",
                size(found.size)
            );
            let _ = writeln!(text, "{}", row.trim_end());
            end = Some((space, found.gpa.saturating_add(found.size)));
        }
        if slots.len() > MOST_ROWS {
            let _ = writeln!(text, "  and {} more", slots.len().saturating_sub(MOST_ROWS));
        }
        self.notes(&slots).iter().fold(text, |text, note| text + "  " + note + "\n")
    }

    /// The flags of a slot, and what is known of its content, in words.
    fn words(&self, slot: &MemorySlot) -> String {
        let mut words = region_flags(slot.flags);
        if self.zeroes.contains(&slot.number) {
            words += if words.is_empty() { "only zeroes" } else { ", only zeroes" };
        }
        words
    }

    /// Adds the slots and the remarks to those of a profile.
    pub(super) fn save(&self, vm: u32, saved: &mut SavedSetup) {
        let slots = self.rows();
        let room = MOST_SETUP.saturating_sub(saved.memory.len());
        saved.memory.extend(slots.iter().take(room).map(|slot| SavedSlot {
            vm,
            slot: slot.number,
            first: slot.gpa,
            size: slot.size,
            host: slot.address,
            flags: self.words(slot),
        }));
        let more = slots.len().saturating_sub(room);
        if more > 0 {
            saved.remarks.push(format!("VM {vm}: {} not shown.", plural(more as u64, "more memory slot")));
        }
        saved.remarks.extend(self.notes(&slots).into_iter().map(|note| format!("VM {vm}: {note}.")));
    }

    /// The things to note, in sentences.
    fn notes(&self, slots: &[&MemorySlot]) -> Vec<String> {
        let mut notes = Vec::new();
        let covers = |found: &MemorySlot, start: u64, size: u64| {
            let end = found.gpa.saturating_add(found.size);
            found.number >> 16 == 0 && found.gpa < start.saturating_add(size) && start < end
        };
        for found in slots {
            if notes.len() >= MOST_ROWS {
                break;
            }
            let end = found.gpa.saturating_add(found.size);
            let number = slot(found.number);
            if found.gpa < FOUR_GIB && end > FOUR_GIB {
                notes.push(format!(
                    "slot {number} runs past 4 GiB: it covers {}, where a PC has its devices",
                    range(0xfec0_0000.max(found.gpa), FOUR_GIB.saturating_sub(0xfec0_0000.max(found.gpa)))
                ));
            }
            for (place, name) in CONTROLLERS {
                if self.has_irqchip && covers(found, place, 0x1000) {
                    notes.push(format!("slot {number} covers the registers of the {name} at {place:#x}"));
                }
            }
            for (place, bytes, name) in [
                (self.tss, TSS_SIZE, "the pages of KVM_SET_TSS_ADDR"),
                (self.identity, IDENTITY_SIZE, "the page of KVM_SET_IDENTITY_MAP_ADDR"),
            ] {
                if let Some(place) = place.filter(|place| covers(found, *place, bytes)) {
                    notes.push(format!("slot {number} covers {name} at {place:#x}: KVM writes there"));
                }
            }
        }
        notes.extend(shared(slots));
        notes.truncate(MOST_ROWS);
        notes
    }
}

/// The slots that have the same memory of the program: each one with the one before it, by host address, that reaches furthest.
fn shared(slots: &[&MemorySlot]) -> Vec<String> {
    let mut slots: Vec<&MemorySlot> = slots.iter().copied().filter(|slot| slot.number >> 16 == 0).collect();
    sort_by_key(&mut slots, |slot| (slot.address, slot.number));
    let end = |slot: &MemorySlot| slot.address.saturating_add(slot.size);
    let mut furthest: Option<&MemorySlot> = None;
    let mut notes = Vec::new();
    for found in slots {
        if let Some(before) = furthest.filter(|before| found.address < end(before)) {
            let (one, other) = (before.number.min(found.number), before.number.max(found.number));
            notes.push(format!("slots {} and {} share memory of the program", slot(one), slot(other)));
            if notes.len() >= MOST_ROWS {
                break;
            }
        }
        furthest =
            Some(found).filter(|found| furthest.is_none_or(|before| end(before) < end(found))).or(furthest);
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(number: u32, gpa: u64, size: u64, address: u64) -> MemorySlot {
        MemorySlot { number, flags: 0, gpa, size, address }
    }

    fn by_number(slots: impl IntoIterator<Item = MemorySlot>) -> BTreeMap<u32, MemorySlot> {
        slots.into_iter().map(|slot| (slot.number, slot)).collect()
    }

    #[test]
    fn holes_and_flags_are_in_the_table() {
        let rom = MemorySlot { flags: 2, ..region(1, 0xffff_0000, 0x1_0000, 0x7000_0000) };
        let map = Map {
            slots: by_number([rom, region(0, 0, 0xa_0000, 0x1000)]),
            zeroes: vec![0],
            ..Map::default()
        };
        let text = map.text(1);
        let rows: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            rows,
            [
                "vmm: memory of VM 1:",
                "first last size host address slot",
                "0x0 - 0x9ffff 640 KiB 0x1000 0 only zeroes",
                "hole 4095.3 MiB",
                "0xffff0000 - 0xffffffff 64 KiB 0x70000000 1 read-only",
            ]
        );
        assert_eq!(Map::default().text(2), "vmm: VM 2 has no memory slot\n");
    }

    #[test]
    fn mistakes_are_noted() {
        let slots = [region(0, 0, 5 << 30, 0x10_0000), region(3, 6 << 30, 0x1000, 0x10_1000)];
        let map =
            Map { slots: by_number(slots), has_irqchip: true, tss: Some(0xfffb_d000), ..Map::default() };
        let text = map.text(1);
        for note in [
            "slot 0 runs past 4 GiB: it covers 0xfec00000 to 0xffffffff, where a PC has its devices",
            "slot 0 covers the registers of the I/O APIC at 0xfec00000",
            "slot 0 covers the registers of the local APIC at 0xfee00000",
            "slot 0 covers the pages of KVM_SET_TSS_ADDR at 0xfffbd000: KVM writes there",
            "slots 0 and 3 share memory of the program",
        ] {
            assert!(text.contains(note), "{note}: {text}");
        }
    }

    /// A slot between the two that share memory does not hide them.
    #[test]
    fn memory_is_shared_with_the_slot_that_reaches_furthest() {
        let notes = |slots: &[MemorySlot]| shared(&slots.iter().collect::<Vec<_>>());
        let slots = [
            region(7, 0, 0x9000, 0x1000),
            region(1, 0x9000, 0x1000, 0x2000),
            region(2, 0xa000, 0x1000, 0x5000),
        ];
        let share = |one, other| format!("slots {one} and {other} share memory of the program");
        assert_eq!(notes(&slots), [share(1, 7), share(2, 7)]);
        assert_eq!(notes(&[region(0, 0, 0x1000, 0x1000), region(1, 0x1000, 0x1000, 0x2000)]), [""; 0]);
        let all: Vec<_> = (0..1000).map(|number| region(number, 0, 0x1000, 0x1000)).collect();
        assert_eq!(notes(&all).len(), MOST_ROWS);
    }

    #[test]
    fn hostile_slots_have_rows() {
        let slots = by_number((0..200).map(|number| region(number, u64::MAX, u64::MAX, u64::MAX)));
        let text = Map { slots, tss: Some(u64::MAX), identity: Some(0), ..Map::default() }.text(9);
        assert!(text.contains("and 152 more") && text.lines().count() < 110);
        // Those of system management mode are no overlap.
        let slots = by_number([region(0, 0, 0x1000, 0), region(0x1_0000, 0, 0x1000, 0)]);
        let text = Map { slots, ..Map::default() }.text(1);
        assert!(text.contains("0 of address space 1") && !text.contains("share"), "{text}");
    }
}
