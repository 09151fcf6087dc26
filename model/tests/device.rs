//! The device and its driver, each on its own thread: the handshake and an echo by polling, and the doorbell.

use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use model::{Events, Shared, check};
use simvirtio::Memory;
use simvirtio::abi::{Layout, command, device_status, driver_status, gpa};
use simvirtio::device::{Device, Host, State};
use simvirtio::ring::{Consumer, Producer, Ring};
use simvirtio::serve::{Sleeper, serve};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Sends the bytes of the driver back to it, and keeps a copy.
#[derive(Default)]
struct Echo {
    looped: VecDeque<u8>,
    message: Vec<u8>,
}

impl Host for Echo {
    fn transmit(&mut self, byte: u8) {
        self.looped.push_back(byte);
        self.message.push(byte);
    }
    fn receive(&mut self) -> Option<u8> {
        self.looped.pop_front()
    }
}

/// Waits until the device status is `status`.
fn wait_for(memory: &Shared, status: u8) {
    while memory.load_u8(gpa::DEVICE_STATUS) != status {
        thread::yield_now();
    }
}

/// Brings the device to READY on the calling thread, as the handshake does.
fn ready(device: &mut Device, memory: &Shared) -> Producer {
    let mut tx = Producer::new(Ring::tx(2));
    let mut echo = Echo::default();
    for byte in [command::RESET, command::CONFIG] {
        tx.push(memory, byte).unwrap();
        device.advance(memory, &mut echo).unwrap();
    }
    memory.store_u8(gpa::DRIVER_STATUS, driver_status::DRIVER_OK);
    device.advance(memory, &mut echo).unwrap();
    assert_eq!(device.state(), State::Ready);
    tx
}

#[test]
fn a_polling_device_and_its_driver_make_the_handshake() {
    check(Some(2), || {
        let memory = Arc::new(Shared::new());
        let mut device = Device::power_on(Layout::Table, 2, &*memory).unwrap();
        let shared = memory.clone();
        let driver = thread::spawn(move || {
            let mut tx = Producer::new(Ring::tx(2));
            tx.push(&*shared, command::RESET).unwrap();
            while !tx.is_drained(&*shared).unwrap() {
                thread::yield_now();
            }
            tx.push(&*shared, command::CONFIG).unwrap();
            wait_for(&shared, device_status::CONFIG);
            shared.store_u8(gpa::DRIVER_STATUS, driver_status::DRIVER_OK);
            wait_for(&shared, device_status::READY);
        });
        let mut echo = Echo::default();
        while device.state() != State::Ready {
            if !device.advance(&*memory, &mut echo).unwrap() {
                thread::yield_now();
            }
        }
        driver.join().unwrap();
        assert_eq!(device.history().configs, 1);
    });
}

#[test]
fn a_polling_device_sends_bytes_back_in_order() {
    check(Some(2), || {
        let memory = Arc::new(Shared::new());
        let mut device = Device::power_on(Layout::Table, 2, &*memory).unwrap();
        let mut tx = ready(&mut device, &memory);
        let shared = memory.clone();
        let driver = thread::spawn(move || {
            let mut rx = Consumer::new(Ring::rx(2));
            for byte in [21, 22] {
                tx.push(&*shared, byte).unwrap();
                let back = loop {
                    match rx.peek(&*shared).unwrap() {
                        Some(back) => break back,
                        None => thread::yield_now(),
                    }
                };
                rx.release(&*shared);
                assert_eq!(back, byte);
                while !tx.is_drained(&*shared).unwrap() {
                    thread::yield_now();
                }
            }
        });
        let mut echo = Echo::default();
        while device.history().delivered < 2 {
            if !device.advance(&*memory, &mut echo).unwrap() {
                thread::yield_now();
            }
        }
        driver.join().unwrap();
        assert_eq!(echo.message, [21, 22]);
    });
}

/// The state that the device's thread and the driver's thread share.
#[derive(Default)]
struct Bell {
    memory: Shared,
    events: Events,
    over: AtomicBool,
    /// The device has taken bytes. The driver waits for it instead of polling, so that a device that sleeps is a deadlock.
    progress: Notify,
}

