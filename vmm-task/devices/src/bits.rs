//! A set of the 256 interrupt vectors that finds its highest member in a few instructions.

/// A set of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VectorSet {
    words: [u32; 8],
    /// Bit `i` is set exactly if `words[i]` is not zero.
    used: u8,
}

impl VectorSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [0; 8], used: 0 }
    }

    /// Adds a vector and says whether it is new.
    pub const fn insert(&mut self, vector: u8) -> bool {
        let word = (vector >> 5) as usize;
        let bit = 1 << (vector & 31);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.used |= 1 << word;
        new
    }

    /// Takes a vector out and says whether it was there.
    pub const fn remove(&mut self, vector: u8) -> bool {
        let word = (vector >> 5) as usize;
        let bit = 1 << (vector & 31);
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        if self.words[word] == 0 {
            self.used &= !(1 << word);
        }
        was
    }

    /// Whether a vector is in the set.
    #[must_use]
    pub const fn contains(&self, vector: u8) -> bool {
        self.words[(vector >> 5) as usize] & (1 << (vector & 31)) != 0
    }

    /// The highest vector.
    #[must_use]
    #[inline]
    pub const fn highest(&self) -> Option<u8> {
        if self.used == 0 {
            return None;
        }
        let word = 7 - self.used.leading_zeros() as u8;
        // `& 7` tells the compiler what `used` already guarantees.
        let bit = 31u8.wrapping_sub(self.words[(word & 7) as usize].leading_zeros() as u8);
        Some(word << 5 | bit & 31)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Vectors `32 * index` to `32 * index + 31` as bits; 0 beyond the end.
    #[must_use]
    pub fn word(&self, index: usize) -> u32 {
        self.words.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::VectorSet;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((any::<bool>(), any::<u8>()), 0..200)) {
            let mut ours = VectorSet::new();
            let mut model = BTreeSet::new();
            for (add, v) in ops {
                if add { prop_assert_eq!(ours.insert(v), model.insert(v)) } else { prop_assert_eq!(ours.remove(v), model.remove(&v)) }
                prop_assert_eq!(ours.highest(), model.last().copied());
                prop_assert_eq!(ours.is_empty(), model.is_empty());
                prop_assert_eq!(ours.contains(v), model.contains(&v));
            }
        }
    }
}
