//! A memory for the unit tests: one flat array that records the accesses.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::device::Host;
use crate::{Memory, abi};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

/// The RAM, window and doorbell page of the SO2 map as one array.
pub(crate) struct Flat {
    bytes: RefCell<Vec<u8>>,
    log: RefCell<Vec<(u64, bool)>>,
}

impl Flat {
    pub(crate) fn new() -> Self {
        let size = (abi::DOORBELL + abi::DOORBELL_SIZE) as usize;
        Self { bytes: RefCell::new(vec![0; size]), log: RefCell::default() }
    }

    /// Returns the addresses of all recorded stores, in order.
    pub(crate) fn stores(&self) -> Vec<u64> {
        self.log.borrow().iter().filter(|(_, store)| *store).map(|(gpa, _)| *gpa).collect()
    }

    /// Returns the addresses of all recorded accesses, in order.
    pub(crate) fn accesses(&self) -> Vec<u64> {
        self.log.borrow().iter().map(|(gpa, _)| *gpa).collect()
    }

    /// Deletes the record.
    pub(crate) fn forget(&self) {
        self.log.borrow_mut().clear();
    }

    fn note(&self, gpa: u64, store: bool) {
        self.log.borrow_mut().push((gpa, store));
    }
}

impl Memory for Flat {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.note(gpa, false);
        self.bytes.borrow()[gpa as usize]
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        self.note(gpa, true);
        self.bytes.borrow_mut()[gpa as usize] = value;
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        assert_eq!(gpa % 4, 0);
        self.note(gpa, false);
        u32::from_le_bytes(core::array::from_fn(|i| self.bytes.borrow()[gpa as usize + i]))
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        assert_eq!(gpa % 4, 0);
        self.note(gpa, true);
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.bytes.borrow_mut()[gpa as usize + i] = byte;
        }
    }
}

/// A host with the bytes that the driver sent and the bytes that it will receive.
pub(crate) struct Queues<'a> {
    pub(crate) input: &'a mut VecDeque<u8>,
    pub(crate) message: &'a mut Vec<u8>,
}

impl Host for Queues<'_> {
    fn transmit(&mut self, byte: u8) {
        self.message.push(byte);
    }
    fn receive(&mut self) -> Option<u8> {
        self.input.pop_front()
    }
}
