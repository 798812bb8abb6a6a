//! The side that writes.

use crate::layout::{CONSUMER_SLEEPS, HEAD, PRODUCER_SLEEPS, TAIL, View};
use crate::{Entry, LayoutError, PeerMisbehaved, Word};
use core::sync::atomic::{AtomicU32, Ordering};

/// The writing side of a queue.
pub struct Producer<'a, T, W = AtomicU32> {
    view: View<'a, T, W>,
    /// Entries ever written.
    head: u32,
    /// Entries in the queue when the consumer's index was last read: at least as many as there are.
    used: u32,
    dead: bool,
}

/// Why an entry was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// There is no room: [`Producer::prepare_sleep`].
    Full,
    /// The consumer broke the protocol.
    Peer(PeerMisbehaved),
}

impl From<PeerMisbehaved> for PushError {
    fn from(error: PeerMisbehaved) -> PushError {
        PushError::Peer(error)
    }
}

impl<'a, T: Entry, W: Word> Producer<'a, T, W> {
    /// The producer of a new queue: the memory is zero, and the consumer is made with the same capacity.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(words: &'a [W], capacity: u32) -> Result<Self, LayoutError> {
        Ok(Producer { view: View::new(words, capacity)?, head: 0, used: 0, dead: false })
    }

    /// Entries that the queue holds at most.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.view.capacity
    }

    /// Looks how far the consumer is. Its index may only grow, and never beyond ours.
    fn refresh(&mut self) -> Result<(), PeerMisbehaved> {
        if self.dead {
            return Err(PeerMisbehaved);
        }
        // Acquire: the consumer has read the entries that it gives back before it says so.
        let used = self.head.wrapping_sub(self.view.control(TAIL).load(Ordering::Acquire));
        if used > self.used {
            self.dead = true;
            return Err(PeerMisbehaved);
        }
        self.used = used;
        Ok(())
    }

    /// Entries that can be written now.
    ///
    /// # Errors
    /// The consumer broke the protocol.
    pub fn room(&mut self) -> Result<u32, PeerMisbehaved> {
        self.refresh()?;
        Ok(self.view.capacity - self.used)
    }

    /// Writes one entry and publishes it. Afterwards (or after several) ask [`Producer::must_wake`].
    ///
    /// # Errors
    /// `Full`; `Peer`.
    #[inline]
    pub fn push(&mut self, entry: T) -> Result<(), PushError> {
        if self.dead {
            return Err(PeerMisbehaved.into());
        }
        if self.used == self.view.capacity {
            self.refresh()?;
            if self.used == self.view.capacity {
                return Err(PushError::Full);
            }
        }
        entry.store(self.view.entry(self.head));
        self.head = self.head.wrapping_add(1);
        self.used += 1;
        // Release: whoever sees the index sees the entry.
        self.view.control(HEAD).store(self.head, Ordering::Release);
        Ok(())
    }

    /// Whether the consumer sleeps and must be signalled now. Answers yes once for each sleep.
    #[must_use = "the consumer sleeps on if it is not signalled"]
    #[inline]
    pub fn must_wake(&mut self) -> bool {
        W::full_fence();
        let sleeps = self.view.control(CONSUMER_SLEEPS);
        let wake = sleeps.load(Ordering::Relaxed) != 0;
        if wake {
            sleeps.store(0, Ordering::Relaxed);
        }
        wake
    }

    /// Announces that this side will wait for room. Answers whether it really may: `false` means that there is room
    /// already.
    ///
    /// # Errors
    /// The consumer broke the protocol.
    pub fn prepare_sleep(&mut self) -> Result<bool, PeerMisbehaved> {
        self.view.control(PRODUCER_SLEEPS).store(1, Ordering::Relaxed);
        W::full_fence();
        let full = self.refresh().map(|()| self.used == self.view.capacity);
        if full != Ok(true) {
            self.view.control(PRODUCER_SLEEPS).store(0, Ordering::Relaxed);
        }
        full
    }
}

#[cfg(test)]
impl<'a, T: Entry> Producer<'a, T> {
    /// A producer whose indices begin elsewhere than at 0.
    pub(crate) fn at(words: &'a [AtomicU32], capacity: u32, start: u32) -> Self {
        Producer { head: start, ..Producer::new(words, capacity).expect("a layout that fits") }
    }
}
