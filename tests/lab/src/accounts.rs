//! What the events of one CPU say about its contexts: the ledger, told anew.

use alloc::collections::BTreeMap;
use moira_rt::sys::{
    Consumed,
    abi::trace::{Event, FIRST_SOURCE, LAST_SOURCE, kind},
};

/// A context's time, in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Charged for its own work.
    pub own: u64,
    /// Charged while it helped others along.
    pub lost: u64,
    /// Others were charged for its work.
    pub helped: u64,
    /// Part of `own`: structural work.
    pub structural: u64,
    /// Interrupts of its sources.
    pub interrupts: u64,
}

impl From<&Consumed> for Parts {
    fn from(consumed: &Consumed) -> Parts {
        Parts {
            own: consumed.own,
            lost: consumed.lost,
            helped: consumed.delivered,
            structural: consumed.structural,
            interrupts: consumed.interrupts,
        }
    }
}

impl Parts {
    /// What came since `earlier`.
    pub fn less(&self, earlier: &Parts) -> Parts {
        Parts {
            own: self.own.saturating_sub(earlier.own),
            lost: self.lost.saturating_sub(earlier.lost),
            helped: self.helped.saturating_sub(earlier.helped),
            structural: self.structural.saturating_sub(earlier.structural),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
        }
    }

    /// The largest difference in any part.
    pub fn difference(&self, other: &Parts) -> u64 {
        let parts = [
            self.own.abs_diff(other.own),
            self.lost.abs_diff(other.lost),
            self.helped.abs_diff(other.helped),
            self.structural.abs_diff(other.structural),
            self.interrupts.abs_diff(other.interrupts),
        ];
        parts.into_iter().fold(0, u64::max)
    }
}

/// No context's name.
const NOBODY_KNOWS: u64 = u64::MAX;

/// Sums from events. Context 0 is idle.
pub struct Accounts {
    sums: BTreeMap<u64, Parts>,
    /// Who is charged, and for whom.
    chosen: u64,
    whom: u64,
    since: u64,
    /// When structural work began; its beginning may have been missed.
    structural: u64,
    /// Interrupts of all sources.
    pub interrupts: u64,
    /// Events taken.
    pub taken: u64,
}

impl Accounts {
    /// From now on; the reader itself is running.
    pub fn new(own: u64) -> Accounts {
        let since = moira_rt::sys::now();
        Accounts { sums: BTreeMap::new(), chosen: own, whom: own, since, structural: u64::MAX, interrupts: 0, taken: 0 }
    }

    /// From now on, of a CPU of which nobody knows who runs there.
    pub fn unknown() -> Accounts {
        Accounts::new(NOBODY_KNOWS)
    }

    /// Whether it is known who runs.
    pub fn known(&self) -> bool {
        self.chosen != NOBODY_KNOWS
    }

    #[inline]
    fn of(&mut self, context: u64) -> &mut Parts {
        self.sums.entry(context).or_default()
    }

    /// Books what passed up to then.
    #[inline]
    fn book(&mut self, time: u64) {
        let ticks = time.saturating_sub(self.since);
        self.since = time;
        let (chosen, whom) = (self.chosen, self.whom);
        if chosen == whom {
            self.of(chosen).own += ticks;
        } else {
            self.of(chosen).lost += ticks;
            self.of(whom).helped += ticks;
        }
    }

    /// One more event. A reader that is slow misses events.
    #[inline]
    pub fn take(&mut self, event: &Event) {
        self.taken += 1;
        let source = (FIRST_SOURCE..=LAST_SOURCE).contains(&event.a);
        match event.kind() {
            kind::CHOOSE => {
                self.book(event.time);
                (self.chosen, self.whom) = (event.a, event.a);
            }
            // At the moment of the choice before it.
            kind::FOR => self.whom = event.b,
            kind::INTERRUPT if source => self.book(event.time),
            kind::INTERRUPT_END => {
                let ticks = event.time.saturating_sub(self.since);
                self.since = event.time;
                self.interrupts += ticks;
                if event.b != 0 {
                    self.of(event.b).interrupts += ticks;
                }
            }
            kind::STRUCTURAL => self.structural = event.time,
            kind::STRUCTURAL_END => {
                let ticks = event.time.saturating_sub(self.structural);
                if self.chosen == self.whom && self.chosen != 0 {
                    let chosen = self.chosen;
                    self.of(chosen).structural += ticks;
                }
            }
            _ => {}
        }
    }

    /// The sums up to then.
    pub fn at(&mut self, time: u64) -> BTreeMap<u64, Parts> {
        self.book(time);
        self.sums.clone()
    }
}
