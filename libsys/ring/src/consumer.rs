//! The side that reads.

use crate::layout::{CONSUMER_SLEEPS, HEAD, PRODUCER_SLEEPS, TAIL, View};
use crate::{Entry, LayoutError, PeerMisbehaved, Word};
use core::sync::atomic::{AtomicU32, Ordering};

/// The reading side of a queue.
pub struct Consumer<'a, T, W = AtomicU32> {
    view: View<'a, T, W>,
    /// Entries ever taken.
    tail: u32,
    /// Entries that were there when the producer's index was last read and are not taken yet.
    available: u32,
    dead: bool,
}

impl<'a, T: Entry, W: Word> Consumer<'a, T, W> {
    /// The consumer of a new queue: the memory is zero, and the producer is made with the same capacity.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(words: &'a [W], capacity: u32) -> Result<Self, LayoutError> {
        Ok(Consumer { view: View::new(words, capacity)?, tail: 0, available: 0, dead: false })
    }

    /// Entries that the queue holds at most.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.view.capacity
    }

    /// Looks how far the producer is. Its index may only grow, and be ahead of ours by the capacity at most.
    fn refresh(&mut self) -> Result<(), PeerMisbehaved> {
        if self.dead {
            return Err(PeerMisbehaved);
        }
        // Acquire: the entries below the index are there once it is seen.
        let available = self.view.control(HEAD).load(Ordering::Acquire).wrapping_sub(self.tail);
        if available > self.view.capacity || available < self.available {
            self.dead = true;
            return Err(PeerMisbehaved);
        }
        self.available = available;
        Ok(())
    }

    /// Entries that can be taken now.
    ///
    /// # Errors
    /// The producer broke the protocol.
    pub fn available(&mut self) -> Result<u32, PeerMisbehaved> {
        self.refresh()?;
        Ok(self.available)
    }

    /// Takes one entry, if there is one. Afterwards (or after several) ask [`Consumer::must_wake`].
    ///
    /// # Errors
    /// The producer broke the protocol.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<T>, PeerMisbehaved> {
        if self.dead {
            return Err(PeerMisbehaved);
        }
        if self.available == 0 {
            self.refresh()?;
            if self.available == 0 {
                return Ok(None);
            }
        }
        // Copied once: what the producer does to the memory afterwards cannot change the value.
        let entry = T::load(self.view.entry(self.tail));
        self.tail = self.tail.wrapping_add(1);
        self.available -= 1;
        // Release: the entry was read before its place is given back.
        self.view.control(TAIL).store(self.tail, Ordering::Release);
        Ok(Some(entry))
    }

    /// Takes what is there now, at most `most` entries. What the producer adds meanwhile is left for the next time, so the loop ends
    /// however fast it writes.
    ///
    /// # Errors
    /// The producer broke the protocol.
    pub fn drain(&mut self, most: u32) -> Result<Drain<'_, 'a, T, W>, PeerMisbehaved> {
        self.refresh()?;
        let left = self.available.min(most);
        Ok(Drain { consumer: self, left })
    }

    /// Whether the producer waits for room and must be signalled now. Answers yes once for each sleep.
    #[must_use = "the producer sleeps on if it is not signalled"]
    #[inline]
    pub fn must_wake(&mut self) -> bool {
        W::full_fence();
        let sleeps = self.view.control(PRODUCER_SLEEPS);
        let wake = sleeps.load(Ordering::Relaxed) != 0;
        if wake {
            sleeps.store(0, Ordering::Relaxed);
        }
        wake
    }

    /// Announces that this side will wait for entries. Answers whether it really may: `false` means that there are some
    /// already.
    ///
    /// # Errors
    /// The producer broke the protocol.
    pub fn prepare_sleep(&mut self) -> Result<bool, PeerMisbehaved> {
        self.view.control(CONSUMER_SLEEPS).store(1, Ordering::Relaxed);
        W::full_fence();
        let empty = self.refresh().map(|()| self.available == 0);
        if empty != Ok(true) {
            self.view.control(CONSUMER_SLEEPS).store(0, Ordering::Relaxed);
        }
        empty
    }
}

/// The entries of one [`Consumer::drain`].
pub struct Drain<'c, 'a, T, W = AtomicU32> {
    consumer: &'c mut Consumer<'a, T, W>,
    left: u32,
}

impl<T: Entry, W: Word> Iterator for Drain<'_, '_, T, W> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        // `drain` saw that there are so many, and only this side takes any: no further look at the producer is needed.
        self.consumer.pop().ok().flatten()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

#[cfg(test)]
impl<'a, T: Entry> Consumer<'a, T> {
    /// A consumer whose indices begin elsewhere than at 0.
    pub(crate) fn at(words: &'a [AtomicU32], capacity: u32, start: u32) -> Self {
        Consumer { tail: start, ..Consumer::new(words, capacity).expect("a layout that fits") }
    }
}
