//! The part of the BIOS that is in the guest's memory: the vectors, the data areas, and a stub for each vector.
//!
//! A stub has 16 bytes. Its only work is one `out` to [`PORT`], which is an exit: the address of the stub tells the vector.
//! The services are in Rust. After the exit the stub returns with `iret`; its flags are in the caller's frame. If a service
//! has to wait, it sets CF, and the stub halts with interrupts on and asks again.
//!
//! Places: IBM PC AT Technical Reference, "BIOS data area" and "compatibility"; Phoenix, System BIOS for IBM PCs, chapter 3.

use crate::boot::geometry::{self, FLOPPY_TABLE};
use crate::memory::Gpa;
use crate::x86::modes::Start;

/// The port of the stubs. On a PC it calls the firmware's system management mode.
pub const PORT: u16 = 0xb2;
/// The address of the segment, and the offset of the stub of vector 0 in it. Tables of the machine are before it.
const START: u64 = 0xf_0000;
const OFFSET: u16 = 0x4000;
const STUBS: u64 = START + OFFSET as u64;
/// The code that sets up the interrupt controllers and the timer.
const SET_UP: u64 = START + 0x5000;
/// The size of a stub in bytes.
const STUB: u64 = 16;
/// The segment of the stubs.
const SEGMENT: u16 = 0xf000;
/// The place at which a processor without a BIOS begins: a jump to it restarts a PC.
const RESET: u64 = 0xf_fff0;
/// The address of the configuration table of int 15h, function C0h.
pub(super) const CONFIGURATION: (u16, u16) = (SEGMENT, 0xe6f5);
/// The address of the table of the diskette's parameters.
pub(super) const DISKETTE: (u16, u16) = (SEGMENT, 0xefc7);
/// The number of KiB below 640 KiB that a guest can use. The last KiB is the extended data area.
pub(super) const LOW_KIB: u16 = 639;
/// The segment of the extended data area.
pub(super) const EXTENDED_DATA: u16 = 0x9fc0;
/// Vectors that point to a table, and have no code.
const TABLES: [(u8, (u16, u16)); 1] = [(0x1e, DISKETTE)];

/// `out PORT, al`
const OUT: [u8; 2] = [0xe6, PORT as u8];
const IRET: u8 = 0xcf;
/// `push ax; mov al, 0x20; out 0x20, al; pop ax; iret`: the end of an interrupt of the first controller.
const END_OF_INTERRUPT: [u8; 7] = [0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, IRET];

/// The reason why the guest is in a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The vector.
    pub(super) vector: u8,
    /// The number of bytes between the stack pointer and the caller's frame.
    pub(super) pushed: u64,
}

/// The place in the stubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The `out` of a stub.
    Vector(Entry),
    /// The place at which a PC restarts.
    Reset,
}

/// The stub whose `out` is at a linear address, or just before it: hosts differ in that.
pub(super) fn at(linear: u64) -> Option<Place> {
    if [RESET, RESET.wrapping_add(OUT.len() as u64)].contains(&linear) {
        return Some(Place::Reset);
    }
    let offset = linear.checked_sub(STUBS)?;
    let vector = u8::try_from(offset / STUB).ok()?;
    let (start, pushed) = match vector {
        KEYBOARD => (3, 2),
        _ => (0, 0),
    };
    let of_out = (offset % STUB).checked_sub(start)?;
    [0, OUT.len() as u64].contains(&of_out).then_some(Place::Vector(Entry { vector, pushed }))
}

/// The instruction pointer after the `out` at the start of a stub, from one at the `out` or after it.
pub(super) fn after_out(rip: u64) -> u64 {
    rip & !(STUB - 1) | OUT.len() as u64
}

/// True if a linear address is in the stubs.
pub(super) fn contains(linear: u64) -> bool {
    linear.checked_sub(STUBS).is_some_and(|offset| offset < 256 * STUB)
}

/// True if `vector` of the guest's table leads to its stub: the guest has set no handler.
pub(super) fn is_own(vector: u8, entry: [u8; 4]) -> bool {
    entry == entry_of(vector)
}

