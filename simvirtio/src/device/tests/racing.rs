//! Tests of the device against a driver that acts between the device's loads.

use super::*;
use std::cell::{Cell, RefCell};

/// A very fast driver: pushes a byte each time the device has loaded TX head.
struct Racing<'a> {
    flat: &'a Flat,
    tx: RefCell<Producer>,
    pushes: Cell<u32>,
    then_status: u8,
}

impl Memory for Racing<'_> {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.flat.load_u8(gpa)
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        self.flat.store_u8(gpa, value);
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        let value = self.flat.load_u32(gpa);
        if gpa == gpa::TX_HEAD && self.pushes.get() > 0 {
            self.pushes.set(self.pushes.get() - 1);
            self.tx.borrow_mut().push(self.flat, b'x').unwrap();
            self.flat.store_u8(gpa::DRIVER_STATUS, self.then_status);
        }
        value
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        self.flat.store_u32(gpa, value);
    }
}

impl Bench {
    /// Advances the device against a driver that pushes `pushes` bytes between the device's loads.
    fn advance_racing(&mut self, pushes: u32, then_status: u8) -> Result<bool, Violation> {
        let tx = RefCell::new(Producer::attach(Ring::tx(8), &self.memory).unwrap());
        let racing = Racing { flat: &self.memory, tx, pushes: Cell::new(pushes), then_status };
        self.device.advance(&racing, &mut Queues { input: &mut self.input, message: &mut self.message })
    }
}

#[test]
fn a_byte_pushed_right_before_the_reset_is_data() {
    let mut bench = Bench::ready();
    assert_eq!(bench.advance_racing(1, abi::driver_status::ACK), Ok(true));
    assert_eq!((bench.device.state(), bench.message.as_slice()), (State::Initial, b"x".as_slice()));
}

#[test]
fn advance_returns_while_the_driver_keeps_pushing() {
    let mut bench = Bench::ready();
    bench.tx.push(&bench.memory, b'x').unwrap();
    assert_eq!(bench.advance_racing(u32::MAX, abi::driver_status::DRIVER_OK), Ok(true));
    assert!((8..=10).contains(&bench.message.len()), "{}", bench.message.len());
}
