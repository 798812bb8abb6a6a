//! The atomic word, as a trait: the same code runs on the processor's words and on those of a model checker.

use core::sync::atomic::{AtomicU32, Ordering, fence};

/// A shared 32-bit word.
pub trait Word {
    /// Loads it.
    fn load(&self, order: Ordering) -> u32;
    /// Stores to it.
    fn store(&self, value: u32, order: Ordering);
    /// A sequentially consistent fence.
    fn full_fence();
}

impl Word for AtomicU32 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }

    #[inline(always)]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }

    #[inline(always)]
    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}
