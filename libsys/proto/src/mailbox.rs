//! Mailboxes: a page that two tasks share, for orders that must not make the one who orders wait. `docs/abi/mailbox.md`.
//!
//! One side writes an order and then its number; the other side is signalled, carries the order out, writes the result and then the
//! number. Numbers only grow. Both sides read each word once; a lying peer gets or gives wrong orders of its own, no more.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a mailbox.
pub const BYTES: u64 = 4096;
/// Bytes of a mailbox with room for a debug stream: behind the mailbox the queue to the monitor, then the one from it, a page each.
pub const WITH_STREAM: u64 = 3 * BYTES;
/// Entries of a queue of the debug stream (`moira_ring::Writer`).
pub const STREAM_ENTRIES: u32 = 256;

/// End of the names of regions that are mailboxes of virtual machines: `NAME-mailbox`, with the monitor's task before it.
pub const SUFFIX: &str = "-mailbox";
/// Name of the region that is the root task's mailbox. No task is called `root`.
pub const ROOT: &str = "root-mailbox";

/// Orders to the root task. The argument is the task's number in the compiled manifest.
pub mod root {
    /// Removes a task for good. Result 1: there is no such task, or it ended before.
    pub const KILL: u64 = 1;
}

/// Orders to the monitor of a virtual machine.
pub mod machine {
    /// Writes the numbers of exits and nothing else.
    pub const LOOK: u64 = 1;
    /// Stops the guest.
    pub const PAUSE: u64 = 2;
    /// Lets it go on. Result 1: it was not paused.
    pub const RESUME: u64 = 3;
    /// Presses the power button. Result 1: it is paused.
    pub const POWER_BUTTON: u64 = 4;
    /// Resets it.
    pub const RESET: u64 = 5;
    /// Begins a new debug stream: both queues are empty, and the guest stands still. Result 1: the mailbox has no room for queues.
    pub const DEBUG: u64 = 6;
    /// Ends it: break points are taken away, the guest goes on.
    pub const DEBUG_END: u64 = 7;
    /// Presses the NMI button. Result 1: it is paused.
    pub const NMI: u64 = 8;
}

/// States of a virtual machine, word [`STATE`].
pub mod state {
    /// Its monitor has not started.
    pub const STARTING: u64 = 0;
    /// It runs.
    pub const RUNNING: u64 = 1;
    /// It is paused.
    pub const PAUSED: u64 = 2;
    /// It ended.
    pub const ENDED: u64 = 3;
}

const NUMBER: usize = 0;
const ORDER: usize = 1;
const ARGUMENT: usize = 2;
const DONE: usize = 8;
const RESULT: usize = 9;
/// Word of the state of a virtual machine ([`state`]).
pub const STATE: usize = 10;
/// Word of the number of its resets.
pub const RESETS: usize = 11;
/// Word of the number of its processors.
pub const CPUS: usize = 12;
/// Word of the bytes of memory that the root task has free.
pub const FREE: usize = 13;
/// First word of the numbers of exits: [`REASONS`] words for each processor.
pub const EXITS: usize = 64;
/// Reasons of exits that are counted, by their numbers.
pub const REASONS: usize = 32;
/// Most virtual processors whose exits are told.
pub const MOST_CPUS: usize = 8;

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its number: to be given back.
    pub number: u64,
    /// What to do.
    pub order: u64,
    /// Of whom.
    pub argument: u64,
}

/// A mailbox in these words of shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox<'a>(&'a [AtomicU64]);

impl<'a> Mailbox<'a> {
    /// The mailbox; `None` if the memory is shorter than [`BYTES`].
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Option<Mailbox<'a>> {
        words.get(..BYTES as usize / 8).map(Mailbox)
    }

    /// Reads a word.
    #[must_use]
    pub fn get(&self, word: usize) -> u64 {
        self.0.get(word).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Writes a word. The order's side may map the page read-only but for its own words only if it never calls this.
    pub fn set(&self, word: usize, value: u64) {
        if let Some(word) = self.0.get(word) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Writes an order under the next number, which is answered; then signal the other side.
    pub fn post(&self, order: u64, argument: u64) -> u64 {
        let number = self.get(NUMBER).wrapping_add(1);
        self.set(ORDER, order);
        self.set(ARGUMENT, argument);
        if let Some(word) = self.0.get(NUMBER) {
            // Release: whoever sees the number sees the order.
            word.store(number, Ordering::Release);
        }
        number
    }

    /// The result of the order with this number, once there is one.
    #[must_use]
    pub fn result(&self, number: u64) -> Option<u64> {
        // Acquire: with the number come the result and what was written before it.
        let done = self.0.get(DONE)?.load(Ordering::Acquire);
        (done == number).then(|| self.get(RESULT))
    }

    /// The order that waits, if one does.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        let number = self.0.get(NUMBER)?.load(Ordering::Acquire);
        (number != self.get(DONE)).then(|| Order { number, order: self.get(ORDER), argument: self.get(ARGUMENT) })
    }

    /// Says that an order was carried out; then signal the other side.
    pub fn done(&self, number: u64, result: u64) {
        self.set(RESULT, result);
        if let Some(word) = self.0.get(DONE) {
            word.store(number, Ordering::Release);
        }
    }

    /// Forgets orders that were given before this side started.
    pub fn begin(&self) {
        if let Some(order) = self.order() {
            self.done(order.number, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn an_order_is_carried_out_once() {
        let words: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
        let mailbox = Mailbox::new(&words).unwrap();
        assert_eq!(mailbox.order(), None);
        let number = mailbox.post(machine::PAUSE, 5);
        assert_eq!(mailbox.result(number), None);
        assert_eq!(mailbox.order(), Some(Order { number, order: machine::PAUSE, argument: 5 }));
        mailbox.done(number, 0);
        assert_eq!((mailbox.order(), mailbox.result(number)), (None, Some(0)));
        let next = mailbox.post(machine::RESUME, 0);
        assert_eq!((mailbox.result(number), mailbox.result(next)), (Some(0), None));
        mailbox.begin();
        assert_eq!((mailbox.order(), mailbox.result(next)), (None, Some(1)));
        assert!(Mailbox::new(&words[..511]).is_none());
    }
}
