use super::*;

/// The answer to these bytes.
fn answer(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
    bytes.iter().for_each(|byte| keyboard.receive(*byte));
    std::iter::from_fn(|| keyboard.take()).collect()
}

fn stroke(bytes: &[u8]) -> Stroke {
    TerminalKeys::default().next(bytes).0.unwrap()
}

#[test]
fn commands_are_answered_as_the_reference_says() {
    let mut keyboard = Keyboard::default();
    for (command, expected) in [
        (&[0xff][..], &[0xfa, 0xaa][..]),
        (&[0xee], &[0xee]),
        (&[0xed, 0x07], &[0xfa, 0xfa]),
        (&[0xf2], &[0xfa, 0xab, 0x83]),
        (&[0xf3, 0x20], &[0xfa, 0xfa]),
        (&[0xf0, 0], &[0xfa, 0xfa, 2]),
        (&[0xf0, 9], &[0xfa, 0xfe]),
        (&[0xf4], &[0xfa]),
        (&[0xf6], &[0xfa]),
        (&[0xf8], &[0xfa]),
        (&[0xfd, 0x1c, 0x1b], &[0xfa, 0xfa, 0xfa]),
        // A command in the place of the parameter.
        (&[0xed, 0xee], &[0xfa, 0xee]),
        (&[0x00], &[0xfe]),
        (&[0xef], &[0xfe]),
    ] {
        assert_eq!(answer(&mut keyboard, command), expected, "{command:x?}");
    }
    assert_eq!(answer(&mut keyboard, &[0xee]), [0xee]);
    assert_eq!(answer(&mut keyboard, &[0xfe]), [0xee], "again");
}

#[test]
fn keys_are_sent_in_the_selected_set() {
    let mut keyboard = Keyboard::default();
    for (set, expected) in [
        (1, &[0x2a, 0x1e, 0x9e, 0xaa, 0xe0, 0x48, 0xe0, 0xc8][..]),
        (2, &[0x12, 0x1c, 0xf0, 0x1c, 0xf0, 0x12, 0xe0, 0x75, 0xe0, 0xf0, 0x75]),
        (3, &[0x12, 0x1c, 0xf0, 0x1c, 0xf0, 0x12, 0x63, 0xf0, 0x63]),
    ] {
        assert_eq!(answer(&mut keyboard, &[0xf0, set]), [0xfa, 0xfa]);
        assert_eq!(answer(&mut keyboard, &[0xf0, 0]), [0xfa, 0xfa, set]);
        keyboard.press(&stroke(b"A"));
        keyboard.press(&stroke(b"\x1b[A"));
        assert_eq!(answer(&mut keyboard, &[]), expected);
    }
}

#[test]
fn a_full_buffer_ends_in_an_overrun() {
    let mut keyboard = Keyboard::default();
    for _ in 0..5 {
        assert!(keyboard.has_room(&stroke(b"a")));
        keyboard.press(&stroke(b"a"));
    }
    assert!(!keyboard.has_room(&stroke(b"a")));
    keyboard.press(&stroke(b"a"));
    let bytes = answer(&mut keyboard, &[]);
    assert_eq!((bytes.len(), bytes[14], bytes[15]), (16, 0x1c, OVERRUN));
    for byte in (0..=255).cycle().take(5000) {
        keyboard.receive(byte);
    }
    assert!(keyboard.buffer.len() <= BUFFER);
}

#[test]
fn a_disabled_keyboard_reports_no_keys() {
    let mut keyboard = Keyboard::default();
    keyboard.press(&stroke(b"a"));
    assert_eq!(answer(&mut keyboard, &[0xf5]), [0xfa], "the buffer was cleared");
    assert!(!keyboard.has_room(&stroke(b"a")));
    keyboard.press(&stroke(b"a"));
    assert_eq!(answer(&mut keyboard, &[0xf4]), [0xfa]);
    keyboard.press(&stroke(b"a"));
    assert_eq!(answer(&mut keyboard, &[]), [0x1c, 0xf0, 0x1c]);
}
