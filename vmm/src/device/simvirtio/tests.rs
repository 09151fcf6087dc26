#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::console::output::Captured;
use crate::device::bus::Device as BusDevice;
use crate::memory::Gpa;
use crate::memory::GuestMemory;
use simvirtio::abi::Layout;
use simvirtio::device::Violation;

fn window() -> (Window, GuestMemory, Captured) {
    let ram = GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE)]).unwrap();
    let (output, captured) = Output::captured();
    let memory = TrappedMemory::new(ram.clone());
    (
        Window::new(Simvirtio::power_on(Layout::Table, 256, memory, output, Input::bytes(b"in")).unwrap()),
        ram,
        captured,
    )
}

fn read(window: &mut Window, offset: u64, size: u8) -> u64 {
    match window.read(offset, size) {
        ControlFlow::Continue(value) => value,
        ControlFlow::Break(stop) => panic!("{stop}"),
    }
}

fn push(window: &mut Window, ram: &GuestMemory, byte: u8) -> ControlFlow<Stop> {
    let head = read(window, offset::TX_HEAD, 4);
    ram.store_u8(abi::TX_BUFFER + head, byte);
    window.write(offset::TX_HEAD, 4, head + 1)
}

#[test]
fn a_hand_written_driver_sends_a_message() {
    let (mut window, ram, captured) = window();
    assert_eq!(read(&mut window, offset::MAGIC, 4), u64::from(abi::MAGIC));
    for step in [b'R', b'C'] {
        assert!(push(&mut window, &ram, step).is_continue());
    }
    assert_eq!(read(&mut window, offset::DEVICE_STATUS, 1), 2);
    assert!(window.write(offset::DRIVER_STATUS, 1, 4).is_continue());
    assert_eq!(read(&mut window, offset::DEVICE_STATUS, 1), 4);
    for byte in *b"Ana are mere" {
        assert!(push(&mut window, &ram, byte).is_continue());
    }
    assert_eq!(captured.bytes(), b"Ana are mere");
    let report = window.simvirtio().report(Transport::Exit);
    assert_eq!((report.state, report.message.as_slice()), (State::Ready, b"Ana are mere".as_slice()));
}

#[test]
fn the_config_table_takes_any_width() {
    let (mut window, ..) = window();
    assert_eq!(read(&mut window, 0, 8), 0x0000_0100_7472_6976);
    assert_eq!(read(&mut window, 3, 2), 0x0074);
    assert_eq!(read(&mut window, 4, 2), 256);
    assert!(window.write(offset::QUEUE_SELECTOR, 2, 0x5501).is_continue());
    assert_eq!(read(&mut window, offset::QUEUE_SELECTOR, 4), 0x5501);
}

#[test]
fn stores_to_read_only_fields_are_ignored_and_counted() {
    let (mut window, ..) = window();
    for (offset, size) in [(0, 4), (4, 2), (6, 1), (offset::TX_TAIL, 4), (offset::RX_HEAD, 4), (0x80, 8)] {
        let before = read(&mut window, offset, size);
        assert!(window.write(offset, size, 0x1111_1111).is_continue());
        assert_eq!(read(&mut window, offset, size), before, "{offset:#x}");
    }
    assert_eq!(window.simvirtio().report(Transport::Exit).history.ignored_stores, 6);
}

#[test]
fn one_store_over_read_only_and_writable_bytes_writes_the_writable_ones() {
    let (mut window, ..) = window();
    assert!(window.write(offset::MAX_QUEUE_LEN, 4, 0x0255_5555).is_continue());
    assert_eq!(read(&mut window, offset::MAX_QUEUE_LEN, 4), 0x0200_0100);
}

#[test]
fn queue_controls_take_aligned_words_only() {
    for (offset, size) in
        [(0x10, 1), (0x10, 2), (0x10, 8), (0x12, 4), (0x0d, 4), (0x0c, 8), (0x1f, 1), (0x1e, 4), (0x1c, 8)]
    {
        for store in [false, true] {
            let (mut window, ..) = window();
            let stop = if store {
                window.write(offset, size, 0).break_value()
            } else {
                window.read(offset, size).break_value()
            };
            let violation = Violation::Access { offset, size, store };
            assert!(matches!(stop, Some(Stop::ProtocolError(found)) if found == violation));
            assert_eq!(window.simvirtio().device.state(), State::Broken);
        }
    }
}

#[test]
fn the_rest_of_the_page_reads_as_zero() {
    let (mut window, ..) = window();
    for (offset, size) in [(0x0c, 4), (0x20, 8), (0xff8, 8), (0xffe, 4)] {
        assert_eq!(read(&mut window, offset, size), 0);
    }
}

#[test]
fn a_read_of_the_rx_head_brings_input() {
    let (mut window, ram, _) = window();
    assert_eq!(read(&mut window, offset::RX_HEAD, 4), 0, "not READY");
    for step in [b'R', b'C'] {
        assert!(push(&mut window, &ram, step).is_continue());
    }
    assert!(window.write(offset::DRIVER_STATUS, 1, 4).is_continue());
    assert_eq!(read(&mut window, offset::RX_HEAD, 4), 3);
    let input: Vec<_> = (0..3).map(|i| ram.load_u8(abi::RX_BUFFER + i)).collect();
    assert_eq!(input, b"in\x04");
    assert!(window.write(offset::RX_TAIL, 4, 3).is_continue());
    assert_eq!(
        read(&mut window, offset::RX_HEAD, 4),
        3,
        "after the end of the input there is nothing to wait for"
    );
}

#[test]
fn a_violation_ends_the_run() {
    let (mut window, ram, _) = window();
    let stop = push(&mut window, &ram, b'C').break_value();
    assert!(matches!(stop, Some(Stop::ProtocolError(Violation::Command { byte: b'C', .. }))));
}
