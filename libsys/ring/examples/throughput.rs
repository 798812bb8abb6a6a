//! What an entry costs on this machine: `cargo run --release -p moira-ring --example throughput`.

use moira_ring::{Consumer, Producer, PushError, words_needed};
use std::sync::atomic::AtomicU32;
use std::time::Instant;

type Entry = [u64; 4];
const CAPACITY: u32 = 256;
const ROUNDS: u64 = 4_000_000;

fn memory() -> Vec<AtomicU32> {
    let words = words_needed::<Entry>(CAPACITY).expect("a power of two");
    (0..words).map(|_| AtomicU32::new(0)).collect()
}

/// One thread fills and drains: what the instructions cost.
fn alone(batch: u32) -> f64 {
    let words = memory();
    let mut producer = Producer::<Entry>::new(&words, CAPACITY).expect("fits");
    let mut consumer = Consumer::<Entry>::new(&words, CAPACITY).expect("fits");
    let begun = Instant::now();
    let mut sum = 0;
    for _ in 0..ROUNDS / u64::from(batch) {
        for value in 0..batch {
            producer.push([value.into(); 4]).expect("room");
        }
        sum += u64::from(producer.must_wake());
        sum += consumer.drain(batch).expect("honest").map(|entry| entry[3]).sum::<u64>();
        sum += u64::from(consumer.must_wake());
    }
    std::hint::black_box(sum);
    begun.elapsed().as_nanos() as f64 / ROUNDS as f64
}

/// Two threads that never sleep: what moving the lines between processors costs on top.
fn across() -> f64 {
    let words = memory();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut producer = Producer::<Entry>::new(&words, CAPACITY).expect("fits");
            for value in 0..ROUNDS {
                while producer.push([value; 4]) == Err(PushError::Full) {
                    std::hint::spin_loop();
                }
            }
        });
        let mut consumer = Consumer::<Entry>::new(&words, CAPACITY).expect("fits");
        let mut expected = 0;
        while expected < ROUNDS {
            for entry in consumer.drain(CAPACITY).expect("honest") {
                assert_eq!(entry, [expected; 4]);
                expected += 1;
            }
        }
    });
    begun.elapsed().as_nanos() as f64 / ROUNDS as f64
}

fn main() {
    println!("32-byte entries, {CAPACITY} places; nanoseconds for one entry in and out");
    for batch in [1, 16, 256] {
        println!("one thread, batches of {batch:3}: {:6.1}", alone(batch));
    }
    println!("two threads:                {:6.1}", across());
}
