//! What is promised, and when a table of windows keeps it.
//!
//! A table has a cycle, and a period is rarely a divisor of it. A contract is kept if the cycle can be cut into equal parts, none longer than
//! the period, such that each part holds the contract's share of that part; and if no wait between two of its windows, over the end
//! of the cycle too, is longer than its latency bound; all of it to a millionth, as times are rounded to ticks. [`check`] looks at nothing but the
//! windows: it does not know how they were made.

use moira_proto::planner::Booked;

/// What one context is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// Time in each period; 0: nothing but slack.
    pub slice: u64,
    /// The period.
    pub period: u64,
    /// Longest wait between two windows; 0: as the period allows, which is less than two periods.
    pub latency: u64,
    /// Whether it also takes slack.
    pub extra: bool,
}

/// `[start, end)` in ticks from the start of the cycle, for contract number `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First tick.
    pub start: u64,
    /// Tick after the last.
    pub end: u64,
    /// Index of the contract.
    pub owner: usize,
}

/// How a table breaks a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// In this part of the cycle the contract gets less than its share.
    Short {
        /// Index of the contract.
        owner: usize,
        /// Ticks that it gets in the part.
        given: u64,
        /// Ticks that it was promised for a part of this length.
        promised: u64,
    },
    /// It waits longer than its bound.
    Late {
        /// Index of the contract.
        owner: usize,
        /// Longest wait between two windows.
        wait: u64,
        /// The bound.
        bound: u64,
    },
}

impl From<&Booked> for Contract {
    fn from(booked: &Booked) -> Contract {
        Contract { slice: booked.slice, period: booked.period, latency: booked.latency, extra: booked.extra }
    }
}

impl Contract {
    /// Whether it promises anything.
    #[must_use]
    pub const fn promises(&self) -> bool {
        self.slice > 0
    }

    /// Whether it makes sense: a slice is not longer than its period.
    #[must_use]
    pub const fn possible(&self) -> bool {
        self.slice == 0 || (self.period > 0 && self.slice <= self.period)
    }

    /// Its share of `ticks`, rounded up.
    #[must_use]
    pub fn share_of(&self, ticks: u64) -> u64 {
        scale(self.slice, ticks, self.period)
    }

    /// Its share of the CPU in parts per million, rounded up.
    #[must_use]
    pub fn share_ppm(&self) -> u64 {
        self.share_of(1_000_000)
    }
}

/// What rounding may take of a stretch: a millionth, and a tick at either end. Contracts are written in nanoseconds and clocks have odd
/// frequencies: without it a fifth of a cycle would not be a fifth.
#[must_use]
pub(crate) const fn rounding(ticks: u64) -> u64 {
    ticks / 1_000_000 + 2
}

/// Equal parts of a cycle of which none is longer than the period, but for a millionth of the cycle.
#[must_use]
pub(crate) fn parts(cycle: u64, period: u64) -> u64 {
    (cycle - cycle / 1_000_000).div_ceil(period.max(1)).max(1)
}

/// `a · b / c`, rounded up; saturates.
#[must_use]
pub(crate) fn scale(a: u64, b: u64, c: u64) -> u64 {
    let exact = (u128::from(a) * u128::from(b)).div_ceil(u128::from(c.max(1)));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// Longest wait between two windows of `owner`, from the end of one to the start of the next, over the end of the cycle too; `None`
/// without windows.
#[must_use]
pub fn longest_wait(windows: &[Window], cycle: u64, owner: usize) -> Option<u64> {
    let mut first = None;
    let mut last_end = None;
    let mut longest = 0;
    for window in windows.iter().filter(|window| window.owner == owner) {
        first = first.or(Some(window.start));
        if let Some(end) = last_end {
            longest = longest.max(window.start.saturating_sub(end));
        }
        last_end = Some(window.end);
    }
    let around = cycle.checked_sub(last_end?)?.checked_add(first?)?;
    Some(longest.max(around))
}

/// Ticks that `owner` gets in `[from, to)`.
fn given(windows: &[Window], owner: usize, from: u64, to: u64) -> u64 {
    let inside = |window: &Window| window.end.min(to).saturating_sub(window.start.max(from));
    windows.iter().filter(|window| window.owner == owner).map(inside).sum()
}

/// Whether the windows (sorted, disjoint, inside the cycle) keep a contract.
///
/// # Errors
/// [`Broken`]: the first promise that they break.
pub fn check(windows: &[Window], cycle: u64, owner: usize, contract: &Contract) -> Result<(), Broken> {
    if !contract.promises() {
        return Ok(());
    }
    if cycle == 0 {
        return Err(Broken::Short { owner, given: 0, promised: contract.slice });
    }
    let parts = parts(cycle, contract.period);
    let edge = |part: u64| u64::try_from(u128::from(part) * u128::from(cycle) / u128::from(parts)).unwrap_or(u64::MAX);
    let mine: alloc::vec::Vec<Window> = windows.iter().copied().filter(|window| window.owner == owner).collect();
    let mut at = 0;
    for part in 0..parts {
        let (from, to) = (edge(part), edge(part + 1));
        while mine.get(at).is_some_and(|window| window.end <= from) {
            at += 1;
        }
        let behind = mine.get(at..).unwrap_or_default();
        let count = behind.partition_point(|window| window.start < to);
        let (given, promised) =
            (given(behind.get(..count).unwrap_or_default(), owner, from, to), contract.share_of(to - from));
        if given + rounding(to - from) < promised {
            return Err(Broken::Short { owner, given, promised });
        }
    }
    let wait = longest_wait(&mine, cycle, owner).unwrap_or(cycle);
    if contract.latency > 0 && wait > contract.latency {
        return Err(Broken::Late { owner, wait, bound: contract.latency });
    }
    Ok(())
}
