//! Interleavings of a producer and a consumer, and all reorderings that the memory model allows.
//!
//! `cargo test` explores up to three preemptions. All interleavings (15 s):
//! `LOOM_MAX_PREEMPTIONS=100 cargo test --release -p moira-ring --test loom`

use core::sync::atomic::Ordering;
use loom::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicU32, fence},
};
use loom::thread;
use moira_ring::{Consumer, Producer, PushError, Word, words_needed};

/// loom's word under the queue's trait.
struct Checked(AtomicU32);

impl Word for Checked {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }

    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }

    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// The same, with the fence left out: shows that the tests below see what they should.
struct Unfenced(Checked);

impl Word for Unfenced {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }

    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }

    fn full_fence() {}
}

/// The same, with release and acquire left out.
struct Unordered(Checked);

impl Word for Unordered {
    fn load(&self, _: Ordering) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn store(&self, value: u32, _: Ordering) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn full_fence() {}
}

fn memory<W>(capacity: u32, wrap: impl Fn(Checked) -> W) -> Arc<Vec<W>> {
    let words = words_needed::<u32>(capacity).expect("a power of two");
    Arc::new((0..words).map(|_| wrap(Checked(AtomicU32::new(0)))).collect())
}

fn bounded() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model
}

/// A notification with one bit: signal is remembered, wait takes it. A lost wake-up is a deadlock, which loom reports.
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn new() -> Bell {
        Bell(Mutex::new(false), Condvar::new())
    }

    fn signal(&self) {
        *self.0.lock().expect("not poisoned") = true;
        self.1.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.0.lock().expect("not poisoned");
        while !*rung {
            rung = self.1.wait(rung).expect("not poisoned");
        }
        *rung = false;
    }
}

/// Entries arrive in order and whole, through a queue of two places that wraps around.
fn entries_arrive_in_order<W: Word + Send + Sync + 'static>(
    wrap: impl Fn(Checked) -> W + Send + Sync + Copy + 'static,
) {
    bounded().check(move || {
        let words = memory(2, wrap);
        let other = words.clone();
        let writer = thread::spawn(move || {
            let mut producer = Producer::<u32, W>::new(&other, 2).expect("fits");
            for value in [11, 12, 13] {
                loop {
                    match producer.push(value) {
                        Ok(()) => break,
                        Err(PushError::Full) => thread::yield_now(),
                        Err(PushError::Peer(_)) => panic!("the consumer is honest"),
                    }
                }
            }
        });
        let mut consumer = Consumer::<u32, W>::new(&words, 2).expect("fits");
        let mut expected = 11;
        while expected < 14 {
            match consumer.pop().expect("the producer is honest") {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        writer.join().expect("no panic");
    });
}

/// A consumer that sleeps when it finds nothing always wakes up for what was written.
fn consumers_wake<W: Word + Send + Sync + 'static>(wrap: impl Fn(Checked) -> W + Send + Sync + Copy + 'static) {
    bounded().check(move || {
        let words = memory(2, wrap);
        let bell = Arc::new(Bell::new());
        let (other, ring) = (words.clone(), bell.clone());
        let writer = thread::spawn(move || {
            let mut producer = Producer::<u32, W>::new(&other, 2).expect("fits");
            for value in 0..2 {
                assert_eq!(producer.push(value), Ok(()));
                if producer.must_wake() {
                    ring.signal();
                }
            }
        });
        let mut consumer = Consumer::<u32, W>::new(&words, 2).expect("fits");
        let mut taken = 0;
        while taken < 2 {
            if let Some(value) = consumer.pop().expect("honest") {
                assert_eq!(value, taken);
                taken += 1;
            } else if consumer.prepare_sleep().expect("honest") {
                bell.wait();
            }
        }
        writer.join().expect("no panic");
    });
}

/// A producer that sleeps when there is no room always wakes up when there is.
fn producers_wake<W: Word + Send + Sync + 'static>(wrap: impl Fn(Checked) -> W + Send + Sync + Copy + 'static) {
    bounded().check(move || {
        let words = memory(1, wrap);
        let bell = Arc::new(Bell::new());
        let (other, ring) = (words.clone(), bell.clone());
        let mut producer = Producer::<u32, W>::new(&words, 1).expect("fits");
        assert_eq!(producer.push(0), Ok(()));
        let reader = thread::spawn(move || {
            let mut consumer = Consumer::<u32, W>::new(&other, 1).expect("fits");
            assert_eq!(consumer.pop(), Ok(Some(0)));
            if consumer.must_wake() {
                ring.signal();
            }
        });
        loop {
            match producer.push(1) {
                Ok(()) => break,
                Err(PushError::Full) => {
                    if producer.prepare_sleep().expect("honest") {
                        bell.wait();
                    }
                }
                Err(PushError::Peer(_)) => panic!("the consumer is honest"),
            }
        }
        reader.join().expect("no panic");
    });
}

#[test]
fn order() {
    entries_arrive_in_order(|word| word);
}

#[test]
fn consumer_wakes() {
    consumers_wake(|word| word);
}

#[test]
fn producer_wakes() {
    producers_wake(|word| word);
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn order_needs_release_and_acquire() {
    entries_arrive_in_order(Unordered);
}

#[test]
#[should_panic(expected = "deadlock")]
fn consumer_wakeup_needs_the_fence() {
    consumers_wake(Unfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn producer_wakeup_needs_the_fence() {
    producers_wake(Unfenced);
}
