//! The last exits, for a death report.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::vcpu::Exit;

/// How many exits are kept: a power of two.
pub const KEPT: usize = 32;

const REASON_SHIFT: u32 = 56;
const DETAIL: u64 = (1 << REASON_SHIFT) - 1;

/// One exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// [`Exit`] as a number.
    pub reason: u64,
    /// RIP at the exit.
    pub rip: u64,
    /// Its qualification, without the upper byte.
    pub qualification: u64,
}

/// The last [`KEPT`] exits and how many of each reason there were. Its processor's thread writes; whoever reads meanwhile (a panic
/// handler) may find the newest record half made.
#[derive(Debug)]
pub struct History {
    /// RIP, and qualification with the reason in its upper byte (no qualification of an exit that a machine survives reaches so far).
    records: [[AtomicU64; 2]; KEPT],
    total: AtomicU64,
    counts: [AtomicU64; 32],
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Nothing happened yet.
    #[must_use]
    pub const fn new() -> Self {
        History {
            records: [const { [const { AtomicU64::new(0) }; 2] }; KEPT],
            total: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; 32],
        }
    }

    /// Adds an exit: its reason ([`Exit`] as a number), RIP and qualification.
    #[inline(always)]
    pub fn add(&self, reason: u64, rip: u64, qualification: u64) {
        let total = self.total();
        let [at, detail] = &self.records[total as usize % KEPT];
        at.store(rip, Relaxed);
        detail.store(qualification ^ reason << REASON_SHIFT, Relaxed);
        self.total.store(total.wrapping_add(1), Relaxed);
        let count = &self.counts[reason as usize % 32];
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Exits so far.
    #[must_use]
    #[inline(always)]
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Exits of one reason.
    #[must_use]
    pub fn count(&self, exit: Exit) -> u64 {
        self.counts[exit as usize % 32].load(Relaxed)
    }

    /// Exits by reason ([`Exit`] as a number).
    #[must_use]
    pub fn counts(&self) -> [u64; 32] {
        self.counts.each_ref().map(|count| count.load(Relaxed))
    }

    /// The last exits, oldest first.
    pub fn last(&self) -> impl Iterator<Item = Record> + '_ {
        let total = self.total();
        (total - total.min(KEPT as u64)..total).map(|index| {
            let [rip, detail] = self.records[index as usize % KEPT].each_ref().map(|word| word.load(Relaxed));
            Record { reason: detail >> REASON_SHIFT, rip, qualification: detail & DETAIL }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_ones_in_order() {
        let history = History::new();
        for rip in 0..40 {
            history.add(Exit::Port as u64, rip, 0);
        }
        assert_eq!(
            history.last().map(|record| record.rip).collect::<std::vec::Vec<_>>(),
            (8..40).collect::<std::vec::Vec<_>>()
        );
        assert_eq!((history.total(), history.count(Exit::Port), history.count(Exit::Cpuid)), (40, 40, 0));
    }
}
