//! Honest and hostile peers.

use crate::*;
use core::sync::atomic::{AtomicU32, Ordering};
use proptest::prelude::*;
use std::{collections::VecDeque, vec::Vec};

fn memory<T: Entry>(capacity: u32) -> Vec<AtomicU32> {
    (0..words_needed::<T>(capacity).unwrap()).map(|_| AtomicU32::new(0)).collect()
}

entry_struct! {
    struct Request {
        sector: u64,
        count: u16,
        tag: [u32; 2],
        kind: u8,
    }
}

#[test]
fn layouts_are_checked() {
    assert_eq!(words_needed::<u32>(3), Err(LayoutError::Capacity));
    assert_eq!(words_needed::<u32>(0), Err(LayoutError::Capacity));
    assert_eq!(words_needed::<u32>(1 << 31), Err(LayoutError::Capacity));
    let words = memory::<u64>(4);
    assert_eq!(words.len(), 40);
    assert!(Producer::<u64>::new(&words[..39], 4).is_err());
    assert!(Producer::<u64>::new(&words, 4).is_ok());
}

#[test]
fn structures_travel_whole() {
    let words = memory::<Request>(2);
    let mut producer = Producer::<Request>::new(&words, 2).unwrap();
    let mut consumer = Consumer::<Request>::new(&words, 2).unwrap();
    let request = Request { sector: 0x1234_5678_9abc_def0, count: 0xffff, tag: [1, 2], kind: 0xee };
    assert_eq!(Request::WORDS, 6);
    producer.push(request).unwrap();
    assert_eq!(consumer.pop(), Ok(Some(request)));
    assert_eq!(consumer.pop(), Ok(None));
}

#[test]
fn indices_run_over_the_end_of_their_type() {
    let words = memory::<u32>(4);
    let start = u32::MAX - 2;
    words[0].store(start, Ordering::Relaxed);
    words[16].store(start, Ordering::Relaxed);
    let mut producer = Producer::<u32>::at(&words, 4, start);
    let mut consumer = Consumer::<u32>::at(&words, 4, start);
    for value in 0..20 {
        producer.push(value).unwrap();
        assert_eq!(consumer.pop(), Ok(Some(value)));
    }
}

#[test]
fn impossible_indices_kill_the_queue() {
    let words = memory::<u32>(4);
    let mut producer = Producer::<u32>::new(&words, 4).unwrap();
    words[16].store(1, Ordering::Relaxed); // taken before anything was written
    assert_eq!(producer.room(), Err(PeerMisbehaved));
    words[16].store(0, Ordering::Relaxed);
    assert_eq!(producer.push(1), Err(PushError::Peer(PeerMisbehaved)));

    let words = memory::<u32>(4);
    let mut consumer = Consumer::<u32>::new(&words, 4).unwrap();
    words[0].store(3, Ordering::Relaxed);
    assert_eq!(consumer.available(), Ok(3));
    words[0].store(2, Ordering::Relaxed); // unwritten again
    assert_eq!(consumer.available(), Err(PeerMisbehaved));

    let words = memory::<u32>(4);
    let mut consumer = Consumer::<u32>::new(&words, 4).unwrap();
    words[0].store(5, Ordering::Relaxed); // more than fit
    assert_eq!(consumer.pop(), Err(PeerMisbehaved));
}

#[test]
fn a_sleeper_is_woken_once() {
    let words = memory::<u32>(1);
    let mut producer = Producer::<u32>::new(&words, 1).unwrap();
    let mut consumer = Consumer::<u32>::new(&words, 1).unwrap();
    assert_eq!(consumer.prepare_sleep(), Ok(true));
    producer.push(1).unwrap();
    assert!(producer.must_wake());
    assert!(!producer.must_wake());
    assert_eq!(consumer.prepare_sleep(), Ok(false));
    assert_eq!(producer.push(2), Err(PushError::Full));
    assert_eq!(producer.prepare_sleep(), Ok(true));
    assert_eq!(consumer.pop(), Ok(Some(1)));
    assert!(consumer.must_wake());
    assert_eq!(producer.prepare_sleep(), Ok(false));
    assert!(!consumer.must_wake());
}

proptest! {
    /// Against a model: first in, first out, nothing lost, nothing twice.
    #[test]
    fn is_a_queue(capacity in 0u32..4, start in any::<u32>(), steps in prop::collection::vec((any::<bool>(), 0u32..6), 0..200)) {
        let capacity = 1 << capacity;
        let words = memory::<u64>(capacity);
        words[0].store(start, Ordering::Relaxed);
        words[16].store(start, Ordering::Relaxed);
        let mut producer = Producer::<u64>::at(&words, capacity, start);
        let mut consumer = Consumer::<u64>::at(&words, capacity, start);
        let mut model = VecDeque::new();
        let mut next = 0u64;
        for (push, count) in steps {
            if push {
                let pushed = producer.push(next);
                prop_assert_eq!(pushed.is_ok(), model.len() < capacity as usize);
                if pushed.is_ok() {
                    model.push_back(next);
                }
                next += 1 << 30;
            } else {
                let taken: Vec<u64> = consumer.drain(count).unwrap().collect();
                let expected: Vec<u64> = model.drain(..model.len().min(count as usize)).collect();
                prop_assert_eq!(taken, expected);
            }
        }
    }

    /// Whatever the peer writes: no panic, no more entries than asked for or than fit, and dead stays dead.
    #[test]
    fn survives_a_hostile_peer(steps in prop::collection::vec((0usize..48, any::<u32>(), 0u32..9, 0u8..5), 0..120)) {
        let words = memory::<u64>(8);
        let mut producer = Producer::<u64>::new(&words, 8).unwrap();
        let mut consumer = Consumer::<u64>::new(&words, 8).unwrap();
        let (mut producer_dead, mut consumer_dead) = (false, false);
        for (index, value, most, action) in steps {
            // Small values half of the time: indices that look right.
            words[index].store(if value & 1 == 0 { value } else { value >> 1 & 15 }, Ordering::Relaxed);
            match action {
                0 => {
                    let result = producer.push(u64::from(value));
                    let bad = result == Err(PushError::Peer(PeerMisbehaved));
                    prop_assert!(bad || !producer_dead);
                    producer_dead |= bad;
                }
                1 => match consumer.drain(most) {
                    Ok(drain) => {
                        prop_assert!(!consumer_dead);
                        prop_assert!(drain.count() as u32 <= most.min(8));
                    }
                    Err(PeerMisbehaved) => consumer_dead = true,
                },
                2 => match producer.room() {
                    Ok(room) => prop_assert!(room <= 8 && !producer_dead),
                    Err(PeerMisbehaved) => producer_dead = true,
                },
                3 => {
                    let result = consumer.prepare_sleep();
                    prop_assert!(!consumer_dead || result.is_err());
                    consumer_dead |= result.is_err();
                }
                _ => {
                    let _ = (producer.must_wake(), consumer.must_wake());
                }
            }
        }
    }
}
