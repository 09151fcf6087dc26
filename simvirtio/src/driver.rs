//! The driver's side of the handshake: steps 5 to 11 of the assignment, `docs/abi.md` section 4.5.
//!
//! The driver is generic over [`Memory`], so that a guest runs it with volatile accesses and a test runs it against the
//! device in one process. Each wait is a loop over a load. Over the exit transport the first load already returns the
//! result; over the polling transport the device's thread needs some time.

use crate::abi::gpa;
use crate::ring::{Consumer, Producer, PushError, Ring, WildIndex};
use crate::{Memory, abi, table};

/// The reason why the driver stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverError {
    /// The magic field does not hold [`abi::MAGIC`].
    NoDevice {
        /// The value of the field.
        magic: u32,
    },
    /// The device's queue length is not from [`abi::MIN_QUEUE_LEN`] to [`abi::MAX_QUEUE_LEN`].
    QueueLen(u16),
    /// The device status is CONFIG, but the device is not in the device table.
    NotInTable,
    /// The device status is BROKEN.
    Broken,
    /// The device published an index that is not below the queue's length.
    WildIndex(WildIndex),
}

impl From<WildIndex> for DriverError {
    fn from(wild: WildIndex) -> Self {
        Self::WildIndex(wild)
    }
}

/// A driver whose device is READY.
#[derive(Debug)]
pub struct Driver<M> {
    memory: M,
    tx: Producer,
    /// Set at the first call of `receive`.
    rx: Option<Consumer>,
    max_queue_len: u16,
}

impl<M: Memory> Driver<M> {
    /// Finds the device at its window and performs the handshake.
    ///
    /// # Errors
    /// There is no device, or it breaks the protocol.
    pub fn connect(memory: M) -> Result<Self, DriverError> {
        let magic = memory.load_u32(gpa::MAGIC);
        if magic != abi::MAGIC {
            return Err(DriverError::NoDevice { magic });
        }
        let max_queue_len =
            u16::from_le_bytes([memory.load_u8(gpa::MAX_QUEUE_LEN), memory.load_u8(gpa::MAX_QUEUE_LEN + 1)]);
        if !(abi::MIN_QUEUE_LEN..=abi::MAX_QUEUE_LEN).contains(&max_queue_len) {
            return Err(DriverError::QueueLen(max_queue_len));
        }
        let tx = Producer::attach(Ring::tx(max_queue_len), &memory)?;
        let mut driver = Self { memory, tx, rx: None, max_queue_len };
        driver.handshake()?;
        Ok(driver)
    }

    fn handshake(&mut self) -> Result<(), DriverError> {
        self.push(abi::command::RESET)?;
        while !self.tx.is_drained(&self.memory)? {
            core::hint::spin_loop();
        }
        self.wait_for(abi::device_status::RESET)?;
        self.set_status(abi::driver_status::ACK);

        self.push(abi::command::CONFIG)?;
        self.wait_for(abi::device_status::CONFIG)?;
        if !table::holds(&self.memory, abi::WINDOW) {
            return Err(DriverError::NotInTable);
        }
        self.set_status(abi::driver_status::DRIVER);

        self.set_status(abi::driver_status::DRIVER_OK);
        self.wait_for(abi::device_status::READY)
    }

