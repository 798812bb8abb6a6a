//! Which device claims a port or an address: the lookup on the path of every exit.

use alloc::vec::Vec;

/// A device handle that means "nobody".
pub const UNCLAIMED: u8 = 0;

/// All 65,536 ports, two levels deep: two loads find the owner of a port, however many ranges there are.
///
/// A full table would take 64 KiB for each VM; real machines use a dozen of the 256 groups of 256 ports.
#[derive(Clone, Debug)]
pub struct PortMap {
    root: [u8; 256],
    pages: Vec<[u8; 256]>,
    ranges: usize,
}

impl Default for PortMap {
    fn default() -> Self {
        Self::new()
    }
}

impl PortMap {
    /// A map in which nothing is claimed.
    #[must_use]
    pub fn new() -> Self {
        // Page 0 is the empty one that all unclaimed groups share.
        Self { root: [0; 256], pages: alloc::vec![[UNCLAIMED; 256]], ranges: 0 }
    }

    /// Gives `count` ports from `first` on to `handle`; later claims win. Ports past FFFFh are left out.
    pub fn claim(&mut self, first: u16, count: u16, handle: u8) {
        self.ranges += 1;
        self.fill(first, count, handle);
    }

    fn fill(&mut self, first: u16, count: u16, handle: u8) {
        for port in u32::from(first)..(u32::from(first) + u32::from(count)).min(0x1_0000) {
            let group = (port >> 8) as usize;
            if self.root[group] == 0 {
                if handle == UNCLAIMED {
                    continue;
                }
                // 255 groups plus the empty page fit a `u8`; the 256th group reuses nothing because group 0 to 255
                // can ask at most 256 times, so stop at 255 pages of our own.
                let Ok(index) = u8::try_from(self.pages.len()) else { continue };
                self.pages.push([UNCLAIMED; 256]);
                self.root[group] = index;
            }
            if let Some(page) = self.pages.get_mut(self.root[group] as usize) {
                page[(port & 0xFF) as usize] = handle;
            }
        }
    }

    /// Like [`Self::claim`], but leaves ports alone that have an owner.
    pub fn claim_free(&mut self, first: u16, count: u16, handle: u8) {
        self.ranges += 1;
        for port in u32::from(first)..(u32::from(first) + u32::from(count)).min(0x1_0000) {
            if self.lookup(port as u16) == UNCLAIMED {
                self.fill(port as u16, 1, handle);
            }
        }
    }

    /// Takes all ports of `handle` back.
    pub fn release_all(&mut self, handle: u8) {
        let mut found = false;
        for port in self.pages.iter_mut().skip(1).flatten().filter(|p| **p == handle && handle != UNCLAIMED) {
            *port = UNCLAIMED;
            found = true;
        }
        self.ranges -= usize::from(found && self.ranges > 0);
    }

    /// The owner of a port, or [`UNCLAIMED`].
    #[must_use]
    #[inline]
    pub fn lookup(&self, port: u16) -> u8 {
        let page = self.root[(port >> 8) as usize];
        self.pages.get(page as usize).map_or(UNCLAIMED, |p| p[(port & 0xFF) as usize])
    }

    /// How many ranges were claimed.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.ranges
    }
}

/// A claimed range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioRange<H> {
    /// First address.
    pub base: u64,
    /// Bytes, not 0.
    pub size: u64,
    /// Whose it is.
    pub handle: H,
}

/// The claimed guest-physical ranges, sorted, found by binary search.
#[derive(Clone, Debug)]
pub struct MmioMap<H> {
    ranges: Vec<MmioRange<H>>,
}

impl<H> Default for MmioMap<H> {
    fn default() -> Self {
        Self { ranges: Vec::new() }
    }
}

/// A range overlaps one that is already claimed, is empty or wraps around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap;

impl<H: Copy + PartialEq> MmioMap<H> {
    /// Claims a range.
    ///
    /// # Errors
    /// [`Overlap`] if it is empty, wraps around, or meets another range; then nothing changes.
    pub fn claim(&mut self, base: u64, size: u64, handle: H) -> Result<(), Overlap> {
        let end = base.checked_add(size).ok_or(Overlap)?;
        if size == 0 {
            return Err(Overlap);
        }
        let at = self.ranges.partition_point(|r| r.base < base);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i));
        if before.is_some_and(|r| base - r.base < r.size) || self.ranges.get(at).is_some_and(|r| r.base < end) {
            return Err(Overlap);
        }
        self.ranges.insert(at, MmioRange { base, size, handle });
        Ok(())
    }

    /// Gives up every range that `drop` names.
    pub fn release(&mut self, drop: impl Fn(H) -> bool) {
        self.ranges.retain(|r| !drop(r.handle));
    }

    /// The owner of an address and the offset in its range.
    #[must_use]
    #[inline]
    pub fn lookup(&self, gpa: u64) -> Option<(H, u64)> {
        let at = self.ranges.partition_point(|r| r.base <= gpa);
        let r = self.ranges.get(at.wrapping_sub(1))?;
        let offset = gpa - r.base;
        (offset < r.size).then_some((r.handle, offset))
    }

    /// How many ranges there are.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ports_agree_with_a_flat_table(claims in proptest::collection::vec((any::<u16>(), 0u16..600, 1u8..40), 1..40)) {
            let mut map = PortMap::new();
            let mut flat = std::vec![0u8; 65536];
            for (first, count, handle) in claims {
                map.claim(first, count, handle);
                flat[first as usize..(first as usize + count as usize).min(65536)].fill(handle);
            }
            for p in 0..=0xFFFFu16 { prop_assert_eq!(map.lookup(p), flat[p as usize]); }
        }

        #[test]
        fn mmio_ranges_never_overlap(claims in proptest::collection::vec((0u64..2000, 0u64..100), 1..60)) {
            let mut map = MmioMap::default();
            let mut owner = std::vec![None; 2200];
            for (i, (base, size)) in claims.into_iter().enumerate() {
                let range = base as usize..(base + size) as usize;
                let free = size > 0 && owner[range.clone()].iter().all(Option::is_none);
                prop_assert_eq!(map.claim(base, size, i).is_ok(), free);
                if free { for (o, slot) in owner[range].iter_mut().enumerate() { *slot = Some((i, o as u64)); } }
            }
            for (a, want) in owner.iter().enumerate() { prop_assert_eq!(map.lookup(a as u64), *want); }
        }
    }

    #[test]
    fn every_group_can_be_claimed() {
        let mut map = PortMap::new();
        map.claim(0, 0xFFFF, 7);
        assert_eq!(map.lookup(0), 7);
        assert_eq!(map.lookup(0xFEFF), 7);
    }
}
