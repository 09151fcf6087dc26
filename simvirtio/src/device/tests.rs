//! Tests of the device: each step of the protocol, in any order.
#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::ring::{Consumer, End, Producer, PushError};
use crate::testing::{Flat, Queues};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

mod racing;

/// A device, its memory, its data in both directions, and the producer of a driver.
struct Bench {
    memory: Flat,
    device: Device,
    tx: Producer,
    message: Vec<u8>,
    input: VecDeque<u8>,
}

impl Bench {
    fn new() -> Self {
        let memory = Flat::new();
        let device = Device::power_on(Layout::Table, 8, &memory).unwrap();
        let tx = Producer::attach(Ring::tx(8), &memory).unwrap();
        Self { memory, device, tx, message: Vec::new(), input: VecDeque::new() }
    }

    fn advance(&mut self) -> Result<bool, Violation> {
        self.device.advance(&self.memory, &mut Queues { input: &mut self.input, message: &mut self.message })
    }

    fn push(&mut self, byte: u8) -> Result<bool, Violation> {
        self.tx.push(&self.memory, byte).unwrap();
        self.advance()
    }

    fn set_driver(&mut self, status: u8) -> Result<bool, Violation> {
        self.memory.store_u8(gpa::DRIVER_STATUS, status);
        self.advance()
    }

    fn shown(&self) -> u8 {
        self.memory.load_u8(gpa::DEVICE_STATUS)
    }

    fn table(&self) -> (u8, u64) {
        let address = core::array::from_fn(|i| self.memory.load_u8(abi::DEVICE_TABLE + 8 + i as u64));
        (self.memory.load_u8(abi::DEVICE_TABLE), u64::from_le_bytes(address))
    }

    fn ready() -> Self {
        let mut bench = Self::new();
        bench.push(b'R').unwrap();
        bench.push(b'C').unwrap();
        bench.set_driver(abi::driver_status::DRIVER_OK).unwrap();
        assert_eq!(bench.device.state(), State::Ready);
        bench
    }
}

#[test]
fn power_on_publishes_the_config_table_of_the_assignment() {
    let bench = Bench::new();
    let table: Vec<u8> = (gpa::MAGIC..=gpa::Q1_CTL).map(|gpa| bench.memory.load_u8(gpa)).collect();
    let (magic, max_queue_len, statuses_and_controls) = (b"virt", [8, 0], [0; 5]);
    assert_eq!(table, [&magic[..], &max_queue_len, &statuses_and_controls].concat());
}

#[test]
fn the_handshake_of_the_assignment_passes_step_by_step() {
    let mut bench = Bench::new();
    assert_eq!(bench.push(b'R'), Ok(true));
    assert_eq!((bench.device.state(), bench.shown()), (State::Reset, 0));
    assert_eq!(bench.set_driver(abi::driver_status::ACK), Ok(false));
    assert_eq!(bench.table(), (0, 0));
    assert_eq!(bench.push(b'C'), Ok(true));
    assert_eq!((bench.device.state(), bench.shown()), (State::Config, 2));
    assert_eq!(bench.table(), (1, abi::WINDOW));
    assert_eq!(bench.set_driver(abi::driver_status::DRIVER), Ok(false));
    assert_eq!(bench.set_driver(abi::driver_status::DRIVER_OK), Ok(true));
    assert_eq!((bench.device.state(), bench.shown()), (State::Ready, 4));
    for byte in *b"Ana are mere" {
        bench.push(byte).unwrap();
    }
    assert_eq!(bench.message, b"Ana are mere");
    let history = bench.device.history();
    assert_eq!((history.resets, history.configs, history.readies, history.received), (1, 1, 1, 12));
}

#[test]
fn in_ready_every_byte_is_data() {
    let mut bench = Bench::ready();
    for byte in *b"RCR\0\xff" {
        bench.push(byte).unwrap();
    }
    assert_eq!(bench.message, b"RCR\0\xff");
}

#[test]
fn data_pushed_after_driver_ok_without_waiting_is_accepted() {
    let mut bench = Bench::new();
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    bench.memory.store_u8(gpa::DRIVER_STATUS, abi::driver_status::DRIVER_OK);
    bench.tx.push(&bench.memory, b'R').unwrap();
    assert_eq!(bench.advance(), Ok(true));
    assert_eq!(bench.message, b"R");
}

#[test]
fn the_effect_of_a_byte_is_published_before_the_new_tail() {
    let mut bench = Bench::new();
    bench.push(b'R').unwrap();
    bench.memory.forget();
    bench.push(b'C').unwrap();
    let stores = bench.memory.stores();
    let at = |gpa| stores.iter().position(|&store| store == gpa).unwrap();
    let (entry, count) = (at(abi::DEVICE_TABLE + 8), at(abi::DEVICE_TABLE));
    let (status, tail) = (at(gpa::DEVICE_STATUS), at(gpa::TX_TAIL));
    assert!(entry < count && count < status && status < tail, "{stores:x?}");
}