/// The device of the model while it serves its doorbell. It takes the bytes of TX.
struct Served<'a> {
    bell: &'a Bell,
    tx: Consumer,
    taken: Vec<u8>,
}

impl Sleeper for Served<'_> {
    type Stop = ();
    fn is_over(&self) -> bool {
        self.bell.over.load(Ordering::Acquire)
    }
    fn drain(&mut self) {
        self.bell.events.bell.drain();
    }
    fn scan(&mut self) -> ControlFlow<(), bool> {
        let mut batch = self.tx.peek_batch(&self.bell.memory, 8).unwrap();
        if batch.is_empty() {
            return ControlFlow::Continue(false);
        }
        while let Some(byte) = batch.next(&self.bell.memory) {
            self.taken.push(byte);
        }
        self.tx.release_batch(&self.bell.memory, &batch);
        self.bell.progress.notify();
        ControlFlow::Continue(true)
    }
    fn sleep(&mut self) -> ControlFlow<()> {
        self.bell.events.wait();
        ControlFlow::Continue(())
    }
}

/// The bytes that the driver sends to a sleeping device.
const SENT: [u8; 2] = [31, 32];

/// Stores the doorbell.
fn ring(bell: &Bell) {
    bell.events.signal(&bell.events.bell);
}

/// A driver that rings after each byte, waits until the device has taken them, and then ends the loop as the machine does.
fn ring_after_each(bell: &Bell) {
    let mut tx = Producer::new(Ring::tx(4));
    for byte in SENT {
        tx.push(&bell.memory, byte).unwrap();
        ring(bell);
    }
    end(bell, &tx);
}

/// Ends the loop when the device has taken everything.
fn end(bell: &Bell, tx: &Producer) {
    while !tx.is_drained(&bell.memory).unwrap() {
        bell.progress.wait();
    }
    bell.over.store(true, Ordering::Release);
    bell.events.signal(&bell.events.end);
}

/// Runs `device` and `driver` on two threads.
fn run(preemptions: Option<usize>, device: fn(&mut Served<'_>), driver: fn(&Bell)) {
    check(preemptions, move || {
        // Leaked, because loom cannot drop its objects after a deadlock.
        let bell: &'static Bell = Box::leak(Box::default());
        let thread = thread::spawn(move || driver(bell));
        let mut served = Served { bell, tx: Consumer::new(Ring::tx(4)), taken: Vec::new() };
        device(&mut served);
        thread.join().unwrap();
        assert_eq!(served.taken, SENT);
    });
}

fn real(device: &mut Served<'_>) {
    assert!(serve(device).is_continue());
}

#[test]
fn no_ring_is_lost() {
    run(Some(3), real, ring_after_each);
}

#[test]
fn one_ring_for_a_batch_is_enough() {
    run(Some(3), real, |bell| {
        let mut tx = Producer::new(Ring::tx(4));
        SENT.into_iter().for_each(|byte| tx.push(&bell.memory, byte).unwrap());
        ring(bell);
        end(bell, &tx);
    });
}

// The tests below are wrong on purpose: they show that loom would find the mistake.

#[test]
#[should_panic(expected = "deadlock")]
fn a_scan_before_the_drain_is_found() {
    fn wrong(device: &mut Served<'_>) {
        while !device.is_over() {
            let ControlFlow::Continue(progress) = device.scan() else { return };
            device.drain();
            if !progress {
                let _ = device.sleep();
            }
        }
    }
    run(Some(3), wrong, ring_after_each);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_ring_before_the_byte_is_found() {
    run(Some(3), real, |bell| {
        let mut tx = Producer::new(Ring::tx(4));
        for byte in SENT {
            ring(bell);
            tx.push(&bell.memory, byte).unwrap();
        }
        end(bell, &tx);
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_end_that_the_drain_clears_is_found() {
    run(Some(3), real, |bell| {
        let mut tx = Producer::new(Ring::tx(4));
        SENT.into_iter().for_each(|byte| tx.push(&bell.memory, byte).unwrap());
        ring(bell);
        while !tx.is_drained(&bell.memory).unwrap() {
            bell.progress.wait();
        }
        bell.over.store(true, Ordering::Release);
        ring(bell);
    });
}
