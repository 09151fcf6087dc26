//! The rings: each byte arrives once, in order, and is not read before it is written.

use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;
use model::{Shared, check};
use simvirtio::Memory;
use simvirtio::abi::{self, gpa};
use simvirtio::ring::{Consumer, Producer, PushError, Ring};

/// The bytes that the driver sends.
const SENT: [u8; 3] = [11, 12, 13];

/// Pushes all bytes of [`SENT`], one by one.
fn push_all(ring: Ring, memory: &Shared) {
    push(ring, memory, &SENT);
}

/// Pushes `bytes` one by one. Waits while the ring is full.
fn push(ring: Ring, memory: &Shared, bytes: &[u8]) {
    let mut producer = Producer::new(ring);
    for &byte in bytes {
        while let Err(error) = producer.push(memory, byte) {
            assert_eq!(error, PushError::Full);
            thread::yield_now();
        }
    }
}

/// Takes as many bytes as [`SENT`] has, one by one.
fn take_all(ring: Ring, memory: &Shared) {
    let mut consumer = Consumer::new(ring);
    for expected in SENT {
        let byte = loop {
            match consumer.peek(memory).unwrap() {
                Some(byte) => break byte,
                None => thread::yield_now(),
            }
        };
        consumer.release(memory);
        assert_eq!(byte, expected);
    }
}

/// Takes as many bytes as [`SENT`] has, in batches as the device does.
fn take_batches(ring: Ring, memory: &Shared) {
    let mut consumer = Consumer::new(ring);
    let mut taken = Vec::new();
    while taken.len() < SENT.len() {
        let mut batch = consumer.peek_batch(memory, 8).unwrap();
        if batch.is_empty() {
            thread::yield_now();
            continue;
        }
        while let Some(byte) = batch.next(memory) {
            taken.push(byte);
        }
        consumer.release_batch(memory, &batch);
    }
    assert_eq!(taken, SENT);
}

/// Pushes all bytes of [`SENT`], in batches as the device does.
fn push_batches(ring: Ring, memory: &Shared) {
    let mut producer = Producer::new(ring);
    let mut left = SENT.as_slice();
    while let Some(mut byte) = left.first() {
        let mut space = producer.space(memory).unwrap();
        if space.is_full() {
            thread::yield_now();
            continue;
        }
        while !space.is_full() {
            space.put(memory, *byte);
            left = &left[1..];
            match left.first() {
                Some(next) => byte = next,
                None => break,
            }
        }
        producer.publish(memory, &space);
    }
}

/// Runs a producer and a consumer on two threads.
fn run(memory: Shared, ring: Ring, producer: fn(Ring, &Shared), consumer: fn(Ring, &Shared)) {
    let memory = Arc::new(memory);
    let other = memory.clone();
    let thread = thread::spawn(move || producer(ring, &other));
    consumer(ring, &memory);
    thread.join().unwrap();
}

#[test]
fn bytes_arrive_once_and_in_order() {
    // A ring of two slots is full after each byte; a ring of three wraps.
    for len in [2, 3] {
        check(None, move || run(Shared::new(), Ring::tx(len), push_all, take_all));
    }
}

#[test]
fn batches_arrive_once_and_in_order() {
    for len in [2, 3, 4] {
        check(None, move || run(Shared::new(), Ring::tx(len), push_all, take_batches));
        check(None, move || run(Shared::new(), Ring::rx(len), push_batches, take_all));
    }
}

// The tests below are wrong on purpose: they show that loom would find the mistake.

#[test]
#[should_panic(expected = "left == right")]
fn a_memory_without_order_is_found() {
    let memory = || Shared::with_orders(Ordering::Relaxed, Ordering::Relaxed);
    check(None, move || run(memory(), Ring::tx(3), push_all, take_all));
}

#[test]
#[should_panic(expected = "left == right")]
fn a_head_that_is_published_before_its_byte_is_found() {
    fn push(_: Ring, memory: &Shared) {
        for (index, byte) in (0..).zip(&SENT[..2]) {
            memory.store_u32(gpa::TX_HEAD, index + 1);
            memory.store_u8(abi::TX_BUFFER + u64::from(index), *byte);
        }
    }
    fn take(ring: Ring, memory: &Shared) {
        let consumer = Consumer::new(ring);
        if let Some(byte) = consumer.peek(memory).unwrap() {
            assert_eq!(byte, SENT[0]);
        }
    }
    check(None, move || run(Shared::new(), Ring::tx(4), push, take));
}

#[test]
#[should_panic(expected = "left == right")]
fn a_slot_that_is_freed_before_its_byte_is_read_is_found() {
    // One slot always stays free, so it takes a batch to make the producer write to a slot that is still read.
    fn take(_: Ring, memory: &Shared) {
        while memory.load_u32(gpa::TX_HEAD) != 2 {
            thread::yield_now();
        }
        memory.store_u32(gpa::TX_TAIL, 2);
        assert_eq!(memory.load_u8(abi::TX_BUFFER), SENT[0]);
        assert_eq!(memory.load_u8(abi::TX_BUFFER + 1), SENT[1]);
    }
    check(None, move || {
        run(Shared::new(), Ring::tx(3), |ring, memory| push(ring, memory, &[11, 12, 13, 14]), take)
    });
}
