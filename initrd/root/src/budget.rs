//! How much memory a task takes: the size of the untyped that everything of it is made from.
//!
//! The kernel takes frames and smaller untyped memories from the upper end and objects from the lower end. Asked for in the
//! order of falling size, the upper ones leave no gaps.

use moira_abi::{ObjectType, PAGE, object::FrameSize};

/// What is made from one untyped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of frames and of untyped memories, all powers of two, and made in falling order of size.
    pub upper: u64,
    /// Bytes of objects at the lower end, with what alignment may cost.
    pub lower: u64,
}

/// Bytes of the control block of an untyped within an untyped.
const CONTROL: u64 = 256;

impl Budget {
    /// With frames.
    #[must_use]
    pub fn frames(self, size: FrameSize, count: u64) -> Budget {
        Budget { upper: self.upper.saturating_add(size.bytes().saturating_mul(count)), ..self }
    }

    /// With an untyped memory of its own.
    #[must_use]
    pub fn untyped(self, size_bits: u8) -> Budget {
        let bytes = 1u64.checked_shl(u32::from(size_bits)).unwrap_or(u64::MAX);
        Budget { upper: self.upper.saturating_add(bytes), lower: self.lower.saturating_add(2 * CONTROL) }
    }

    /// With an object; `size` as in `ObjectType::size_bits`.
    #[must_use]
    pub fn object(self, kind: ObjectType, size: u8) -> Budget {
        let bytes = kind.size_bits(size).map_or(0, |bits| 1u64 << bits);
        // Alignment may leave as much again unused below it.
        Budget { lower: self.lower.saturating_add(2 * bytes), ..self }
    }

    /// log2 of the size of the untyped that holds it all.
    #[must_use]
    pub fn size_bits(self) -> u8 {
        let bytes = self.upper.saturating_add(self.lower).clamp(PAGE, 1 << 47);
        bytes.next_power_of_two().trailing_zeros() as u8
    }
}

/// log2 of the bytes of the untyped that page tables of a task are made from, for `areas` places in its address space (each of
/// them touches at most one table of each level more than its size demands) and `small` bytes mapped in small pages.
#[must_use]
pub fn table_bits(areas: u64, small: u64) -> u8 {
    // The top, one directory pointer table, and for each area a directory and a table; a table for each 2 MiB.
    let tables = 2 + 2 * areas.min(1 << 20) + small.min(1 << 46) / FrameSize::Large.bytes();
    (tables * PAGE).next_power_of_two().trailing_zeros() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(Budget::default().size_bits(), 12);
        assert_eq!(Budget::default().frames(FrameSize::Small, 16).size_bits(), 16);
        assert_eq!(Budget::default().frames(FrameSize::Small, 16).object(ObjectType::Thread, 0).size_bits(), 17);
        assert_eq!(table_bits(7, 0), 16);
    }

    proptest! {
        /// The kernel's own arithmetic finds room for everything.
        #[test]
        fn all_of_it_fits(large in 0u64..4, mut untyped in prop::collection::vec(12u8..24, 0..4), small in 0u64..64, table in 7u8..14) {
            untyped.sort_unstable_by(|one, other| other.cmp(one));
            let mut budget = Budget::default().frames(FrameSize::Large, large).frames(FrameSize::Small, small);
            let mut upper: Vec<u8> = vec![21; large as usize];
            for bits in &untyped {
                budget = budget.untyped(*bits);
            }
            upper.extend(&untyped);
            upper.extend(vec![12; small as usize]);
            upper.sort_unstable_by(|one, other| other.cmp(one));
            let kinds = [(ObjectType::AddressSpace, 0), (ObjectType::Thread, 0), (ObjectType::CapTable, table)];
            for (kind, size) in kinds {
                budget = budget.object(kind, size);
            }
            let (mut low, mut high) = (0u64, 1u64 << budget.size_bits());
            for bits in upper {
                prop_assert_eq!(high % (1 << bits), 0);
                high -= 1 << bits;
            }
            for _ in untyped {
                low = low.next_multiple_of(CONTROL) + CONTROL;
            }
            for (kind, size) in kinds {
                let bytes = 1u64 << kind.size_bits(size).unwrap();
                low = low.next_multiple_of(bytes) + bytes;
            }
            prop_assert!(low <= high, "{low} > {high}");
        }
    }
}