#[test]
fn the_head_is_loaded_before_driver_status() {
    let mut bench = Bench::new();
    bench.memory.forget();
    bench.advance().unwrap();
    let accesses = bench.memory.accesses();
    let at = |field| accesses.iter().position(|&gpa| gpa == field).unwrap();
    assert!(at(gpa::TX_HEAD) < at(gpa::DRIVER_STATUS));
}

#[test]
fn a_second_config_adds_no_second_entry() {
    let mut bench = Bench::new();
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    bench.push(b'C').unwrap();
    assert_eq!((bench.device.state(), bench.table()), (State::Config, (1, abi::WINDOW)));
}

#[test]
fn a_reset_from_ready_allows_a_new_handshake() {
    let mut bench = Bench::ready();
    bench.push(b'x').unwrap();
    assert_eq!(bench.set_driver(abi::driver_status::ACK), Ok(true));
    assert_eq!((bench.device.state(), bench.shown()), (State::Initial, 0));
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    bench.set_driver(abi::driver_status::DRIVER_OK).unwrap();
    bench.push(b'y').unwrap();
    assert_eq!(bench.message, b"xy");
    assert_eq!(bench.table(), (1, abi::WINDOW), "the device is in the table twice");
}

#[test]
fn a_reset_from_ready_first_takes_the_bytes_in_the_queue() {
    let mut bench = Bench::ready();
    bench.tx.push(&bench.memory, b'x').unwrap();
    bench.set_driver(abi::driver_status::ACK).unwrap();
    assert_eq!((bench.device.state(), bench.message.as_slice()), (State::Initial, b"x".as_slice()));
}

#[test]
fn a_reset_during_the_handshake_goes_back_to_reset() {
    let mut bench = Bench::new();
    bench.push(b'R').unwrap();
    bench.push(b'R').unwrap();
    assert_eq!(bench.device.state(), State::Reset);
    bench.push(b'C').unwrap();
    bench.push(b'R').unwrap();
    assert_eq!((bench.device.state(), bench.shown()), (State::Reset, 0));
}

#[test]
fn a_reset_never_rewinds_the_ring() {
    let mut bench = Bench::ready();
    bench.set_driver(abi::driver_status::ACK).unwrap();
    bench.push(b'R').unwrap();
    assert_eq!(bench.memory.load_u32(gpa::TX_TAIL), 3);
}

#[test]
fn every_wrong_byte_in_every_state_breaks_the_device() {
    for byte in 0..=255 {
        for (prefix, state, allowed) in [
            (&b""[..], State::Initial, &b"R"[..]),
            (b"R", State::Reset, b"RC"),
            (b"RC", State::Config, b"RC"),
        ] {
            let mut bench = Bench::new();
            for &command in prefix {
                bench.push(command).unwrap();
            }
            assert_eq!(bench.device.state(), state);
            let answer = bench.push(byte);
            if allowed.contains(&byte) {
                assert_eq!(answer, Ok(true), "{state} {byte:#x}");
            } else {
                assert_eq!(answer, Err(Violation::Command { state, byte }));
                assert_eq!((bench.device.state(), bench.shown()), (State::Broken, 0x40));
            }
        }
    }
}

#[test]
fn config_without_ack_is_refused() {
    let mut bench = Bench::new();
    bench.push(b'R').unwrap();
    bench.set_driver(abi::driver_status::DRIVER_OK).unwrap();
    assert_eq!(bench.push(b'C'), Err(Violation::NotAcknowledged { driver_status: 4 }));
    assert_eq!(bench.table().0, 0);
}

#[test]
fn undefined_driver_statuses_are_refused() {
    for value in 0..=255 {
        let answer = Bench::new().set_driver(value);
        if [0, 2, 4].contains(&value) {
            assert_eq!(answer, Ok(false));
        } else {
            assert_eq!(answer, Err(Violation::DriverStatus { state: State::Initial, value }));
        }
    }
}

#[test]
fn a_selector_above_one_is_refused() {
    for value in 0..=255 {
        let mut bench = Bench::new();
        bench.memory.store_u8(gpa::QUEUE_SELECTOR, value);
        let expected = if value <= 1 { Ok(false) } else { Err(Violation::Selector { value }) };
        assert_eq!(bench.advance(), expected);
    }
}

