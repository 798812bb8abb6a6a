//! The windows of one CPU's cycle.
//!
//! The cycle is the least common multiple of the periods where that is short, else a small multiple of the longest period. A period that does not
//! divide it is shortened until it does, its slice in proportion, so nobody's share grows. Windows are made of whole
//! grains: none is too short to be worth its switch. Where a wait is bounded, periods are shortened for it: first as far as would do if the
//! windows stood at the same place in each period, then, if they do not, as far as does in any case.

use crate::{
    contract::{self, Broken, Contract, Window, scale},
    edf::{self, Entry, Failure},
    fill,
};
use alloc::vec::Vec;
use core::fmt;

/// What tables are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The cycle is cut into equal parts of at least this length, of which windows are made: none is shorter.
    pub grain: u64,
    /// Most windows of a table.
    pub windows: usize,
    /// Longest cycle.
    pub longest: u64,
    /// Length of the cycle if nobody is promised anything.
    pub empty: u64,
}

/// Shortest window, in nanoseconds: what a switch costs should be small beside it.
const GRAIN_NS: u64 = 10_000;
/// Longest cycle and cycle of nothing, in nanoseconds.
const LONGEST_NS: u64 = 20_000_000_000;
const EMPTY_NS: u64 = 10_000_000;

impl Terms {
    /// The usual terms, for a CPU with this TSC and plans of so many windows.
    #[must_use]
    pub fn new(tsc_hz: u64, windows: usize) -> Terms {
        Terms {
            // Rounded down, so that a period of n grains' time has n grains. The kernel takes no window of less than 1,000 ticks.
            grain: (u128::from(GRAIN_NS) * u128::from(tsc_hz) / 1_000_000_000).clamp(1_000, 1 << 32) as u64,
            windows,
            longest: ticks(LONGEST_NS, tsc_hz),
            empty: ticks(EMPTY_NS, tsc_hz),
        }
    }
}

/// The windows of a cycle, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Length of the cycle.
    pub cycle: u64,
    /// Sorted and disjoint.
    pub windows: Vec<Window>,
}

impl Table {
    /// Ticks of a cycle that `owner` has.
    #[must_use]
    pub fn given(&self, owner: usize) -> u64 {
        self.windows.iter().filter(|window| window.owner == owner).map(|window| window.end - window.start).sum()
    }

    /// Ticks of a cycle that are promised.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.windows.iter().map(|window| window.end - window.start).sum()
    }

    /// Stretches of a cycle that are nobody's, in order.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let ends = core::iter::once(0).chain(self.windows.iter().map(|window| window.end));
        let starts = self.windows.iter().map(|window| window.start).chain(core::iter::once(self.cycle));
        ends.zip(starts).filter(|(from, to)| from < to)
    }
}

/// Who is refused, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index of the contract that does not fit; `None`: all together.
    pub owner: Option<usize>,
    /// Why.
    pub reason: Reason,
}

/// Why contracts are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The slice is longer than its period, or there is no period.
    Impossible,
    /// The shares add up to more than the CPU: parts per million, all contracts together, rounded up.
    Overload(u64),
    /// The latency bound is shorter than others' windows can be cut: these contracts fit without it.
    Latency(u64),
    /// The shares fit, but not in windows of whole grains with periods that divide one cycle. Parts per million that whole grains take.
    Grain(u64),
    /// The periods differ so much that the table would have more windows than it may.
    Windows,
    /// A period is longer than the longest cycle.
    Period,
    /// Nothing is promised to it, and no slack is left for it: it would never run.
    Starved,
}

impl Reason {
    /// Its number in messages, and what goes with it: parts per million or ticks, else 0.
    #[must_use]
    pub const fn code(self) -> (u64, u64) {
        match self {
            Reason::Impossible => (1, 0),
            Reason::Overload(ppm) => (2, ppm),
            Reason::Latency(bound) => (3, bound),
            Reason::Grain(ppm) => (4, ppm),
            Reason::Windows => (5, 0),
            Reason::Period => (6, 0),
            Reason::Starved => (7, 0),
        }
    }

