//! How much memory a task takes: the sizes of the untyped memories that everything of it is made from.
//!
//! The kernel takes frames and smaller untyped memories from the upper end of an untyped and objects from its lower end. Asked for
//! in the order of falling size, none of them leaves a gap. One power of two for all of it could be twice what is needed, so there is a
//! first memory with all objects and page tables, and smaller ones that hold nothing but small pages.

use alloc::{collections::BTreeSet, vec::Vec};
use core::ops::Range;
use moira_abi::{ObjectType, PAGE, object::FrameSize};

/// What is made from a task's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of objects.
    pub objects: u64,
    /// Pages of page tables.
    pub tables: u64,
    /// Small pages.
    pub small: u64,
    /// Large pages.
    pub large: u64,
}

/// The untyped memories that a budget asks for, each as log2 of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Objects, page tables, and as many small pages as fit.
    pub first: u8,
    /// Small pages, the largest memory first.
    pub rest: Vec<u8>,
    /// Large pages: each memory is full of them.
    pub large: Vec<u8>,
}

/// Bytes of the control block of an untyped within an untyped.
pub const CONTROL: u64 = 256;
/// A task's memory is rounded up to such a part of its largest block, so that it is not made of many small ones.
const GRAIN: u64 = 16;

impl Budget {
    /// With an object; `size` as in `ObjectType::size_bits`. To be asked for in the order of falling size.
    #[must_use]
    pub fn object(self, kind: ObjectType, size: u8) -> Budget {
        let bytes = kind.size_bits(size).map_or(0, |bits| 1u64 << bits);
        Budget { objects: self.objects.saturating_add(bytes), ..self }
    }

    /// Bytes that are taken from the lower end of the first memory: whole pages.
    fn lower(self) -> u64 {
        let control = u64::from(self.tables.count_ones()) * CONTROL;
        self.objects.saturating_add(control).min(1 << 46).next_multiple_of(PAGE)
    }

    /// The memories.
    #[must_use]
    pub fn sizes(self) -> Sizes {
        let pages = |count: u64| count.min(1 << 34) * PAGE;
        let (lower, tables) = (self.lower(), pages(self.tables));
        let all = (lower + tables + pages(self.small)).max(PAGE);
        let all = all.next_multiple_of((1 << all.ilog2()) / GRAIN).next_multiple_of(PAGE);
        let first = all.ilog2().max((lower + tables).next_power_of_two().max(PAGE).ilog2());
        let rest = powers(all.saturating_sub(1 << first)).collect();
        let large = powers(self.large.min(1 << 25) * FrameSize::Large.bytes()).collect();
        Sizes { first: first as u8, rest, large }
    }

    /// How many small pages the first memory holds beside all else.
    #[must_use]
    pub fn small_in_first(self, sizes: &Sizes) -> u64 {
        ((1 << sizes.first) - self.lower()) / PAGE - self.tables
    }
}

/// The powers of two that a number is the sum of, as their log2, the largest first.
pub fn powers(number: u64) -> impl Iterator<Item = u8> {
    (0..64).rev().filter(move |bit| number >> bit & 1 != 0)
}

/// How many pages of page tables it takes to map these ranges of addresses, small pages and large ones.
#[must_use]
pub fn table_pages(small: &[Range<u64>], large: &[Range<u64>]) -> u64 {
    // The top; a directory pointer table for each 512 GiB; a directory for each 1 GiB; a table for each 2 MiB of small pages.
    let touched = |ranges: &mut dyn Iterator<Item = &Range<u64>>, bits: u32| -> u64 {
        let all =
            ranges.filter(|range| !range.is_empty()).flat_map(|range| range.start >> bits..=(range.end - 1) >> bits);
        all.collect::<BTreeSet<u64>>().len() as u64
    };
    let both = || small.iter().chain(large);
    1 + touched(&mut both(), 39) + touched(&mut both(), 30) + touched(&mut small.iter(), 21)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn little_is_wasted() {
        // A thread, 76 pages and 20 of tables: 97 pages, and not 128.
        let budget = Budget { tables: 20, small: 76, ..Budget::default() }.object(ObjectType::Thread, 0);
        assert_eq!(budget.sizes(), Sizes { first: 18, rest: vec![17, 14], large: vec![] });
        assert_eq!(Budget::default().sizes(), Sizes { first: 12, rest: vec![], large: vec![] });
        assert_eq!(Budget { large: 3, ..Budget::default() }.sizes().large, [22, 21]);
    }

    #[test]
    fn tables_are_counted_once() {
        let page = |address: u64| address..address + PAGE;
        assert_eq!(table_pages(&[page(0x20_0000)], &[]), 4);
        assert_eq!(table_pages(&[page(0x20_0000), page(0x3f_f000)], &[]), 4);
        assert_eq!(table_pages(&[page(0x20_0000), 0x3f_f000..0x40_1000], &[]), 5);
        assert_eq!(table_pages(&[page(0x20_0000)], &[page(1 << 30), page(2 << 30)]), 6);
        assert_eq!(table_pages(&[page(0x20_0000), page(1 << 39)], &[]), 7);
    }

    proptest! {
        /// The kernel's own arithmetic finds room for everything, and no page is left that would hold a quarter of it.
        #[test]
        fn all_of_it_fits(small in 0u64..3000, tables in 0u64..200, threads in 1usize..16, table in 7u8..18) {
            let mut objects = vec![(ObjectType::CapTable, table)];
            objects.extend(vec![(ObjectType::Thread, 0); threads]);
            objects.push((ObjectType::AddressSpace, 0));
            objects.sort_by_key(|(kind, size)| core::cmp::Reverse(kind.size_bits(*size)));
            let budget = Budget { tables, small, ..Budget::default() };
            let budget = objects.iter().fold(budget, |budget, (kind, size)| budget.object(*kind, *size));
            let sizes = budget.sizes();
            let (mut low, mut high) = (0u64, 1u64 << sizes.first);
            for (kind, size) in objects {
                let bytes = 1u64 << kind.size_bits(size).unwrap();
                low = low.next_multiple_of(bytes) + bytes;
            }
            for bits in powers(tables * PAGE) {
                prop_assert_eq!(high % (1 << bits), 0);
                high -= 1 << bits;
                low = low.next_multiple_of(CONTROL) + CONTROL;
            }
            prop_assert!(low <= high, "{low} > {high}");
            let here = (high - low.next_multiple_of(PAGE)) / PAGE;
            prop_assert_eq!(here, budget.small_in_first(&sizes));
            let elsewhere: u64 = sizes.rest.iter().map(|bits| (1u64 << bits) / PAGE).sum();
            prop_assert!(here + elsewhere >= small);
            prop_assert!(sizes.rest.is_sorted_by(|one, next| one > next));
            let all: u64 = (1u64 << sizes.first) + elsewhere * PAGE;
            let needed = low.next_multiple_of(PAGE) + (tables + small) * PAGE;
            // One power of two where objects and tables are more than half of it.
            prop_assert!(all <= needed + needed / GRAIN + PAGE || sizes.rest.is_empty() && all < 2 * needed);
        }
    }
}