    /// Sends `bytes`. Waits while the queue is full.
    ///
    /// # Errors
    /// The device published an index that is not below the queue's length.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), DriverError> {
        bytes.iter().try_for_each(|&byte| self.push(byte))
    }

    /// Sets [`READS`](abi::q1_ctl::READS): this driver reads its input. Time without input then does not count towards
    /// the timeout.
    pub fn read_input(&self) {
        self.memory.store_u8(gpa::Q1_CTL, abi::q1_ctl::READS);
    }

    /// Waits for the next byte of the input and returns it, or `None` at the end of the input.
    ///
    /// # Errors
    /// The device published an index that is not below the queue's length.
    pub fn receive(&mut self) -> Result<Option<u8>, DriverError> {
        let mut rx = match self.rx.take() {
            Some(rx) => rx,
            None => Consumer::attach(Ring::rx(self.max_queue_len), &self.memory)?,
        };
        let byte = loop {
            match rx.peek(&self.memory)? {
                Some(byte) => break byte,
                None => core::hint::spin_loop(),
            }
        };
        rx.release(&self.memory);
        self.rx = Some(rx);
        Ok((byte != abi::END_OF_INPUT).then_some(byte))
    }

    /// Resets a READY device and performs the handshake again.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn reconnect(&mut self) -> Result<(), DriverError> {
        while !self.tx.is_drained(&self.memory)? {
            core::hint::spin_loop();
        }
        self.set_status(abi::driver_status::ACK);
        self.wait_for(abi::device_status::RESET)?;
        self.handshake()
    }

    fn push(&mut self, byte: u8) -> Result<(), DriverError> {
        loop {
            match self.tx.push(&self.memory, byte) {
                Ok(()) => return Ok(()),
                Err(PushError::Wild(wild)) => return Err(wild.into()),
                Err(PushError::Full) => core::hint::spin_loop(),
            }
        }
    }

    fn wait_for(&self, status: u8) -> Result<(), DriverError> {
        loop {
            match self.memory.load_u8(gpa::DEVICE_STATUS) {
                shown if shown == status => return Ok(()),
                abi::device_status::BROKEN => return Err(DriverError::Broken),
                _ => core::hint::spin_loop(),
            }
        }
    }

    fn set_status(&self, status: u8) {
        self.memory.store_u8(gpa::DRIVER_STATUS, status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, State};
    use crate::testing::{Flat, Queues};
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::vec::Vec;

    /// A small exit transport: the device runs at each store of the driver.
    struct Trapping {
        flat: Flat,
        device: RefCell<Device>,
        message: RefCell<Vec<u8>>,
        input: RefCell<VecDeque<u8>>,
    }

    impl Trapping {
        fn new(queue_len: u16) -> Self {
            let flat = Flat::new();
            let device = RefCell::new(Device::power_on(abi::Layout::Table, queue_len, &flat).unwrap());
            Self { flat, device, message: RefCell::default(), input: RefCell::default() }
        }
        fn run_device(&self) {
            let mut device = self.device.borrow_mut();
            let (input, message) = (&mut *self.input.borrow_mut(), &mut *self.message.borrow_mut());
            device.advance(&self.flat, &mut Queues { input, message }).unwrap();
        }
    }

    impl Memory for Trapping {
        fn load_u8(&self, gpa: u64) -> u8 {
            self.flat.load_u8(gpa)
        }
        fn store_u8(&self, gpa: u64, value: u8) {
            self.flat.store_u8(gpa, value);
            self.run_device();
        }
        fn load_u32(&self, gpa: u64) -> u32 {
            self.flat.load_u32(gpa)
        }
        fn store_u32(&self, gpa: u64, value: u32) {
            self.flat.store_u32(gpa, value);
            self.run_device();
        }
    }

    #[test]
    fn driver_and_device_agree_at_every_queue_length() {
        for queue_len in [2, 3, 12, 13, 256, 4096] {
            let memory = Trapping::new(queue_len);
            let mut driver = Driver::connect(&memory).unwrap();
            driver.send(b"Ana are mere").unwrap();
            assert_eq!(*memory.message.borrow(), b"Ana are mere");
            assert_eq!(memory.device.borrow().state(), State::Ready);
        }
    }

    #[test]
    fn a_reset_device_takes_more_data() {
        let memory = Trapping::new(16);
        let mut driver = Driver::connect(&memory).unwrap();
        driver.send(b"Ana ").unwrap();
        driver.reconnect().unwrap();
        driver.send(b"are mere").unwrap();
        assert_eq!(*memory.message.borrow(), b"Ana are mere");
        assert_eq!(memory.device.borrow().history().readies, 2);
    }

    #[test]
    fn input_longer_than_the_queue_arrives_in_order() {
        for queue_len in [2, 3, 256] {
            let memory = Trapping::new(queue_len);
            let input: Vec<u8> =
                (0..=255).filter(|byte| *byte != abi::END_OF_INPUT).cycle().take(1000).collect();
            memory.input.borrow_mut().extend(&input);
            memory.input.borrow_mut().push_back(abi::END_OF_INPUT);
            let mut driver = Driver::connect(&memory).unwrap();
            driver.read_input();
            let mut got = Vec::new();
            while let Some(byte) = driver.receive().unwrap() {
                got.push(byte);
            }
            assert_eq!(got, input);
        }
    }

    #[test]
    fn a_window_without_the_magic_is_not_a_device() {
        assert_eq!(Driver::connect(Flat::new()).err(), Some(DriverError::NoDevice { magic: 0 }));
    }
}
