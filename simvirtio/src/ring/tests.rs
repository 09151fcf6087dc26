//! Tests of the rings.
#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::testing::Flat;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

fn pair(len: u16) -> (Flat, Producer, Consumer) {
    let memory = Flat::new();
    let ring = Ring::tx(len);
    let producer = Producer::attach(ring, &memory).unwrap();
    (memory, producer, Consumer::new(ring))
}

#[test]
fn a_new_ring_is_empty_and_drained() {
    let (memory, producer, consumer) = pair(4);
    assert_eq!(consumer.peek(&memory), Ok(None));
    assert_eq!(producer.is_drained(&memory), Ok(true));
}

#[test]
fn one_slot_always_stays_free() {
    let (memory, mut producer, consumer) = pair(4);
    for byte in 0..3 {
        producer.push(&memory, byte).unwrap();
    }
    assert_eq!(producer.push(&memory, 3), Err(PushError::Full));
    assert_eq!(consumer.peek(&memory), Ok(Some(0)));
    assert_eq!(producer.is_drained(&memory), Ok(false));
}

#[test]
fn the_shortest_ring_wraps_at_each_byte() {
    let (memory, mut producer, mut consumer) = pair(abi::MIN_QUEUE_LEN);
    for byte in 0..=255 {
        producer.push(&memory, byte).unwrap();
        assert_eq!(producer.push(&memory, byte), Err(PushError::Full));
        assert_eq!(consumer.peek(&memory), Ok(Some(byte)));
        consumer.release(&memory);
    }
}

#[test]
fn the_longest_ring_stays_in_its_page() {
    let (memory, mut producer, mut consumer) = pair(abi::MAX_QUEUE_LEN);
    for round in 0..2 * u32::from(abi::MAX_QUEUE_LEN) {
        producer.push(&memory, round as u8).unwrap();
        assert_eq!(consumer.peek(&memory), Ok(Some(round as u8)));
        consumer.release(&memory);
    }
    assert_eq!(memory.load_u8(abi::RX_BUFFER), 0, "a byte went past the buffer");
}

#[test]
fn push_stores_the_byte_before_the_head() {
    let (memory, mut producer, _) = pair(4);
    producer.push(&memory, 7).unwrap();
    let stores = memory.stores();
    assert_eq!(stores, [abi::TX_BUFFER, gpa::TX_HEAD]);
}

#[test]
fn a_head_outside_the_ring_is_refused() {
    let (memory, _, consumer) = pair(4);
    for index in [4, 5, u32::MAX] {
        memory.store_u32(gpa::TX_HEAD, index);
        assert_eq!(consumer.peek(&memory), Err(WildIndex { end: End::Head, index, len: 4 }));
    }
}

#[test]
fn a_tail_outside_the_ring_is_refused() {
    let (memory, mut producer, _) = pair(4);
    memory.store_u32(gpa::TX_TAIL, 4);
    let wild = WildIndex { end: End::Tail, index: 4, len: 4 };
    assert_eq!(producer.push(&memory, 1), Err(PushError::Wild(wild)));
    assert_eq!(producer.is_drained(&memory), Err(wild));
}

#[test]
fn a_hostile_consumer_cannot_move_the_producers_own_index() {
    let (memory, mut producer, consumer) = pair(4);
    producer.push(&memory, 1).unwrap();
    memory.store_u32(gpa::TX_HEAD, 3);
    producer.push(&memory, 2).unwrap();
    assert_eq!(memory.load_u32(gpa::TX_HEAD), 2);
    assert_eq!(consumer.peek(&memory), Ok(Some(1)));
}

#[test]
fn a_batch_takes_one_load_of_head_and_one_store_to_tail() {
    let (memory, mut producer, mut consumer) = pair(5);
    for round in 0..20u8 {
        for byte in 0..4 {
            producer.push(&memory, round + byte).unwrap();
        }
        memory.forget();
        let mut batch = consumer.peek_batch(&memory, 3).unwrap();
        let bytes: Vec<u8> = core::iter::from_fn(|| batch.next(&memory)).collect();
        assert_eq!((bytes, batch.is_empty()), ((round..round + 3).collect(), true));
        assert!(memory.stores().is_empty(), "the bytes stay in the ring");
        consumer.release_batch(&memory, &batch);
        assert_eq!(memory.accesses().len(), 1 + 3 + 1);
        assert_eq!(consumer.peek(&memory), Ok(Some(round + 3)));
        consumer.release(&memory);
        assert!(consumer.peek_batch(&memory, 9).unwrap().is_empty());
    }
}

#[test]
fn space_takes_one_load_of_tail_and_leaves_one_slot_free() {
    let (memory, mut producer, mut consumer) = pair(5);
    for round in 0..20u8 {
        memory.forget();
        let mut space = producer.space(&memory).unwrap();
        for byte in 0..9 {
            assert_eq!(space.is_full(), byte >= 4);
            space.put(&memory, round + byte);
        }
        assert_eq!(consumer.peek(&memory), Ok(None), "the head is not published yet");
        producer.publish(&memory, &space);
        assert_eq!(memory.stores().len(), 4 + 1);
        assert!(producer.space(&memory).unwrap().is_full());
        for byte in 0..4 {
            assert_eq!(consumer.peek(&memory), Ok(Some(round + byte)));
            consumer.release(&memory);
        }
    }
}

proptest! {
    /// In any order of pushes and pops, the ring is a bounded first-in, first-out queue.
    #[test]
    fn behaves_like_a_bounded_queue(len in 2u16..40, steps in prop::collection::vec(any::<Option<u8>>(), 0..400)) {
        let (memory, mut producer, mut consumer) = pair(len);
        let mut model = VecDeque::new();
        for step in steps {
            match step {
                Some(byte) => {
                    let pushed = producer.push(&memory, byte);
                    if model.len() + 1 < usize::from(len) {
                        prop_assert_eq!(pushed, Ok(()));
                        model.push_back(byte);
                    } else {
                        prop_assert_eq!(pushed, Err(PushError::Full));
                    }
                }
                None => {
                    let byte = consumer.peek(&memory).unwrap();
                    prop_assert_eq!(byte, model.pop_front());
                    if byte.is_some() {
                        consumer.release(&memory);
                    }
                }
            }
        }
    }

    /// For all values of the other side's index, no access leaves the indices and the buffer of the queue.
    #[test]
    fn a_hostile_peer_never_causes_an_access_outside(
        len in 2u16..=4096,
        indices in prop::collection::vec(any::<(u32, u32)>(), 0..60),
    ) {
        let (memory, mut producer, mut consumer) = pair(len);
        for (head, tail) in indices {
            memory.store_u32(gpa::TX_HEAD, head % (2 * u32::from(len)));
            memory.store_u32(gpa::TX_TAIL, tail % (2 * u32::from(len)));
            memory.forget();
            let _ = producer.push(&memory, 1);
            if let Ok(Some(_)) = consumer.peek(&memory) {
                consumer.release(&memory);
            }
            let control = gpa::TX_HEAD..gpa::RX_HEAD;
            let buffer = abi::TX_BUFFER..abi::TX_BUFFER + u64::from(len);
            let outside: Vec<u64> =
                memory.accesses().into_iter().filter(|gpa| !control.contains(gpa) && !buffer.contains(gpa)).collect();
            prop_assert!(outside.is_empty(), "accesses outside: {:x?}", outside);
        }
    }
}
