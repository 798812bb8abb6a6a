//! What a queue carries: plain data of a fixed number of words, of which every pattern is a value.

use crate::Word;
use core::sync::atomic::Ordering;

/// Plain data. Both sides run it on memory that the other may be writing: a loaded value may be any mixture of patterns, so
/// all of them must be values, and what they mean must be checked by the receiver.
pub trait Entry: Copy {
    /// 32-bit words that one value takes.
    const WORDS: usize;

    /// Writes it to `WORDS` words.
    fn store<W: Word>(&self, to: &[W]);

    /// Reads it from `WORDS` words.
    fn load<W: Word>(from: &[W]) -> Self;
}

// Entries are ordered by the index that is published after them, so their own words need no order.
macro_rules! small {
    ($($kind:ty),*) => {$(
        impl Entry for $kind {
            const WORDS: usize = 1;

            #[inline(always)]
            fn store<W: Word>(&self, to: &[W]) {
                if let Some(word) = to.first() {
                    word.store(*self as u32, Ordering::Relaxed);
                }
            }

            #[inline(always)]
            fn load<W: Word>(from: &[W]) -> Self {
                from.first().map_or(0, |word| word.load(Ordering::Relaxed)) as $kind
            }
        }
    )*};
}

small!(u8, u16, u32, i32);

impl Entry for u64 {
    const WORDS: usize = 2;

    #[inline(always)]
    fn store<W: Word>(&self, to: &[W]) {
        if let [low, high, ..] = to {
            low.store(*self as u32, Ordering::Relaxed);
            high.store((*self >> 32) as u32, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn load<W: Word>(from: &[W]) -> Self {
        match from {
            [low, high, ..] => u64::from(low.load(Ordering::Relaxed)) | u64::from(high.load(Ordering::Relaxed)) << 32,
            _ => 0,
        }
    }
}

impl<T: Entry, const N: usize> Entry for [T; N] {
    const WORDS: usize = T::WORDS * N;

    #[inline(always)]
    fn store<W: Word>(&self, to: &[W]) {
        for (item, words) in self.iter().zip(to.chunks_exact(T::WORDS)) {
            item.store(words);
        }
    }

    #[inline(always)]
    fn load<W: Word>(from: &[W]) -> Self {
        core::array::from_fn(|index| T::load(from.get(index * T::WORDS..).unwrap_or_default()))
    }
}

/// Defines a structure of plain data that queues can carry.
///
/// ```
/// moira_ring::entry_struct! {
///     /// A request to a disk.
///     pub struct Request {
///         /// First sector.
///         pub sector: u64,
///         /// Number of sectors.
///         pub count: u32,
///     }
/// }
/// assert_eq!(<Request as moira_ring::Entry>::WORDS, 3);
/// ```
#[macro_export]
macro_rules! entry_struct {
    ($(#[$doc:meta])* $visible:vis struct $name:ident { $($(#[$field_doc:meta])* $field_visible:vis $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $visible struct $name { $($(#[$field_doc])* $field_visible $field: $kind,)* }

        impl $crate::Entry for $name {
            const WORDS: usize = 0 $(+ <$kind as $crate::Entry>::WORDS)*;

            #[inline(always)]
            fn store<W: $crate::Word>(&self, to: &[W]) {
                let mut at = 0;
                $(
                    $crate::Entry::store(&self.$field, to.get(at..).unwrap_or_default());
                    at += <$kind as $crate::Entry>::WORDS;
                )*
                let _ = at;
            }

            #[inline(always)]
            fn load<W: $crate::Word>(from: &[W]) -> Self {
                let mut at = 0;
                $(
                    let $field = <$kind as $crate::Entry>::load(from.get(at..).unwrap_or_default());
                    at += <$kind as $crate::Entry>::WORDS;
                )*
                let _ = at;
                $name { $($field,)* }
            }
        }
    };
}
