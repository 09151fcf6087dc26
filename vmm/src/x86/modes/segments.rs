//! Segments, the GDT that describes them, and the task state of ring 3.
//!
//! Segment descriptors: Intel SDM volume 3, section 3.4.5. The 64-bit task state, its descriptor, and the I/O
//! permission bitmap: volume 3, sections 8.7 and 8.2.3, and volume 1, section 19.5.2.

use super::Mode;
use crate::memory::{TABLES, TABLES_SIZE, TASK_STATE};
use crate::x86::registers::Segment;

/// GDT index of the code segment: selector 0x08.
const CODE: u16 = 1;
/// GDT index of the data segment: selector 0x10.
const DATA: u16 = 2;
/// GDT index of ring 3's code segment: selector 0x1B, with the ring in its low bits.
const USER_CODE: u16 = 3;
/// GDT index of ring 3's data segment: selector 0x23.
const USER_DATA: u16 = 4;
/// GDT index of the task state, which takes two entries: selector 0x28.
const TASK: u16 = 5;

/// Size of the 64-bit task state without its bitmap, in bytes. The bitmap begins at this offset.
const TASK_FIELDS: u16 = 0x68;
/// Offset of the field with the bitmap's offset, in bytes.
const TASK_BITMAP_BASE: usize = 0x66;
/// Size of the task state in bytes: the fields, a bitmap for all ports, and the byte of ones that the manual requires
/// after it.
pub const TASK_STATE_SIZE: usize = TASK_FIELDS as usize + 0x1_0000 / 8 + 1;
// The memory map leaves enough room for it.
const _: () = assert!(TASK_STATE.0 + TASK_STATE_SIZE as u64 <= TABLES.0 + TABLES_SIZE);

/// A flat segment of 4 GiB. `kind` is the descriptor's type field, with the accessed bit set as the processor itself
/// would set it.
const fn flat_segment(index: u16, kind: u8, long: bool) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index << 3,
        type_: kind,
        present: 1,
        dpl: 0,
        db: !long as u8,
        s: 1,
        l: long as u8,
        g: 1,
        avl: 0,
        unusable: 0,
    }
}

/// The code segment: execute, read, accessed.
pub(super) const fn code_segment(mode: Mode) -> Segment {
    flat_segment(CODE, 0b1011, matches!(mode, Mode::Long | Mode::User))
}

/// The data segment: read, write, accessed.
pub(super) const fn data_segment() -> Segment {
    flat_segment(DATA, 0b0011, false)
}

/// The ring 3 form of a segment, at another GDT index.
const fn for_ring_3(segment: Segment, index: u16) -> Segment {
    Segment { selector: index << 3 | 3, dpl: 3, ..segment }
}

pub(super) const USER_CODE_SEGMENT: Segment = for_ring_3(code_segment(Mode::User), USER_CODE);
pub(super) const USER_DATA_SEGMENT: Segment = for_ring_3(data_segment(), USER_DATA);

/// The task state's segment, with the busy type that a running processor requires.
pub(super) const TASK_SEGMENT: Segment = Segment {
    base: TASK_STATE.0,
    limit: TASK_STATE_SIZE as u32 - 1,
    selector: TASK << 3,
    type_: 0b1011,
    present: 1,
    dpl: 0,
    db: 0,
    s: 0,
    l: 0,
    g: 0,
    avl: 0,
    unusable: 0,
};

/// Linux's `__BOOT_CS`.
pub(super) const fn linux_code(mode: Mode) -> Segment {
    Segment { selector: 0x10, ..code_segment(mode) }
}

/// Linux's `__BOOT_DS`.
pub(super) const LINUX_DATA: Segment = Segment { selector: 0x18, ..data_segment() };

/// The segment's descriptor as it is stored in memory.
pub(super) fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let flags = u64::from(segment.g) << 3 | u64::from(segment.db) << 2 | u64::from(segment.l) << 1;
    let access = u64::from(segment.present) << 7
        | u64::from(segment.dpl) << 5
        | u64::from(segment.s) << 4
        | u64::from(segment.type_);
    (limit & 0xffff)
        | (segment.base & 0x00ff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | (flags | u64::from(segment.avl)) << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// The limit of the GDT that [`gdt`] returns, for the GDTR: its size in bytes, minus one.
pub(super) fn gdt_limit(mode: Mode) -> u16 {
    // The task state's descriptor takes two entries.
    let entries = if mode == Mode::User { TASK + 2 } else { DATA + 1 };
    entries * 8 - 1
}

/// The GDT of protected or long mode: null, code (0x08), data (0x10). The GDT of ring 3 continues with its own code
/// (0x1B), its own data (0x23), and the task state (0x28).
pub fn gdt(mode: Mode) -> Vec<u64> {
    let mut gdt = vec![0, descriptor(&code_segment(mode)), descriptor(&data_segment())];
    if mode == Mode::User {
        gdt.extend([&USER_CODE_SEGMENT, &USER_DATA_SEGMENT, &TASK_SEGMENT].map(descriptor));
        gdt.push(TASK_SEGMENT.base >> 32);
    }
    gdt
}

/// The task state of ring 3, with a bitmap that allows all ports. It has no stacks: there is no IDT that would need one.
pub fn task_state() -> Vec<u8> {
    let mut state = vec![0; TASK_STATE_SIZE];
    if let Some(base) = state.get_mut(TASK_BITMAP_BASE..usize::from(TASK_FIELDS)) {
        base.copy_from_slice(&TASK_FIELDS.to_le_bytes());
    }
    if let Some(last) = state.last_mut() {
        *last = 0xff;
    }
    state
}

/// The GDT at the entry of a Linux kernel: null, null, code (`__BOOT_CS`, 0x10), data (`__BOOT_DS`, 0x18).
pub fn linux_gdt(mode: Mode) -> [u64; 4] {
    [0, 0, descriptor(&linux_code(mode)), descriptor(&LINUX_DATA)]
}