/// Vectors of hardware interrupts: the timer, the keyboard, and those of the two controllers.
pub(super) const TIMER: u8 = 0x08;
pub(super) const KEYBOARD: u8 = 0x09;
const FIRST_CONTROLLER: std::ops::RangeInclusive<u8> = 0x0a..=0x0b;
const DISKETTE_INTERRUPT: u8 = 0x0e;
const SECOND_CONTROLLER: std::ops::RangeInclusive<u8> = 0x70..=0x77;
/// Vectors of a service that jumps to the boot sector.
pub(super) const BOOTSTRAP: u8 = 0x19;

/// The code of a stub.
fn code(vector: u8) -> Vec<u8> {
    match vector {
        // out; int 0x1c; end of interrupt
        TIMER => [&OUT[..], &[0xcd, 0x1c], &END_OF_INTERRUPT].concat(),
        // push ax; in al, 0x60; out; mov al, 0x20; out 0x20, al; pop ax; iret
        KEYBOARD => [&[0x50, 0xe4, 0x60][..], &OUT, &[0xb0, 0x20, 0xe6, 0x20, 0x58, IRET]].concat(),
        _ if FIRST_CONTROLLER.contains(&vector) || vector == DISKETTE_INTERRUPT => END_OF_INTERRUPT.into(),
        // The same for both controllers.
        _ if SECOND_CONTROLLER.contains(&vector) => {
            vec![0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, IRET]
        }
        // Spurious interrupts need no end.
        0x0f | 0x1c | 0x4a => vec![IRET],
        // out; jmp 0:0x7c00
        BOOTSTRAP => [&OUT[..], &[0xea, 0x00, 0x7c, 0x00, 0x00]].concat(),
        // out; jc wait; iret; wait: sti; hlt; jmp to the out
        _ => [&OUT[..], &[0x72, 0x01, IRET, 0xfb, 0xf4, 0xeb, 0xf7]].concat(),
    }
}

/// The offset of a stub in the segment.
pub fn offset(vector: u8) -> u16 {
    OFFSET.wrapping_add(u16::from(vector).wrapping_mul(STUB as u16))
}

/// The start of a boot disk on a machine with interrupt controllers and a timer. Its first code sets them up as a BIOS does:
/// the interrupts of the first 8259 are vectors 8 to 0Fh, those of the second one 70h to 77h, and the timer ticks.
pub(crate) fn start_with_set_up(start: &Start) -> Start {
    Start { entry: Gpa(SET_UP), segment: SEGMENT, ..start.clone() }
}

/// That code. Intel 8259A and 8254 data sheets.
fn set_up() -> Vec<u8> {
    /// The four words of initialisation of each 8259, and the masks: the timer, the keyboard, the second 8259, the disks.
    const WRITES: [(u8, u8); 13] = [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0x08),
        (0xa1, 0x70),
        (0x21, 0x04),
        (0xa1, 0x02),
        (0x21, 0x01),
        (0xa1, 0x01),
        (0x21, 0xb8),
        (0xa1, 0x8f),
        (0x43, 0x36),
        (0x40, 0x00),
        (0x40, 0x00),
    ];
    // cli; for each: mov al, value; out port, al
    let mut code = vec![0xfa];
    code.extend(WRITES.iter().flat_map(|(port, value)| [0xb0, *value, 0xe6, *port]));
    // xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00; mov ax, 0xaa55; sti; jmp 0:0x7c00
    code.extend([0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xb8, 0x55, 0xaa, 0xfb]);
    code.extend([0xea, 0x00, 0x7c, 0x00, 0x00]);
    code
}

/// The entry of a vector in the table: offset and segment.
fn entry_of(vector: u8) -> [u8; 4] {
    let table = TABLES.iter().find(|(table, _)| *table == vector);
    let (segment, offset) = match table {
        Some((_, place)) => *place,
        None => (SEGMENT, offset(vector)),
    };
    let ([low, high], [segment_low, segment_high]) = (offset.to_le_bytes(), segment.to_le_bytes());
    [low, high, segment_low, segment_high]
}

