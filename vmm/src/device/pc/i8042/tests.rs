use super::*;
use crate::device::pc::keyboard::TerminalKeys;
use crate::host::event;

fn read(device: &mut I8042, offset: u64) -> u64 {
    device.read(offset, 1).continue_value().unwrap()
}

fn write(device: &mut I8042, offset: u64, byte: u64) {
    assert!(device.write(offset, 1, byte).is_continue());
}

/// Reads all bytes that are ready.
fn bytes(device: &mut I8042) -> Vec<u64> {
    let ready = |device: &mut I8042| (read(device, 4) & 1 != 0).then(|| read(device, 0));
    std::iter::from_fn(|| ready(device)).collect()
}

fn press(device: &mut I8042, typed: &[u8]) -> bool {
    device.press(&TerminalKeys::default().next(typed).0.unwrap())
}

#[test]
fn the_self_test_passes_and_no_keyboard_or_mouse_is_found() {
    let mut device = I8042::default();
    for (command, answer) in [(0xaa, 0x55), (0xab, 1), (0xa9, 1), (0x20, 0x34)] {
        assert_eq!(read(&mut device, 4) & 1, 0);
        write(&mut device, 4, command);
        assert_eq!((read(&mut device, 4) & 1, read(&mut device, 0)), (1, answer), "{command:#x}");
    }
    assert_eq!(read(&mut device, 0), 0);
    write(&mut device, 0, 0xf2);
    assert!(bytes(&mut device).is_empty(), "no keyboard answers");
}

#[test]
fn the_control_byte_reads_back_and_the_mouse_loopback_fails() {
    let mut device = I8042::default();
    for (offset, data) in [(4, 0x60), (0, 0x47), (4, 0x20)] {
        write(&mut device, offset, data);
    }
    assert_eq!(read(&mut device, 0), 0x47);
    write(&mut device, 4, 0xd3);
    write(&mut device, 0, 0x5a);
    assert_eq!(read(&mut device, 0), 0xa5);
}

#[test]
fn a_reset_ends_the_run() {
    assert!(matches!(I8042::default().write(4, 1, 0xfe), ControlFlow::Break(Stop::Rebooted)));
    assert!(I8042::default().write(0, 1, 0xfe).is_continue());
    assert!(I8042::default().write(4, 1, 0xff).is_continue(), "no line is pulsed");
    let mut device = I8042::default();
    write(&mut device, 4, 0xd1);
    assert!(matches!(device.write(0, 1, 0x02), ControlFlow::Break(Stop::Rebooted)));
    write(&mut device, 4, 0xd1);
    write(&mut device, 0, 0xdf);
}

#[test]
fn a_keyboard_is_found_identified_and_reset() {
    let mut device = I8042::with_keyboard(None, None);
    for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 1), (0x20, 0x65), (0xc0, 0x80), (0xd0, 0x03)] {
        write(&mut device, 4, command);
        assert_eq!(bytes(&mut device), [answer], "{command:#x}");
    }
    write(&mut device, 0, 0xff);
    assert_eq!(bytes(&mut device), [0xfa, 0xaa]);
    write(&mut device, 0, 0xf2);
    assert_eq!(bytes(&mut device), [0xfa, 0xab, 0x41], "translated");
    write(&mut device, 4, 0x60);
    write(&mut device, 0, 0x00);
    write(&mut device, 0, 0xf2);
    assert_eq!(bytes(&mut device), [0xfa, 0xab, 0x83]);
    // The mouse cannot be enabled.
    write(&mut device, 4, 0xa8);
    write(&mut device, 4, 0x20);
    assert_eq!(bytes(&mut device), [0x20]);
}

#[test]
fn keys_are_translated_unless_the_guest_wants_set_2() {
    let mut device = I8042::with_keyboard(None, None);
    assert!(press(&mut device, b"A"));
    assert_eq!(bytes(&mut device), [0x2a, 0x1e, 0x9e, 0xaa]);
    assert!(press(&mut device, b"\x1b[A"));
    assert_eq!(bytes(&mut device), [0xe0, 0x48, 0xe0, 0xc8]);
    write(&mut device, 4, 0x60);
    write(&mut device, 0, 0x05);
    assert!(press(&mut device, b"a"));
    assert_eq!(bytes(&mut device), [0x1c, 0xf0, 0x1c]);
}

#[test]
fn each_byte_interrupts_once_and_a_disabled_keyboard_waits() {
    let (line, drained) = (event().unwrap(), Arc::new(event().unwrap()));
    let mut device = I8042::with_keyboard(Some(line.try_clone().unwrap()), Some(drained.clone()));
    assert!(press(&mut device, b"a"));
    assert_eq!(line.read().unwrap(), 1);
    assert!(press(&mut device, b"b"));
    assert!(line.read().is_err(), "the buffer is full");
    write(&mut device, 4, 0xad);
    assert_eq!(read(&mut device, 0), 0x1e);
    assert!(line.read().is_err() && !press(&mut device, b"c"));
    write(&mut device, 4, 0xae);
    assert_eq!(line.read().unwrap(), 1);
    assert!(drained.read().is_err());
    assert_eq!(bytes(&mut device), [0x9e, 0x30, 0xb0]);
    assert_eq!((line.read().unwrap(), drained.read().unwrap()), (2, 1));
    // No interrupt after it was switched off; a byte that the guest puts there itself interrupts.
    write(&mut device, 4, 0x60);
    write(&mut device, 0, 0x40);
    assert!(press(&mut device, b"d") && line.read().is_err() && !device.has_interrupt());
    assert_eq!(bytes(&mut device), [0x20, 0xa0]);
    write(&mut device, 4, 0x60);
    write(&mut device, 0, 0x41);
    write(&mut device, 4, 0xd2);
    write(&mut device, 0, 0x77);
    assert_eq!((line.read().unwrap(), bytes(&mut device)), (1, vec![0x77]));
}

#[test]
fn the_status_tells_commands_from_data_and_the_memory_keeps_bytes() {
    let mut device = I8042::with_keyboard(None, None);
    write(&mut device, 4, 0x7f);
    assert_eq!(read(&mut device, 4), 0x1c);
    write(&mut device, 0, 0x99);
    assert_eq!(read(&mut device, 4), 0x14);
    write(&mut device, 4, 0x3f);
    assert_eq!((read(&mut device, 4), read(&mut device, 0)), (0x1d, 0x99));
    assert_eq!(device.read(2, 1).continue_value(), Some(u64::MAX));
}

#[test]
fn a_reset_of_the_machine_keeps_the_keyboard_and_its_lines() {
    let line = event().unwrap();
    let mut device = I8042::with_keyboard(Some(line.try_clone().unwrap()), None);
    assert!(press(&mut device, b"a"));
    device.reset();
    assert_eq!((bytes(&mut device), line.read().unwrap()), (vec![], 1));
    assert!(press(&mut device, b"a"));
    assert_eq!(line.read().unwrap(), 1);
}

#[test]
fn no_access_panics() {
    let mut device = I8042::with_keyboard(None, None);
    for step in 0..20_000u64 {
        let byte = step.wrapping_mul(0x9e37_79b9) >> 7;
        if device.write([0, 4, 1, 2, 77][(step % 5) as usize], 1 << (step % 4), byte).is_break() {
            device.reset();
        }
        press(&mut device, b"z");
        assert!(device.read(step % 6, 4).is_continue());
    }
}
