use super::*;
use crate::console::screen::DEFAULT_PALETTE;

fn read(vga: &mut Vga, port: u16) -> u8 {
    vga.read((port - PORT).into(), 1).continue_value().unwrap() as u8
}

fn write(vga: &mut Vga, port: u16, byte: u8) {
    assert!(vga.write((port - PORT).into(), 1, byte.into()).is_continue());
}

#[test]
fn power_on_is_mode_3_with_its_colours_and_its_cursor() {
    let view = Vga::default().view();
    let expected =
        View { start: 0, cursor: Some(0), palette: DEFAULT_PALETTE, blinks: true, is_graphics: false };
    assert_eq!(view, expected);
}

#[test]
fn cursor_and_start_are_set_by_bytes_and_by_words() {
    let mut vga = Vga::default();
    for (index, byte) in [(0x0e, 0x01), (0x0f, 0x40)] {
        write(&mut vga, 0x3d4, index);
        write(&mut vga, 0x3d5, byte);
        assert_eq!((read(&mut vga, 0x3d4), read(&mut vga, 0x3d5)), (index, byte));
    }
    assert_eq!(vga.view().cursor, Some(320));
    // outw: the index, and its data.
    assert!(vga.write(0x14, 2, 0x500d).is_continue());
    assert_eq!((vga.view().start, vga.view().cursor), (80, Some(240)));
    assert_eq!(vga.read(0x14, 2).continue_value().unwrap() & 0xffff, 0x500d);
    // Before the first cell, switched off, or without a row of pixels.
    assert!(vga.write(0x14, 2, 0x800c).is_continue());
    assert_eq!((vga.view().start, vga.view().cursor), (0x8050, None));
    assert!(vga.write(0x14, 2, 0x000c).is_continue());
    assert!(vga.view().cursor.is_some());
    assert!(vga.write(0x14, 2, 0x200a).is_continue());
    assert_eq!(vga.view().cursor, None);
    assert!(vga.write(0x14, 2, 0x0f0a).is_continue());
    assert_eq!(vga.view().cursor, None);
}

#[test]
fn crtc_registers_0_to_7_are_protected_except_line_compare() {
    let mut vga = Vga::default();
    let mut set = |index: u8, byte| {
        write(&mut vga, 0x3d4, index);
        write(&mut vga, 0x3d5, byte);
        read(&mut vga, 0x3d5)
    };
    assert_eq!([set(0, 0xaa), set(7, 0xff), set(7, 0x00)], [0x5f, 0x1f, 0x0f]);
    assert_eq!([set(0x11, 0x0e), set(0, 0xaa), set(7, 0xff)], [0x0e, 0xaa, 0xff]);
    // No register has this index.
    assert_eq!([set(0x19, 0x55), set(0x3f, 0x55)], [0, 0]);
    write(&mut vga, 0x3d4, 0xff);
    assert_eq!(read(&mut vga, 0x3d4), 0x3f);
}

#[test]
fn the_attribute_controller_alternates_and_a_status_read_resets_it() {
    let mut vga = Vga::default();
    read(&mut vga, 0x3da);
    write(&mut vga, 0x3c0, 0x10);
    assert_eq!((read(&mut vga, 0x3c0), read(&mut vga, 0x3c1)), (0x10, 0x0c));
    // No blinking.
    write(&mut vga, 0x3c0, 0x04);
    assert!(!vga.view().blinks);
    // A palette entry can be changed only while the screen is off.
    for (address, expected) in [(0x21, 0x01), (0x01, 0x3f)] {
        read(&mut vga, 0x3da);
        write(&mut vga, 0x3c0, address);
        write(&mut vga, 0x3c0, 0xff);
        assert_eq!(read(&mut vga, 0x3c1), expected);
    }
    assert_eq!(vga.view().palette[1], [0xff; 3]);
    // The read between makes the second byte an address.
    write(&mut vga, 0x3c0, 0x11);
    read(&mut vga, 0x3da);
    write(&mut vga, 0x3c0, 0x12);
    assert_eq!((read(&mut vga, 0x3c0), read(&mut vga, 0x3c1)), (0x12, 0x0f));
    write(&mut vga, 0x3c0, 0x3f);
    read(&mut vga, 0x3da);
    write(&mut vga, 0x3c0, 0x1f);
    assert_eq!(read(&mut vga, 0x3c1), 0, "no register has this index");
}

#[test]
fn colours_are_written_and_read_in_three_parts() {
    let mut vga = Vga::default();
    write(&mut vga, 0x3c8, 1);
    [0x01, 0xff, 0x3f, 0x05].iter().for_each(|part| write(&mut vga, 0x3c9, *part));
    assert_eq!((read(&mut vga, 0x3c8), read(&mut vga, 0x3c7)), (2, 0));
    assert_eq!(vga.view().palette[1], [0x04, 0xff, 0xff]);
    write(&mut vga, 0x3c7, 1);
    assert_eq!(read(&mut vga, 0x3c7), 3);
    assert_eq!([0; 4].map(|_| read(&mut vga, 0x3c9)), [0x01, 0x3f, 0x3f, 0x05]);
    write(&mut vga, 0x3c8, 0xff);
    (0..3).for_each(|_| write(&mut vga, 0x3c9, 1));
    assert_eq!(read(&mut vga, 0x3c8), 0, "the index wraps");
    write(&mut vga, 0x3c6, 0);
    assert_eq!((read(&mut vga, 0x3c6), vga.view().palette), (0, [[0; 3]; 16]));
}

#[test]
fn the_retrace_begins_and_ends_for_a_guest_that_waits() {
    let mut vga = Vga::default();
    let seen: Vec<u8> = (0..8).map(|_| read(&mut vga, 0x3da)).collect();
    for bit in [1, 8] {
        assert!(seen[..4].iter().any(|status| status & bit != 0), "{seen:?}");
        assert!(seen[..4].iter().any(|status| status & bit == 0), "{seen:?}");
    }
}

#[test]
fn other_registers_read_as_written() {
    let mut vga = Vga::default();
    for (index, data, count) in [(0x3c4, 0x3c5, 5), (0x3ce, 0x3cf, 9)] {
        for register in 0..count {
            write(&mut vga, index, register);
            write(&mut vga, data, 0x50 + register);
            assert_eq!((read(&mut vga, index), read(&mut vga, data)), (register, 0x50 + register));
        }
    }
    assert!(!vga.view().is_graphics);
    write(&mut vga, 0x3ce, 6);
    write(&mut vga, 0x3cf, 5);
    assert!(vga.view().is_graphics);
    write(&mut vga, 0x3da, 0xff);
    assert_eq!((read(&mut vga, 0x3ca), read(&mut vga, 0x3cc), read(&mut vga, 0x3c3)), (3, 0x67, 1));
    // With the ports of a monochrome screen, those of a colour screen have no device.
    write(&mut vga, 0x3c2, 0x66);
    assert_eq!([0x3d4, 0x3d5, 0x3da].map(|port| read(&mut vga, port)), [0xff; 3]);
    vga.reset();
    assert_eq!(read(&mut vga, 0x3cc), 0x67);
}

#[test]
fn no_access_leaves_the_range() {
    let mut vga = Vga::default();
    for offset in (0..40).chain([u64::MAX, u64::MAX - 1]) {
        for size in [1, 2, 4, 8, 255] {
            assert!(vga.write(offset, size, u64::MAX).is_continue());
            assert!(vga.read(offset, size).is_continue());
        }
    }
    vga.view();
}
