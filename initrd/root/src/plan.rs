//! Who runs when: from contracts to the windows of one cycle.
//!
//! Periods are made *harmonic* (each divides the next longer one; the longest is the cycle) by shortening them, with the slice in
//! proportion. Windows are then placed first-fit in the order of periods. What shorter periods took repeats in every longer
//! one, so a place that is free in a context's first period is free in all of them: every context runs at the same
//! offsets in each of its periods, and the longest wait between its windows is its period less its slice.
//!
//! All times are TSC ticks.

use alloc::{vec, vec::Vec};
use core::fmt;

/// What one context is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// Time in each period; 0: nothing but slack.
    pub slice: u64,
    /// The period.
    pub period: u64,
    /// Longest wait between two windows; 0: as the period allows.
    pub latency: u64,
    /// Whether it also gets slack.
    pub extra: bool,
}

/// What the windows are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Length of the cycle if nobody is promised anything.
    pub cycle: u64,
    /// Shortest window worth a switch.
    pub shortest: u64,
    /// Longest window of slack.
    pub quantum: u64,
    /// Whether slack is handed out in windows too: on a CPU without a scheduler.
    pub fill: bool,
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

/// The windows of a cycle, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Length of the cycle.
    pub cycle: u64,
    /// Its windows, sorted and disjoint.
    pub windows: Vec<Window>,
    /// Ticks of the cycle that are promised.
    pub promised: u64,
}

/// Why contracts were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// This contract does not fit beside those with shorter periods.
    Overload(usize),
    /// This contract makes no sense: no period, or more than all of it.
    Impossible(usize),
    /// This context would never run: there is neither a promise nor slack for it.
    Starved(usize),
    /// More windows than a plan holds.
    TooMany,
}

impl PlanError {
    /// The contract it is about.
    #[must_use]
    pub const fn owner(self) -> Option<usize> {
        match self {
            PlanError::Overload(owner) | PlanError::Impossible(owner) | PlanError::Starved(owner) => Some(owner),
            PlanError::TooMany => None,
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PlanError::Overload(_) => "its time does not fit beside what others are promised",
            PlanError::Impossible(_) => "its slice is longer than its period",
            PlanError::Starved(_) => "it would never run: nothing is promised to it and no slack is left",
            PlanError::TooMany => "the periods differ too much: too many windows",
        })
    }
}

/// Most windows of a plan: what the largest plan object holds.
pub const MOST_WINDOWS: usize = (1 << 20) / 32 - 2;

/// `a · b / c`, rounded up.
fn scale(a: u64, b: u64, c: u64) -> u64 {
    u64::try_from((u128::from(a) * u128::from(b)).div_ceil(u128::from(c.max(1)))).unwrap_or(u64::MAX)
}

/// A contract with its harmonic period.
struct Entry {
    owner: usize,
    slice: u64,
    period: u64,
}

/// Contracts with a slice, by harmonic period.
fn harmonic(contracts: &[Contract], shortest: u64) -> Result<Vec<Entry>, PlanError> {
    let mut entries = Vec::new();
    for (owner, contract) in contracts.iter().enumerate().filter(|(_, contract)| contract.slice > 0) {
        if contract.period == 0 || contract.slice > contract.period {
            return Err(PlanError::Impossible(owner));
        }
        let idle = contract.period - contract.slice;
        // The wait is the share that others have of the period: shorten the period until it is short enough.
        let wanted = match contract.latency {
            0 => contract.period,
            latency if idle > latency => {
                u64::try_from(u128::from(contract.period) * u128::from(latency) / u128::from(idle)).unwrap_or(u64::MAX)
            }
            _ => contract.period,
        };
        entries.push((wanted.max(1), Entry { owner, slice: contract.slice, period: contract.period }));
    }
    entries.sort_by_key(|(wanted, entry)| (*wanted, entry.owner));
    let mut previous = 0;
    let mut harmonic = Vec::new();
    for (wanted, entry) in entries {
        let period = wanted.checked_div(previous).map_or(wanted, |times| times * previous);
        let slice = scale(entry.slice, period, entry.period).max(shortest);
        if slice > period {
            return Err(PlanError::Overload(entry.owner));
        }
        harmonic.push(Entry { owner: entry.owner, slice, period });
        previous = period;
    }
    Ok(harmonic)
}