#[test]
fn a_tx_head_outside_the_queue_breaks_the_device() {
    let mut bench = Bench::ready();
    bench.memory.store_u32(gpa::TX_HEAD, 8);
    let wild = WildIndex { end: End::Head, index: 8, len: 8 };
    assert_eq!(bench.advance(), Err(Violation::WildIndex { queue: 0, wild }));
    assert_eq!(bench.advance(), Ok(false), "a broken device does nothing");
}

#[test]
fn an_rx_tail_outside_the_queue_breaks_the_device() {
    let mut bench = Bench::ready();
    bench.memory.store_u32(gpa::RX_TAIL, u32::MAX);
    let wild = WildIndex { end: End::Tail, index: u32::MAX, len: 8 };
    assert_eq!(bench.advance(), Err(Violation::WildIndex { queue: 1, wild }));
}

#[test]
fn a_full_or_overwritten_table_is_refused() {
    for count in [10, 11, 255] {
        let mut bench = Bench::new();
        bench.memory.store_u8(abi::DEVICE_TABLE, count);
        bench.push(b'R').unwrap();
        assert_eq!(bench.push(b'C'), Err(Violation::Table { count: count.into() }));
    }
    let mut bench = Bench::new();
    bench.memory.store_u8(abi::DEVICE_TABLE + 1, 1);
    bench.push(b'R').unwrap();
    assert_eq!(bench.push(b'C'), Err(Violation::Table { count: 256 }));
}

#[test]
fn the_device_adds_itself_after_other_devices() {
    let mut bench = Bench::new();
    bench.memory.store_u8(abi::DEVICE_TABLE, 9);
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    assert_eq!(bench.table().0, 10);
    let last = core::array::from_fn(|i| bench.memory.load_u8(abi::DEVICE_TABLE + 8 + 72 + i as u64));
    assert_eq!(u64::from_le_bytes(last), abi::WINDOW);
}

#[test]
fn overwritten_read_only_fields_are_restored_and_counted() {
    let mut bench = Bench::ready();
    for field in [gpa::MAGIC, gpa::MAX_QUEUE_LEN, gpa::DEVICE_STATUS] {
        bench.memory.store_u8(field, 0xee);
    }
    bench.memory.store_u32(gpa::TX_TAIL, 0);
    bench.memory.store_u32(gpa::RX_HEAD, 9);
    bench.device.repair(&bench.memory);
    assert_eq!(bench.device.history().ignored_stores, 5);
    assert_eq!(bench.memory.load_u32(gpa::MAGIC), abi::MAGIC);
    assert_eq!(bench.memory.load_u8(gpa::MAX_QUEUE_LEN), 8);
    assert_eq!(bench.shown(), abi::device_status::READY);
    assert_eq!(bench.memory.load_u32(gpa::TX_TAIL), 2);
    assert_eq!(bench.memory.load_u32(gpa::RX_HEAD), 0);
    bench.device.repair(&bench.memory);
    assert_eq!(bench.device.history().ignored_stores, 5, "nothing was left to repair");
}

/// Takes all bytes from the RX queue, as a driver would.
fn take_input(bench: &Bench, rx: &mut Consumer) -> Vec<u8> {
    let mut got = Vec::new();
    while let Some(byte) = rx.peek(&bench.memory).unwrap() {
        got.push(byte);
        rx.release(&bench.memory);
    }
    got
}

#[test]
fn input_is_delivered_only_in_ready_and_only_as_much_as_fits() {
    let mut bench = Bench::new();
    bench.input.extend(b"0123456789");
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    let mut rx = Consumer::new(Ring::rx(8));
    assert_eq!(take_input(&bench, &mut rx), b"");
    assert_eq!(bench.device.is_starved(&bench.memory), Ok(false), "not READY");
    bench.set_driver(abi::driver_status::DRIVER_OK).unwrap();
    assert_eq!(bench.device.is_starved(&bench.memory), Ok(false));
    assert_eq!(take_input(&bench, &mut rx), b"0123456");
    assert_eq!(bench.device.is_starved(&bench.memory), Ok(true));
    assert_eq!(bench.advance(), Ok(true));
    assert_eq!(take_input(&bench, &mut rx), b"789");
    assert_eq!((bench.advance(), bench.device.history().delivered), (Ok(false), 10));
}

#[test]
fn repair_restores_the_rx_head_from_the_device() {
    let mut bench = Bench::ready();
    bench.input.extend(b"abc");
    bench.advance().unwrap();
    bench.memory.store_u32(gpa::RX_HEAD, 7);
    bench.device.repair(&bench.memory);
    assert_eq!(take_input(&bench, &mut Consumer::new(Ring::rx(8))), b"abc");
}

