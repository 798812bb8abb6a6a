//! A lock that is handed over in turn, for the kernel's structural operations. Whoever wants it raises a flag and looks again and
//! again, with interrupts on, so that it can be called away; whoever has it gives it to the next one that wants it.
//!
//! ```text
//! one that wants it                        the one that has it
//! wants |= me                              look at `wants`, in turn from me + 1
//! until (wants & me) == 0: mine            wants &= !next: if that bit was set, it is the next one's
//! or taken goes from 0 to 1: mine          nobody left: taken = 0
//! called away: wants &= !me;
//!   was it clear already? mine
//! ```
//! The bit is cleared by one side only: either the waiter takes its wish back, or it has the lock and must use it or give it on.
//! Bound: with n processors, at most n - 1 holds come before one's own.

use core::sync::atomic::{AtomicU64, Ordering::*};

/// An atomic word; the tests have another one that tries every interleaving.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// 0 after everything before.
    fn clear(&self);
    /// Sets bits.
    fn set(&self, bits: u64);
    /// Clears bits; answers the word before.
    fn take(&self, bits: u64) -> u64;
    /// Makes 0 a 1, if it is 0.
    fn claim(&self) -> bool;
    /// Adds to it.
    fn add(&self, number: u64);
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Acquire)
    }
    #[inline(always)]
    fn clear(&self) {
        self.store(0, Release);
    }
    #[inline(always)]
    fn set(&self, bits: u64) {
        self.fetch_or(bits, SeqCst);
    }
    #[inline(always)]
    fn take(&self, bits: u64) -> u64 {
        self.fetch_and(!bits, SeqCst)
    }
    #[inline(always)]
    fn claim(&self) -> bool {
        self.compare_exchange(0, 1, SeqCst, Relaxed).is_ok()
    }
    #[inline(always)]
    fn add(&self, number: u64) {
        self.fetch_add(number, SeqCst);
    }
}

/// The lock, for 64 processors with each word.
#[derive(Debug)]
pub struct Turns<W, const WORDS: usize> {
    taken: W,
    /// How many want it, or are about to know that they have it: so that a free lock is given back without a look at all flags.
    waiting: W,
    wants: [W; WORDS],
}

impl<W: Word, const WORDS: usize> Turns<W, WORDS> {
    /// A free lock, of words that are 0.
    pub const fn new(taken: W, waiting: W, wants: [W; WORDS]) -> Self {
        Self { taken, waiting, wants }
    }

    /// Takes it if it is free.
    #[inline(always)]
    #[must_use]
    pub fn try_take(&self) -> bool {
        self.taken.claim()
    }

    fn word(&self, me: u32) -> Option<(&W, u64)> {
        Some((self.wants.get(me as usize / 64)?, 1 << (me % 64)))
    }

    /// Wants it: [`Turns::poll`] until it is there, or [`Turns::cancel`].
    pub fn want(&self, me: u32) {
        if let Some((word, bit)) = self.word(me) {
            self.waiting.add(1);
            word.set(bit);
        }
    }

    /// Whether one that wants it has it now.
    #[must_use]
    pub fn poll(&self, me: u32) -> bool {
        let Some((word, bit)) = self.word(me) else { return false };
        let handed = word.load() & bit == 0;
        let mine = handed || self.taken.claim();
        if mine {
            self.waiting.add(u64::MAX);
            if !handed {
                // Nobody else holds it, so nobody else clears the bit.
                word.take(bit);
            }
        }
        mine
    }

    /// Wants it no more. Answers whether it was handed over before this: then it is held.
    #[must_use]
    pub fn cancel(&self, me: u32) -> bool {
        self.waiting.add(u64::MAX);
        self.word(me).is_some_and(|(word, bit)| word.take(bit) & bit == 0)
    }

    /// Gives it to the next one behind `me` that wants it, or frees it. Answers who has it.
    #[inline(always)]
    pub fn give(&self, me: u32) -> Option<u32> {
        if self.waiting.load() != 0 {
            return self.give_in_turn(me);
        }
        self.taken.clear();
        None
    }

    #[inline(never)]
    fn give_in_turn(&self, me: u32) -> Option<u32> {
        let (first, bit) = ((me as usize + 1) / 64, (me + 1) % 64);
        for step in 0..=WORDS {
            let index = (first + step) % WORDS;
            let Some(word) = self.wants.get(index) else { break };
            let mut wanted = word.load();
            // The first word's upper part comes first, its lower part last.
            match step {
                0 => wanted &= u64::MAX << bit,
                _ if step == WORDS => wanted &= !(u64::MAX << bit),
                _ => {}
            }
            while wanted != 0 {
                let next = wanted.trailing_zeros();
                if word.take(1 << next) & 1 << next != 0 {
                    return Some(index as u32 * 64 + next);
                }
                wanted &= wanted - 1;
            }
        }
        self.taken.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Lock = Turns<AtomicU64, 2>;

    fn lock() -> Lock {
        Turns::new(AtomicU64::new(0), AtomicU64::new(0), [const { AtomicU64::new(0) }; 2])
    }

    #[test]
    fn turns_go_round() {
        let lock = lock();
        assert!(lock.try_take());
        for cpu in [3, 70, 127, 5] {
            lock.want(cpu);
            assert!(!lock.poll(cpu));
        }
        let mut order = Vec::new();
        let mut holder = 4;
        while let Some(next) = lock.give(holder) {
            assert!(lock.poll(next));
            order.push(next);
            holder = next;
        }
        assert_eq!(order, [5, 70, 127, 3]);
        assert!(lock.try_take());
    }

    #[test]
    fn the_last_processor_gives_to_the_first() {
        let lock = lock();
        assert!(lock.try_take());
        lock.want(0);
        assert_eq!(lock.give(127), Some(0));
        assert!(lock.cancel(0), "it has it, and must give it on");
        assert_eq!(lock.give(0), None);
    }

    proptest! {
        /// Whatever the order of steps: one holder at most, and nobody waits for more holds than there are others.
        #[test]
        fn nobody_is_passed_over(steps in prop::collection::vec((0u8..4, 0u32..6), 0..300)) {
            let lock = lock();
            let (mut holder, mut waits) = (None::<u32>, [None::<u32>; 6]);
            for (step, cpu) in steps {
                let waiting = waits[cpu as usize].is_some();
                match step {
                    0 if !waiting && holder != Some(cpu) => {
                        if lock.try_take() {
                            prop_assert!(holder.replace(cpu).is_none());
                        } else {
                            lock.want(cpu);
                            waits[cpu as usize] = Some(0);
                        }
                    }
                    1 if waiting && lock.poll(cpu) => {
                        prop_assert!(holder.is_none_or(|other| other == cpu));
                        holder = Some(cpu);
                        waits[cpu as usize] = None;
                    }
                    2 if waiting => {
                        if lock.cancel(cpu) {
                            prop_assert_eq!(holder, Some(cpu));
                        }
                        waits[cpu as usize] = None;
                    }
                    3 if holder == Some(cpu) && !waiting => {
                        holder = lock.give(cpu);
                        for (other, wait) in waits.iter_mut().enumerate() {
                            if holder != Some(other as u32) && let Some(count) = wait {
                                *count += 1;
                                prop_assert!(*count < 6, "{} was passed over", other);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
