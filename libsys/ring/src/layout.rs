//! Where things are in the shared memory.

use crate::{Entry, Word};
use core::marker::PhantomData;

pub(crate) const HEAD: usize = 0;
pub(crate) const PRODUCER_SLEEPS: usize = 1;
pub(crate) const TAIL: usize = 16;
pub(crate) const CONSUMER_SLEEPS: usize = 17;
const ENTRIES: usize = 32;

/// Largest capacity, so that a difference of indices always tells full from empty.
const MOST: u32 = 1 << 30;

/// Why memory cannot be a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The capacity is not a power of two from 1 to 2^30.
    Capacity,
    /// The memory is shorter than [`words_needed`].
    TooSmall,
}

/// 32-bit words of memory for a queue of `capacity` entries.
///
/// # Errors
/// `Capacity`.
pub const fn words_needed<T: Entry>(capacity: u32) -> Result<usize, LayoutError> {
    if !capacity.is_power_of_two() || capacity > MOST {
        return Err(LayoutError::Capacity);
    }
    match (capacity as usize).checked_mul(T::WORDS) {
        Some(words) => match words.checked_add(ENTRIES) {
            Some(all) => Ok(all),
            None => Err(LayoutError::TooSmall),
        },
        None => Err(LayoutError::TooSmall),
    }
}

/// One side's view: control words and entries, checked to be there.
pub(crate) struct View<'a, T, W> {
    words: &'a [W],
    /// A power of two; never read back from the memory.
    pub capacity: u32,
    entry: PhantomData<fn() -> T>,
}

impl<'a, T: Entry, W: Word> View<'a, T, W> {
    pub fn new(words: &'a [W], capacity: u32) -> Result<Self, LayoutError> {
        let needed = words_needed::<T>(capacity)?;
        let words = words.get(..needed).ok_or(LayoutError::TooSmall)?;
        Ok(View { words, capacity, entry: PhantomData })
    }

    /// A control word. `new` checked that there are `ENTRIES` at least, so the compiler drops the check of the constant index only
    /// if it sees that; the check stays otherwise and cannot fail.
    #[inline(always)]
    pub fn control(&self, index: usize) -> &W {
        &self.words[index]
    }

    /// The words of entry number `index`.
    #[inline(always)]
    pub fn entry(&self, index: u32) -> &[W] {
        let from = ENTRIES + (index & (self.capacity - 1)) as usize * T::WORDS;
        &self.words[from..from + T::WORDS]
    }
}