/// Pieces of `free` below `limit` that add up to `need`, first fit; none shorter than `shortest`. `None`: there is not so much.
fn pick(free: &[(u64, u64)], limit: u64, mut need: u64, shortest: u64) -> Option<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    for (start, end) in free.iter().take_while(|piece| piece.0 < limit) {
        let length = (*end).min(limit) - start;
        if length >= need {
            pieces.push((*start, start + need));
            return Some(pieces);
        }
        if length >= shortest {
            pieces.push((*start, start + length));
            // A rest too short for a window becomes one that is long enough.
            need = (need - length).max(shortest);
        }
    }
    None
}

/// Takes `[start, end)`, which is free, out of `free`.
fn take(free: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    let index = free.partition_point(|piece| piece.1 <= start);
    let Some(&(from, to)) = free.get(index) else {
        return;
    };
    let rest = [(from, start), (end, to)].into_iter().filter(|piece| piece.0 < piece.1);
    free.splice(index..=index, rest);
}

/// Makes the plan of one CPU.
///
/// # Errors
/// [`PlanError`]: what was promised cannot be kept, and nothing is.
pub fn make(contracts: &[Contract], terms: &Terms) -> Result<Plan, PlanError> {
    let entries = harmonic(contracts, terms.shortest)?;
    let cycle = entries.last().map_or(terms.cycle, |entry| entry.period);
    let mut free = vec![(0, cycle)];
    let mut windows = Vec::new();
    for entry in &entries {
        let pieces = pick(&free, entry.period, entry.slice, terms.shortest).ok_or(PlanError::Overload(entry.owner))?;
        if windows.len() as u64 + cycle / entry.period * pieces.len() as u64 > MOST_WINDOWS as u64 {
            return Err(PlanError::TooMany);
        }
        for base in (0..cycle / entry.period).map(|turn| turn * entry.period) {
            for (start, end) in &pieces {
                take(&mut free, base + start, base + end);
                windows.push(Window { start: base + start, end: base + end, owner: entry.owner });
            }
        }
    }
    let promised = windows.iter().map(|window| window.end - window.start).sum();
    if terms.fill {
        fill(contracts, terms, &free, &mut windows)?;
    }
    windows.sort_unstable_by_key(|window| window.start);
    windows.dedup_by(|next, last| {
        let joined = last.owner == next.owner && last.end == next.start;
        if joined {
            last.end = next.end;
        }
        joined
    });
    Ok(Plan { cycle, windows, promised })
}

