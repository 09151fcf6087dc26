//! The memory that SIMVIRTIO shares with its driver, with a driver that stores anything anywhere while the device works.

use crate::Script;
use simvirtio::{Memory, abi};
use std::cell::{Cell, RefCell};

/// The RAM with the device table and the two buffers.
const RAM: u64 = 0x1_0000;
const RAM_SIZE: usize = (abi::HEAP - RAM) as usize;
const TABLE_END: u64 = abi::DEVICE_TABLE + abi::TABLE_ADDRESSES + 8 * abi::TABLE_LEN as u64;

/// Shared memory. Before each access of the device, the driver takes its next step from the script. A load or a store of
/// the device outside the fields that it may use panics.
pub struct Race<'a> {
    script: RefCell<Script<'a>>,
    ram: RefCell<[u8; RAM_SIZE]>,
    window: RefCell<[u8; abi::WINDOW_SIZE as usize]>,
    queue_len: u16,
    /// The driver's own index of the TX queue.
    head: Cell<u32>,
    /// True if the last TX head that the device saw is not an index of the queue.
    is_wild: Cell<bool>,
    accesses: Cell<u64>,
}

impl<'a> Race<'a> {
    /// Creates memory that is all zero, for queues of this length. The driver does nothing yet.
    pub fn new(queue_len: u16) -> Self {
        Self {
            script: RefCell::new(Script::new(&[])),
            ram: RefCell::new([0; RAM_SIZE]),
            window: RefCell::new([0; abi::WINDOW_SIZE as usize]),
            queue_len,
            head: Cell::new(0),
            is_wild: Cell::new(false),
            accesses: Cell::new(0),
        }
    }

    /// Lets the driver begin.
    pub fn begin(&self, script: Script<'a>) {
        self.script.replace(script);
    }

    /// True if the driver has ended.
    pub fn is_over(&self) -> bool {
        self.script.borrow().is_empty()
    }

    /// Returns the number of accesses of the device since the last call.
    pub fn take_accesses(&self) -> u64 {
        self.accesses.take()
    }

    /// Counts an access of the device, and lets the driver take a step before it.
    fn step(&self) {
        self.accesses.set(self.accesses.get() + 1);
        let script = &mut *self.script.borrow_mut();
        match script.below(16) {
            9 => self.push(script.pick(b"RCx\0")),
            10 => self.put(abi::gpa::DRIVER_STATUS, &[script.pick(&[0, 2, 4, 1])]),
            11 => {
                let head = self.get(abi::gpa::RX_HEAD);
                self.put(abi::gpa::RX_TAIL, &head.to_le_bytes());
            }
            12 => self.put(abi::WINDOW + script.below(abi::WINDOW_SIZE), &[script.any()]),
            13 => {
                let area = script.pick(&[abi::DEVICE_TABLE, abi::TX_BUFFER, abi::RX_BUFFER, abi::WINDOW]);
                self.put(area + script.below(0x60), &[script.any()]);
            }
            14 => {
                use abi::gpa::{RX_HEAD, RX_TAIL, TX_HEAD, TX_TAIL};
                let index = script.below(u64::from(self.queue_len) + 2) as u32;
                self.put(script.pick(&[TX_HEAD, TX_TAIL, RX_HEAD, RX_TAIL]), &index.to_le_bytes());
            }
            15 => {
                for place in abi::WINDOW..abi::WINDOW + abi::offset::QUEUES_END {
                    self.put(place, &[script.any()]);
                }
            }
            _ => {}
        }
    }

    /// Pushes a byte on TX, as a driver should.
    fn push(&self, byte: u8) {
        let head = self.head.get();
        self.put(abi::TX_BUFFER + u64::from(head), &[byte]);
        self.head.set((head + 1) % u32::from(self.queue_len));
        self.put(abi::gpa::TX_HEAD, &self.head.get().to_le_bytes());
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        for (gpa, byte) in (gpa..).zip(bytes) {
            match gpa.checked_sub(abi::WINDOW) {
                Some(offset) => self.window.borrow_mut()[offset as usize] = *byte,
                None => self.ram.borrow_mut()[(gpa - RAM) as usize] = *byte,
            }
        }
    }

    fn byte(&self, gpa: u64) -> u8 {
        match gpa.checked_sub(abi::WINDOW) {
            Some(offset) => self.window.borrow()[offset as usize],
            None => self.ram.borrow()[(gpa - RAM) as usize],
        }
    }

    fn get(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| self.byte(gpa + byte as u64)))
    }

    /// Panics if the device may not load from `gpa`.
    fn check_load(&self, gpa: u64) {
        let tx = abi::TX_BUFFER..abi::TX_BUFFER + u64::from(self.queue_len);
        let fields = abi::WINDOW..abi::WINDOW + abi::offset::QUEUES_END;
        let table = abi::DEVICE_TABLE..TABLE_END;
        assert!([tx, fields, table].iter().any(|area| area.contains(&gpa)), "the device loads from {gpa:#x}");
        let is_data = (abi::TX_BUFFER..abi::RX_BUFFER).contains(&gpa);
        assert!(!is_data || !self.is_wild.get(), "the device uses an index that it has not checked");
    }

    /// Panics if the device may not store to `gpa`: to a field of the driver, for example.
    fn check_store(&self, gpa: u64) {
        let rx = abi::RX_BUFFER..abi::RX_BUFFER + u64::from(self.queue_len);
        let constants = abi::WINDOW..abi::gpa::DRIVER_STATUS;
        let indices = abi::gpa::TX_TAIL..abi::gpa::RX_TAIL;
        let table = abi::DEVICE_TABLE..TABLE_END;
        let areas = [rx, constants, indices, table];
        assert!(areas.iter().any(|area| area.contains(&gpa)), "the device stores to {gpa:#x}");
    }
}

impl Memory for Race<'_> {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.check_load(gpa);
        self.step();
        self.byte(gpa)
    }

    fn store_u8(&self, gpa: u64, value: u8) {
        self.check_store(gpa);
        self.step();
        self.put(gpa, &[value]);
    }

    fn load_u32(&self, gpa: u64) -> u32 {
        self.check_load(gpa);
        self.step();
        let value = self.get(gpa);
        if gpa == abi::gpa::TX_HEAD {
            self.is_wild.set(value >= self.queue_len.into());
        }
        value
    }

    fn store_u32(&self, gpa: u64, value: u32) {
        self.check_store(gpa);
        let is_index = gpa != abi::gpa::MAGIC;
        assert!(!is_index || value < self.queue_len.into(), "the device publishes the index {value:#x}");
        self.step();
        self.put(gpa, &value.to_le_bytes());
    }
}