/// The memory of the BIOS at the start: addresses and bytes.
pub(super) fn memory(hard_disks: u8, floppies: u8) -> Vec<(Gpa, Vec<u8>)> {
    let vectors = (0..=u8::MAX).flat_map(entry_of).collect();
    let mut stubs = Vec::with_capacity(0x1000);
    for vector in 0..=u8::MAX {
        let mut stub = code(vector);
        stub.resize(STUB as usize, IRET);
        stubs.extend(stub);
    }
    // Restart; the date; the model: a PC AT.
    let mut reset = [&OUT[..], &[0xf4, 0xeb, 0xfd], b"01/01/99", &[0, 0xfc, 0]].concat();
    reset.truncate(16);
    let (_, configuration) = CONFIGURATION;
    let (_, diskette) = DISKETTE;
    vec![
        (Gpa(0), vectors),
        (Gpa(0x400), data(hard_disks, floppies)),
        (Gpa(u64::from(EXTENDED_DATA) << 4), vec![1]),
        (Gpa(STUBS), stubs),
        (Gpa(START.wrapping_add(configuration.into())), vec![8, 0, 0xfc, 0, 0, 0x74, 0x40, 0, 0, 0]),
        (Gpa(START.wrapping_add(diskette.into())), FLOPPY_TABLE.into()),
        (Gpa(SET_UP), set_up()),
        (Gpa(RESET), reset),
    ]
}

/// The words of the equipment list (int 11h): a coprocessor, a colour screen of 80 columns, a serial port, diskette drives.
pub(super) fn equipment(floppies: u8) -> u16 {
    0x0222 | u16::from(floppies > 0)
}

/// The data area at 0x400.
fn data(hard_disks: u8, floppies: u8) -> Vec<u8> {
    let mut data = vec![0; 0x100];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = data.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    put(0x00, &0x3f8u16.to_le_bytes());
    put(0x0e, &EXTENDED_DATA.to_le_bytes());
    put(0x10, &equipment(floppies).to_le_bytes());
    put(0x13, &LOW_KIB.to_le_bytes());
    put(0x1a, &[0x1e, 0, 0x1e, 0]);
    // The screen: mode 3, 80 columns, pages of 4 KiB, the cursor's shape, the port of its controller.
    put(0x49, &[3, 80, 0, 0, 0x10, 0, 0]);
    put(0x60, &[7, 6, 0, 0xd4, 3, 0x29, 0x30]);
    put(0x75, &[hard_disks]);
    put(0x80, &[0x1e, 0, 0x3e, 0, 24, 16, 0, 0x60, 9, 0x11]);
    put(0x8f, &[if floppies > 0 { geometry::DRIVE_STATE } else { 0 }]);
    put(0x96, &[0x10]);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_fits_and_its_address_tells_the_vector() {
        for vector in 0..=u8::MAX {
            let code = code(vector);
            assert!(code.len() <= STUB as usize, "{vector:#x}");
            let Some(out) = code.windows(2).position(|bytes| bytes == OUT) else { continue };
            let linear = STUBS + u64::from(vector) * STUB + out as u64;
            for at_or_after in [linear, linear + 2] {
                let Some(Place::Vector(found)) = at(at_or_after) else { panic!("{vector:#x}") };
                assert_eq!(found.vector, vector);
            }
            assert!(at(linear + 1).is_none());
        }
        assert_eq!((at(RESET), at(0xffff2)), (Some(Place::Reset), Some(Place::Reset)));
        assert!(at(0).is_none() && at(0xf_5000).is_none() && at(u64::MAX).is_none());
    }

    #[test]
    fn the_memory_of_the_bios_is_below_1_mib_and_does_not_overlap() {
        let mut parts: Vec<_> =
            memory(1, 0).iter().map(|(start, bytes)| (start.0, start.0 + bytes.len() as u64)).collect();
        parts.sort();
        assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{parts:x?}");
        assert_eq!(parts.last().unwrap().1, 0x10_0000);
        assert!(is_own(0x10, [0x00, 0x41, 0x00, 0xf0]) && !is_own(0x10, [0; 4]));
    }
}