    /// The reason with this number.
    #[must_use]
    pub const fn from_code(code: u64, with: u64) -> Option<Reason> {
        Some(match code {
            1 => Reason::Impossible,
            2 => Reason::Overload(with),
            3 => Reason::Latency(with),
            4 => Reason::Grain(with),
            5 => Reason::Windows,
            6 => Reason::Period,
            7 => Reason::Starved,
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Impossible => f.write_str("its slice is longer than its period"),
            Reason::Overload(ppm) => {
                write!(f, "the contracts take {}.{:02} % of the CPU", ppm / 10_000, ppm % 10_000 / 100)
            }
            Reason::Latency(bound) => write!(f, "no table keeps its wait below {bound} ticks beside the others"),
            Reason::Grain(ppm) => {
                write!(f, "in whole windows the contracts take {}.{:02} % of the CPU", ppm / 10_000, ppm % 10_000 / 100)
            }
            Reason::Windows => f.write_str("the periods differ too much: too many windows"),
            Reason::Period => f.write_str("its period is longer than the longest cycle"),
            Reason::Starved => f.write_str("it would never run: nothing is promised to it and no slack is left"),
        }
    }
}

const fn refuse(owner: Option<usize>, reason: Reason) -> Refusal {
    Refusal { owner, reason }
}

/// Makes the table of one CPU.
///
/// # Errors
/// [`Refusal`]: what was promised cannot be kept, and nothing is. The reason is true: see [`Reason`].
pub fn make(contracts: &[Contract], terms: &Terms) -> Result<Table, Refusal> {
    let promised: Vec<(usize, &Contract)> =
        contracts.iter().enumerate().filter(|(_, contract)| contract.promises()).collect();
    for (owner, contract) in &promised {
        if !contract.possible() {
            return Err(refuse(Some(*owner), Reason::Impossible));
        }
        if contract.period > terms.longest {
            return Err(refuse(Some(*owner), Reason::Period));
        }
    }
    if promised.is_empty() {
        return Ok(Table { cycle: terms.empty, windows: Vec::new() });
    }
    overload(&promised)?;
    let mut best: Option<Attempt> = None;
    for careful in [false, true] {
        for cycle in cycles(&promised, terms) {
            match attempt(&promised, cycle, careful, terms) {
                Ok(table) => return Ok(table),
                Err(failed) => {
                    if best.is_none_or(|known| failed.rank() < known.rank()) {
                        best = Some(failed);
                    }
                }
            }
        }
        if promised.iter().all(|(_, contract)| contract.latency == 0) {
            break;
        }
    }
    Err(why(contracts, terms, best))
}

/// [`make`], and then the slack in turns of at most `quantum` if there is one: on a CPU without a scheduler.
///
/// # Errors
/// As [`make`]; [`Reason::Starved`] about a contract that promises nothing and got no turn.
pub fn make_full(contracts: &[Contract], terms: &Terms, quantum: Option<u64>) -> Result<Table, Refusal> {
    let mut table = make(contracts, terms)?;
    if let Some(quantum) = quantum
        && let Some(starved) = fill::fill(&mut table, contracts, quantum, terms.grain, terms.windows)
    {
        return Err(refuse(Some(starved), Reason::Starved));
    }
    Ok(table)
}

/// Refuses what is more than the whole CPU, and names the contract with which it became too much.
fn overload(promised: &[(usize, &Contract)]) -> Result<(), Refusal> {
    // Exact: fractions of 2^64, each rounded down; the sum of the rests is below the number of contracts.
    let fraction = |contract: &Contract| (u128::from(contract.slice) << 64) / u128::from(contract.period.max(1));
    let mut sum = 0_u128;
    let mut guilty = None;
    for (owner, contract) in promised {
        sum += fraction(contract);
        if sum > 1 << 64 && guilty.is_none() {
            guilty = Some(*owner);
        }
    }
    match guilty {
        None => Ok(()),
        Some(owner) => {
            let ppm = (sum * 1_000_000).div_ceil(1 << 64);
            Err(refuse(Some(owner), Reason::Overload(u64::try_from(ppm).unwrap_or(u64::MAX))))
        }
    }
}

/// Why an attempt made no table.
#[derive(Clone, Copy, Debug)]
enum Attempt {
    Missed { owner: usize, ppm: u64 },
    Broken(Broken, u64),
    Windows,
}

impl Attempt {
    /// Which failure tells most: the lowest.
    const fn rank(&self) -> u8 {
        match self {
            Attempt::Broken(Broken::Late { .. }, _) => 0,
            Attempt::Missed { .. } => 1,
            Attempt::Broken(Broken::Short { .. }, _) => 2,
            Attempt::Windows => 3,
        }
    }
}

/// The reason to tell. That it is a latency bound is only said if the contracts fit without it.
fn why(contracts: &[Contract], terms: &Terms, best: Option<Attempt>) -> Refusal {
    let bounded = contracts.iter().enumerate().filter(|(_, contract)| contract.promises() && contract.latency > 0);
    if let Some((tightest, bound)) =
        bounded.map(|(owner, contract)| (owner, contract.latency)).min_by_key(|entry| entry.1)
    {
        let loose: Vec<Contract> = contracts.iter().map(|contract| Contract { latency: 0, ..*contract }).collect();
        if let Err(refusal) = make(&loose, terms) {
            return refusal;
        }
        let owner = match best {
            Some(Attempt::Broken(Broken::Late { owner, .. }, _)) => owner,
            _ => tightest,
        };
        let bound = contracts.get(owner).map_or(bound, |contract| contract.latency);
        return refuse(Some(owner), Reason::Latency(bound));
    }
    match best {
        Some(Attempt::Missed { owner, ppm }) => refuse(Some(owner), Reason::Grain(ppm)),
        Some(Attempt::Broken(Broken::Short { owner, .. } | Broken::Late { owner, .. }, ppm)) => {
            refuse(Some(owner), Reason::Grain(ppm))
        }
        Some(Attempt::Windows) | None => refuse(None, Reason::Windows),
    }
}

/// Lengths of the cycle to try, the likeliest first.
fn cycles(promised: &[(usize, &Contract)], terms: &Terms) -> Vec<u64> {
    let longest = promised.iter().map(|(_, contract)| contract.period).max().unwrap_or(terms.empty);
    let mut list = Vec::new();
    let mut common = Some(1);
    for (_, contract) in promised {
        common = common.and_then(|so_far| multiple(so_far, contract.period)).filter(|common| *common <= terms.longest);
    }
    list.extend(common);
    list.extend((1..=8).map(|times| longest.saturating_mul(times)));
    // A little less, so that grains are whole ticks.
    let whole: Vec<u64> = list.iter().map(|ticks| ticks / terms.grain.max(1) * terms.grain.max(1)).collect();
    list.extend(whole);
    list.retain(|cycle| *cycle > 0 && *cycle <= terms.longest);
    list.dedup();
    list
}

/// Least common multiple.
fn multiple(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).checked_mul(b)
}

