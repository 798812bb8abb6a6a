//! Arithmetic of untyped memory: objects with headers are taken from the lower end, frames and smaller untyped memories from
//! the upper end, so that the objects alone can be walked when everything is ended.

/// The free part of an untyped memory: `[low, high)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// First free byte.
    pub low: u64,
    /// Byte after the last free one.
    pub high: u64,
}

impl Free {
    /// Takes `count` objects of `2^bits` bytes, naturally aligned, from the lower end; answers the first one's address and what
    /// is left. `None`: no room.
    #[must_use]
    pub fn take_low(self, bits: u8, count: u64) -> Option<(u64, Free)> {
        let size = 1u64.checked_shl(bits as u32)?;
        let first = self.low.checked_add(size - 1)? & !(size - 1);
        let end = first.checked_add(size.checked_mul(count)?)?;
        (end <= self.high).then_some((first, Free { low: end, high: self.high }))
    }

    /// The same from the upper end; the answer is the address of the lowest one.
    #[must_use]
    pub fn take_high(self, bits: u8, count: u64) -> Option<(u64, Free)> {
        let size = 1u64.checked_shl(bits as u32)?;
        let end = self.high & !(size - 1);
        let first = end.checked_sub(size.checked_mul(count)?)?;
        (first >= self.low).then_some((first, Free { low: self.low, high: first }))
    }
}

/// Cuts `[start, end)` into naturally aligned power-of-two blocks, from the lowest address up: the first one's address and
/// bits, and the rest's start. `None` when less than a page is left.
#[must_use]
pub fn first_block(start: u64, end: u64) -> Option<(u64, u8)> {
    let start = start.checked_add(4095)? & !4095;
    if end <= start || end - start < 4096 {
        return None;
    }
    let aligned = if start == 0 { 63 } else { start.trailing_zeros() };
    let fits = 63 - (end - start).leading_zeros();
    Some((start, aligned.min(fits).min(47) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_overlaps(ops in prop::collection::vec((any::<bool>(), 6u8..22, 1u64..5), 1..60)) {
            let (base, end) = (1u64 << 24, (1u64 << 24) + (1 << 23));
            let mut free = Free { low: base, high: end };
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (low, bits, count) in ops {
                let answer = if low { free.take_low(bits, count) } else { free.take_high(bits, count) };
                if let Some((first, left)) = answer {
                    let size = count << bits;
                    prop_assert_eq!(first % (1 << bits), 0);
                    prop_assert!(first >= base && first + size <= end);
                    for (other, other_end) in &taken {
                        prop_assert!(first + size <= *other || first >= *other_end);
                    }
                    taken.push((first, first + size));
                    prop_assert!(left.high - left.low <= free.high - free.low - size);
                    free = left;
                }
            }
        }

        #[test]
        fn blocks_cover(start in 0u64..1 << 30, length in 0u64..1 << 30) {
            let end = start + length;
            let (mut at, mut count) = (start, 0);
            while let Some((address, bits)) = first_block(at, end) {
                prop_assert!(address - at < 4096 && address % (1 << bits) == 0);
                at = address + (1 << bits);
                prop_assert!(at <= end);
                count += 1;
                prop_assert!(count < 64);
            }
            prop_assert!(at >= end || end - at < 8192);
        }
    }
}