#[test]
fn queue_lengths_outside_the_protocol_are_refused() {
    for (layout, longest) in [(Layout::Table, 4096), (Layout::Struct, 255)] {
        for len in [0, 1, longest + 1, u16::MAX] {
            let refused = Device::power_on(layout, len, &Flat::new()).err();
            assert_eq!(refused, Some(BadQueueLen { len, longest }));
        }
        for len in [2, layout.usual_queue(), longest] {
            assert!(Device::power_on(layout, len, &Flat::new()).is_ok());
        }
    }
}

/// The fields of the assignment's `device_t`, each in one byte behind the magic.
#[test]
fn the_struct_layout_has_its_fields_in_another_order() {
    let bench = Bench::new();
    let mut bench = Bench { device: Device::power_on(Layout::Struct, 8, &bench.memory).unwrap(), ..bench };
    let fields = |bench: &Bench| [4, 5, 6, 7].map(|at| bench.memory.load_u8(abi::WINDOW + at));
    assert_eq!(fields(&bench), [0, 0, 8, 0]);
    bench.push(b'R').unwrap();
    bench.push(b'C').unwrap();
    assert_eq!(fields(&bench), [abi::device_status::CONFIG, 0, 8, 0]);
    bench.memory.store_u8(abi::WINDOW + 5, abi::driver_status::DRIVER_OK);
    bench.advance().unwrap();
    assert_eq!((bench.device.state(), fields(&bench)), (State::Ready, [4, 4, 8, 0]));
    assert_eq!(bench.device.history().ignored_stores, 0);
    // The driver status of the other layout.
    bench.memory.store_u8(abi::WINDOW + 7, 4);
    bench.memory.store_u8(abi::WINDOW + 6, 9);
    bench.device.repair(&bench.memory);
    assert_eq!(fields(&bench), [4, 4, 8, 0]);
    assert_eq!((bench.device.history().ignored_stores, bench.device.history().misplaced_statuses), (2, 1));
}

#[test]
fn loads_of_the_other_device_status_are_counted_until_the_device_is_ready() {
    for (layout, at) in [(Layout::Table, 4), (Layout::Struct, 6)] {
        let bench = Bench::new();
        let mut bench = Bench { device: Device::power_on(layout, 8, &bench.memory).unwrap(), ..bench };
        for (offset, size) in [(at, 1), (at, 2), (at + 1, 1), (at, 1)] {
            bench.device.loaded(offset, size);
        }
        assert_eq!(bench.device.history().misplaced_waits, 2, "{layout:?}");
        bench.push(b'R').unwrap();
        bench.push(b'C').unwrap();
        bench.memory.store_u8(abi::WINDOW + layout.driver_status(), abi::driver_status::DRIVER_OK);
        bench.advance().unwrap();
        bench.device.loaded(at, 1);
        assert_eq!(bench.device.history().misplaced_waits, 2, "{layout:?}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Push(u8),
    Driver(u8),
    Head(u32),
    Selector(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => prop_oneof![Just(b'R'), Just(b'C'), any::<u8>()].prop_map(Act::Push),
        6 => prop_oneof![Just(0u8), Just(2), Just(4), any::<u8>()].prop_map(Act::Driver),
        1 => (0u32..10).prop_map(Act::Head),
        1 => (0u8..3).prop_map(Act::Selector),
    ]
}

proptest! {
    /// For any acts in any order, seen one by one or in batches: the status field shows the state, the table has at
    /// most one entry, the tail is below the length, and a device has received data only if it was READY.
    #[test]
    fn any_order_of_acts_keeps_the_invariants(acts in prop::collection::vec((act(), any::<bool>()), 0..60)) {
        let mut bench = Bench::new();
        for (act, seen_at_once) in acts {
            match act {
                Act::Push(byte) => match bench.tx.push(&bench.memory, byte) {
                    Ok(()) | Err(PushError::Full | PushError::Wild(_)) => {}
                },
                Act::Driver(status) => bench.memory.store_u8(gpa::DRIVER_STATUS, status),
                Act::Head(head) => bench.memory.store_u32(gpa::TX_HEAD, head),
                Act::Selector(value) => bench.memory.store_u8(gpa::QUEUE_SELECTOR, value),
            }
            if !seen_at_once {
                continue;
            }
            let before = bench.device.state();
            let answer = bench.advance();
            prop_assert_eq!(answer.is_err(), before != State::Broken && bench.device.state() == State::Broken);
            prop_assert_eq!(bench.shown(), bench.device.state().status());
            prop_assert!(bench.table().0 <= 1);
            prop_assert!(bench.memory.load_u32(gpa::TX_TAIL) < 8);
            let history = bench.device.history();
            prop_assert!(bench.message.is_empty() || history.readies > 0);
            prop_assert!(history.readies == 0 || history.configs > 0);
            prop_assert!(history.configs == 0 || history.resets > 0);
        }
    }
}
