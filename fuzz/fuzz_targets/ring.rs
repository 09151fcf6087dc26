//! Fuzzes the device with a driver that writes any value anywhere in the shared memory, as over the polling transport.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simvirtio::abi::Layout;
use simvirtio::device::{Device, Host, State};
use simvirtio::{Memory, abi};
use std::cell::RefCell;

/// The window and the RAM below it. A store of the driver may precede each load of the device.
struct Shared<'a> {
    bytes: RefCell<Vec<u8>>,
    stores: RefCell<&'a [u8]>,
}

impl Shared<'_> {
    /// Executes the next store of the input: 3 bytes, of place, value and an unused byte.
    fn driver_stores(&self) {
        let mut stores = self.stores.borrow_mut();
        let Some((store, rest)) = stores.split_first_chunk::<3>() else { return };
        *stores = rest;
        let place = match store[0] >> 6 {
            0 => abi::WINDOW + u64::from(store[0] & 0x1f),
            1 => abi::DEVICE_TABLE + u64::from(store[0] & 0x3f),
            2 => abi::TX_BUFFER + u64::from(store[0] & 7),
            _ => return,
        };
        self.bytes.borrow_mut()[place as usize] = store[1];
    }
}

impl Memory for Shared<'_> {
    fn load_u8(&self, gpa: u64) -> u8 {
        self.driver_stores();
        self.bytes.borrow()[gpa as usize]
    }
    fn store_u8(&self, gpa: u64, value: u8) {
        self.bytes.borrow_mut()[gpa as usize] = value;
    }
    fn load_u32(&self, gpa: u64) -> u32 {
        self.driver_stores();
        let bytes = self.bytes.borrow();
        u32::from_le_bytes(std::array::from_fn(|i| bytes[gpa as usize + i]))
    }
    fn store_u32(&self, gpa: u64, value: u32) {
        self.bytes.borrow_mut()[gpa as usize..gpa as usize + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[derive(Default)]
struct Counts {
    sent: u64,
    asked: u64,
}

impl Host for Counts {
    fn transmit(&mut self, _: u8) {
        self.sent += 1;
    }
    fn receive(&mut self) -> Option<u8> {
        self.asked += 1;
        (self.asked % 3 != 0).then_some(b'x')
    }
}

fuzz_target!(|stores: &[u8]| {
    let shared = Shared {
        bytes: RefCell::new(vec![0; (abi::WINDOW + abi::WINDOW_SIZE) as usize]),
        stores: RefCell::new(&[]),
    };
    let mut device = Device::power_on(Layout::Table, 8, &shared).expect("8 is a valid queue length");
    let shared = Shared { stores: RefCell::new(stores), ..shared };
    let mut host = Counts::default();
    while shared.stores.borrow().len() >= 3 {
        let broken = device.advance(&shared, &mut host).is_err();
        let _ = device.is_starved(&shared);
        device.repair(&shared);
        assert!(!broken || device.state() == State::Broken);
        assert_eq!(host.sent, device.history().received);
    }
});
