//! Earliest deadline first over one cycle, in whole grains.
//!
//! All jobs that start together at the start of the cycle are done at its end, so the schedule repeats. Earliest deadline first finds one
//! whenever there is one (Liu and Layland 1973). Ties go to the shorter period: then a set of harmonic periods gets the
//! same windows in each period, and its waits are as short as its periods.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::Reverse;

/// One contract in grains: `slice` in each of `parts` equal parts of the cycle.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Index of the contract.
    pub owner: usize,
    /// Grains in each part.
    pub slice: u64,
    /// Parts of the cycle.
    pub parts: u64,
}

impl Entry {
    /// First whole grain of a part.
    fn release(&self, part: u64, cycle: u64) -> u64 {
        ratio(part, cycle, self.parts, true)
    }

    /// Grain after the last whole grain of a part.
    fn deadline(&self, part: u64, cycle: u64) -> u64 {
        ratio(part + 1, cycle, self.parts, false)
    }
}

fn ratio(part: u64, cycle: u64, parts: u64, up: bool) -> u64 {
    let product = u128::from(part) * u128::from(cycle);
    let parts = u128::from(parts.max(1));
    let value = if up { product.div_ceil(parts) } else { product / parts };
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A run of grains for an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First grain.
    pub start: u64,
    /// Grain after the last.
    pub end: u64,
    /// Index of the contract.
    pub owner: usize,
}

/// Why there is no schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This contract missed a deadline.
    Missed(usize),
    /// More runs than allowed.
    TooMany,
}

/// The schedule of one cycle of so many grains, with at most `limit` runs.
///
/// # Errors
/// [`Failure`].
pub fn schedule(entries: &[Entry], cycle: u64, limit: usize) -> Result<Vec<Run>, Failure> {
    // (deadline, period rank, index, work left)
    let mut ready: BinaryHeap<Reverse<(u64, u64, usize, u64)>> = BinaryHeap::new();
    let mut waiting: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
    for (index, _) in entries.iter().enumerate() {
        waiting.push(Reverse((0, index, 0)));
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut now = 0;
    loop {
        while let Some(Reverse((release, index, part))) = waiting.peek().copied()
            && release <= now
        {
            waiting.pop();
            let Some(entry) = entries.get(index) else {
                continue;
            };
            ready.push(Reverse((entry.deadline(part, cycle), cycle / entry.parts.max(1), index, entry.slice)));
            if part + 1 < entry.parts {
                waiting.push(Reverse((entry.release(part + 1, cycle), index, part + 1)));
            }
        }
        let next = waiting.peek().map_or(cycle, |Reverse((release, ..))| *release);
        let Some(Reverse((deadline, rank, index, left))) = ready.pop() else {
            if waiting.is_empty() {
                return Ok(runs);
            }
            now = next;
            continue;
        };
        let Some(entry) = entries.get(index) else {
            continue;
        };
        if now + left > deadline {
            return Err(Failure::Missed(entry.owner));
        }
        let end = if next > now { (now + left).min(next) } else { now + left };
        push(&mut runs, Run { start: now, end, owner: entry.owner });
        if runs.len() > limit {
            return Err(Failure::TooMany);
        }
        if now + left > end {
            ready.push(Reverse((deadline, rank, index, now + left - end)));
        }
        now = end;
    }
}

/// Appends a run; joins it with the last one if they touch.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.owner == run.owner && last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}
