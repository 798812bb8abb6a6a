//! Plans: windows of one cycle. Sorted, disjoint, inside the cycle; what they leave is slack.

use core::cell::Cell;

/// One window: `[start, end)` in ticks from the start of the cycle, for the context named by `owner` (not 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// First tick.
    pub start: u64,
    /// Tick after the last.
    pub end: u64,
    /// The context.
    pub owner: u64,
    /// Zero.
    pub reserved: u64,
}

/// Least length of a window and of a cycle, in ticks: shorter ones would be eaten by the switch itself.
pub const SHORTEST: u64 = 1_000;
/// Longest cycle, in ticks (hours on any processor; keeps all sums far from overflow).
pub const LONGEST: u64 = 1 << 44;

/// Whether a window may follow one that ends at `previous_end`.
#[must_use]
pub fn may_append(length: u64, previous_end: u64, start: u64, end: u64) -> bool {
    start >= previous_end && end <= length && end > start && end - start >= SHORTEST
}

/// Whether a cycle may have this length.
#[must_use]
pub fn valid_length(length: u64) -> bool {
    (SHORTEST..=LONGEST).contains(&length)
}

/// Where the plan stands: which window, in which cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Index of the first window that has not ended.
    pub index: usize,
    /// Tick at which the current cycle began.
    pub cycle_start: u64,
}

/// The stretch of time that holds `now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Owner of the window, or `None` in slack.
    pub owner: Option<u64>,
    /// Tick (absolute) at which this stretch ends.
    pub until: u64,
}

/// Moves a position on to `now` and says what stretch it is in. Whole cycles that were missed are skipped by division; within the cycle
/// the search is binary, so the cost is bounded by the logarithm of the windows' number.
pub fn advance(position: &mut Position, length: u64, windows: &[Cell<Window>], now: u64) -> Stretch {
    let mut offset = now.wrapping_sub(position.cycle_start);
    if offset >= length {
        let cycles = if offset < 2 * length { 1 } else { offset / length };
        position.cycle_start += cycles * length;
        offset -= cycles * length;
        position.index = 0;
    }
    // Usually the window is the same or the next.
    let over = |window: &Cell<Window>| window.get().end <= offset;
    for _ in 0..2 {
        if windows.get(position.index).is_some_and(over) {
            position.index += 1;
        }
    }
    if windows.get(position.index).is_some_and(over) {
        position.index = windows.partition_point(over);
    }
    let (owner, end) = match windows.get(position.index).map(Cell::get) {
        None => (None, length),
        Some(next) if offset < next.start => (None, next.start),
        Some(window) => (Some(window.owner), window.end),
    };
    Stretch { owner, until: position.cycle_start + end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(cuts: Vec<(u64, u64)>) -> (Vec<Window>, u64) {
        let (mut at, mut list) = (0, Vec::new());
        for (i, (gap, width)) in cuts.into_iter().enumerate() {
            let start = at + gap;
            let end = start + SHORTEST + width;
            assert!(may_append(LONGEST, at, start, end));
            list.push(Window { start, end, owner: i as u64 + 1, reserved: 0 });
            at = end;
        }
        (list, at + 5_000)
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(cuts in prop::collection::vec((0u64..3_000, 0u64..5_000), 0..40), steps in prop::collection::vec(0u64..400_000, 1..60), begin in 0u64..1 << 50) {
            let (list, length) = windows(cuts);
            let cells: Vec<_> = list.iter().copied().map(Cell::new).collect();
            let mut position = Position { index: 0, cycle_start: begin };
            let mut now = begin;
            for step in steps {
                now += step;
                let stretch = advance(&mut position, length, &cells, now);
                let offset = (now - begin) % length;
                let owner = list.iter().find(|w| w.start <= offset && offset < w.end).map(|w| w.owner);
                prop_assert_eq!(stretch.owner, owner);
                prop_assert!(stretch.until > now);
                // Nothing changes before `until`.
                let last = (stretch.until - 1 - begin) % length;
                prop_assert_eq!(list.iter().find(|w| w.start <= last && last < w.end).map(|w| w.owner), owner);
            }
        }
    }
}