/// The longest period that a contract's wait allows.
fn period_for(contract: &Contract, careful: bool) -> u64 {
    let idle = contract.period - contract.slice;
    // Windows at the same place in each period: the wait is the period less the slice. Anywhere: up to twice that.
    let bound = if careful { contract.latency / 2 } else { contract.latency };
    if contract.latency == 0 || idle <= bound {
        return contract.period;
    }
    u64::try_from(u128::from(contract.period) * u128::from(bound) / u128::from(idle)).unwrap_or(contract.period)
}

fn attempt(promised: &[(usize, &Contract)], cycle: u64, careful: bool, terms: &Terms) -> Result<Table, Attempt> {
    // The cycle in equal grains, each at least as long as wanted; the ticks at which they begin are rounded down.
    let grains = (cycle / terms.grain.max(1)).max(1);
    let begin = |grain: u64| u64::try_from(u128::from(grain) * u128::from(cycle) / u128::from(grains)).unwrap_or(cycle);
    let mut entries: Vec<Entry> = Vec::new();
    let (mut taken, mut windows) = (0_u128, 0_u64);
    for (owner, contract) in promised {
        // Parts of parts: what keeps the share of each keeps that of the whole.
        let parts = contract::parts(cycle, contract.period);
        let parts = parts * contract::parts(cycle, period_for(contract, careful)).div_ceil(parts);
        windows = windows.saturating_add(parts);
        // The longest part decides, so that the shortest gets its share too.
        let part = cycle.div_ceil(parts);
        let least = contract.share_of(part).saturating_sub(contract::rounding(part));
        let slice = scale(least, grains, cycle).max(1);
        taken += u128::from(slice) * u128::from(parts);
        entries.push(Entry { owner: *owner, slice, parts });
    }
    if windows > terms.windows as u64 {
        return Err(Attempt::Windows);
    }
    let ppm = u64::try_from((taken * 1_000_000).div_ceil(u128::from(grains.max(1)))).unwrap_or(u64::MAX);
    let runs = edf::schedule(&entries, grains, terms.windows).map_err(|failure| match failure {
        Failure::Missed(owner) => Attempt::Missed { owner, ppm },
        Failure::TooMany => Attempt::Windows,
    })?;
    let windows: Vec<Window> =
        runs.iter().map(|run| Window { start: begin(run.start), end: begin(run.end), owner: run.owner }).collect();
    for (owner, contract) in promised {
        contract::check(&windows, cycle, *owner, contract).map_err(|broken| Attempt::Broken(broken, ppm))?;
    }
    Ok(Table { cycle, windows })
}

/// Ticks in so many nanoseconds.
#[must_use]
pub fn ticks(nanoseconds: u64, tsc_hz: u64) -> u64 {
    scale(nanoseconds, tsc_hz, 1_000_000_000)
}