/// Hands out what is free in turns.
fn fill(
    contracts: &[Contract],
    terms: &Terms,
    free: &[(u64, u64)],
    windows: &mut Vec<Window>,
) -> Result<(), PlanError> {
    let takers = contracts.iter().enumerate().filter(|(_, contract)| contract.extra || contract.slice == 0);
    let takers: Vec<usize> = takers.map(|(owner, _)| owner).collect();
    if takers.is_empty() {
        return Ok(());
    }
    let mut turn = 0;
    for (start, end) in free {
        let fair = ((end - start) / takers.len() as u64).min(terms.quantum).max(terms.shortest);
        let mut at = *start;
        while end - at >= terms.shortest {
            if windows.len() >= MOST_WINDOWS {
                return Err(PlanError::TooMany);
            }
            let to = if end - at < fair + terms.shortest { *end } else { at + fair };
            if let Some(owner) = takers.get(turn % takers.len()) {
                windows.push(Window { start: at, end: to, owner: *owner });
            }
            turn += 1;
            at = to;
        }
    }
    let starved = takers.into_iter().find(|owner| !windows.iter().any(|window| window.owner == *owner));
    starved.map_or(Ok(()), |owner| Err(PlanError::Starved(owner)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms { cycle: 10_000_000, shortest: 2_000, quantum: 1_000_000, fill: false };

    fn promise(slice: u64, period: u64, latency: u64) -> Contract {
        Contract { slice, period, latency, extra: false }
    }

    #[test]
    fn harmonic_contracts_keep_their_periods() {
        let plan = make(&[promise(200_000, 1_000_000, 0), promise(1_000_000, 2_000_000, 0)], &TERMS).unwrap();
        assert_eq!((plan.cycle, plan.promised), (2_000_000, 1_400_000));
        let of = |start, end, owner| Window { start, end, owner };
        assert_eq!(
            plan.windows,
            [of(0, 200_000, 0), of(200_000, 1_000_000, 1), of(1_000_000, 1_200_000, 0), of(1_200_000, 1_400_000, 1)]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let contracts = [promise(600_000, 1_000_000, 0), promise(500_000, 1_000_000, 0)];
        assert_eq!(make(&contracts, &TERMS), Err(PlanError::Overload(1)));
        assert_eq!(make(&[promise(2, 1, 0)], &TERMS), Err(PlanError::Impossible(0)));
        assert_eq!(make(&[promise(2, 0, 0)], &TERMS), Err(PlanError::Impossible(0)));
        let fill = Terms { fill: true, ..TERMS };
        let all = [promise(1_000_000, 1_000_000, 0), Contract { extra: true, ..Contract::default() }];
        assert_eq!(make(&all, &fill), Err(PlanError::Starved(1)));
    }

    #[test]
    fn without_contracts_all_get_the_same() {
        let plan = make(&[Contract::default(); 3], &Terms { fill: true, ..TERMS }).unwrap();
        let time = |owner| {
            plan.windows
                .iter()
                .filter(|window| window.owner == owner)
                .map(|window| window.end - window.start)
                .sum::<u64>()
        };
        assert_eq!(plan.cycle, 10_000_000);
        assert!(time(0) >= 3_000_000 && time(1) >= 3_000_000 && time(2) >= 3_000_000);
        assert_eq!(time(0) + time(1) + time(2), 10_000_000);
        assert!(make(&[], &Terms { fill: true, ..TERMS }).unwrap().windows.is_empty());
    }

    /// Longest wait between two windows of a context, over the end of the cycle too.
    fn longest_wait(plan: &Plan, owner: usize) -> u64 {
        let mine: Vec<_> = plan.windows.iter().filter(|window| window.owner == owner).collect();
        let again =
            mine.iter().skip(1).map(|window| window.start).chain(mine.first().map(|window| window.start + plan.cycle));
        mine.iter().zip(again).map(|(window, next)| next - window.end).max().unwrap_or(plan.cycle)
    }

    fn contracts() -> impl Strategy<Value = Vec<Contract>> {
        let one = (
            5_000u64..400_000,
            1_000_000u64..20_000_000,
            prop_oneof![Just(0u64), 500_000u64..5_000_000],
            any::<bool>(),
        );
        prop::collection::vec(
            one.prop_map(|(slice, period, latency, extra)| Contract { slice, period, latency, extra }),
            1..9,
        )
    }

    proptest! {
        #[test]
        fn promises_are_kept(contracts in contracts(), fill: bool) {
            let terms = Terms { fill, ..TERMS };
            match make(&contracts, &terms) {
                Err(error) => {
                    // Refusal needs a reason: nearly all is promised, or far more than that after rounding.
                    prop_assert!(error.owner().is_some());
                }
                Ok(plan) => {
                    let mut at = 0;
                    for window in &plan.windows {
                        prop_assert!(window.start >= at && window.end <= plan.cycle);
                        prop_assert!(window.end - window.start >= terms.shortest);
                        at = window.end;
                    }
                    for (owner, contract) in contracts.iter().enumerate() {
                        let time: u64 = plan.windows.iter().filter(|window| window.owner == owner).map(|window| window.end - window.start).sum();
                        prop_assert!(u128::from(time) * u128::from(contract.period) >= u128::from(contract.slice) * u128::from(plan.cycle));
                        prop_assert!(longest_wait(&plan, owner) <= contract.period);
                        if contract.latency > 0 {
                            prop_assert!(longest_wait(&plan, owner) <= contract.latency, "{} > {}", longest_wait(&plan, owner), contract.latency);
                        }
                    }
                }
            }
        }

        #[test]
        fn little_is_never_refused(count in 1usize..8, period in 1_000_000u64..20_000_000) {
            // A tenth each, in the same period: whatever the order, it fits.
            let contracts = vec![promise(period / 10, period, 0); count];
            prop_assert!(make(&contracts, &TERMS).is_ok());
        }
    }
}
