//! Whatever is admitted is kept, and whatever is refused is refused for the reason that is given.

use crate::{
    Admission, Contract, Reason, Refusal, Table, Terms, Window,
    contract::{self, longest_wait},
    fill::fill,
    make, table,
};
use moira_kernel_core::plan;
use proptest::prelude::*;
use std::vec::Vec;

mod simulation;

const TERMS: Terms = Terms { grain: 1_000, windows: 32_000, longest: 20_000_000_000, empty: 10_000_000 };
const US: u64 = 1_000;
const MS: u64 = 1_000_000;

fn promise(slice: u64, period: u64, latency: u64) -> Contract {
    Contract { slice, period, latency, extra: false }
}

/// What the kernel checks of a plan, window by window.
fn kernel_takes(table: &Table) -> bool {
    let mut previous = 0;
    plan::valid_length(table.cycle)
        && table.windows.iter().all(|window| {
            let good = plan::may_append(table.cycle, previous, window.start, window.end);
            previous = window.end;
            good
        })
}

fn exact_sum_is_above_one(contracts: &[Contract]) -> bool {
    // Sums of fractions with 100-bit precision, rounded down: never above one if the true sum is not.
    let sum: f64 = contracts.iter().map(|contract| contract.slice as f64 / contract.period as f64).sum();
    sum > 1.0 - 1e-9
}

#[test]
fn harmonic_contracts_get_the_same_windows_in_each_period() {
    let table = make(&[promise(2 * MS, 10 * MS, 0), promise(10 * MS, 20 * MS, 0)], &TERMS).unwrap();
    let of = |start: u64, end: u64, owner| Window { start: start * MS, end: end * MS, owner };
    assert_eq!(table.cycle, 20 * MS);
    assert_eq!(table.windows, [of(0, 2, 0), of(2, 10, 1), of(10, 12, 0), of(12, 14, 1)]);
    assert_eq!(longest_wait(&table.windows, table.cycle, 0), Some(8 * MS));
}

#[test]
fn a_latency_bound_splits_windows() {
    let driver = promise(MS, 10 * MS, 500 * US);
    let table = make(&[driver, promise(30 * MS, 100 * MS, 0)], &TERMS).unwrap();
    assert!(longest_wait(&table.windows, table.cycle, 0).unwrap() <= 500 * US);
    assert!(table.given(0) * 10 >= table.cycle);
}

#[test]
fn the_whole_cpu_can_be_promised() {
    let table = make(&[promise(50 * MS, 100 * MS, 0), promise(5 * MS, 10 * MS, 0)], &TERMS).unwrap();
    assert_eq!(table.promised(), table.cycle);
}

#[test]
fn periods_from_a_tenth_of_a_millisecond_to_seconds() {
    let table = make(&[promise(10 * US, 100 * US, 0), promise(500 * MS, 2_000 * MS, 0)], &TERMS).unwrap();
    assert!(table.windows.len() >= 20_000);
    assert!(kernel_takes(&table));
}

#[test]
fn refusals_name_the_contract_and_the_reason() {
    let both = [promise(600, 1_000, 0), promise(500, 1_000, 0)].map(|c| promise(c.slice * US, c.period * US, 0));
    let refusal = make(&both, &TERMS).unwrap_err();
    assert_eq!((refusal.owner, refusal.reason), (Some(1), Reason::Overload(1_100_000)));
    assert_eq!(make(&[promise(2, 1, 0)], &TERMS).unwrap_err().reason, Reason::Impossible);
    assert_eq!(make(&[promise(2, 0, 0)], &TERMS).unwrap_err().reason, Reason::Impossible);
    assert_eq!(make(&[promise(2, TERMS.longest + 1, 0)], &TERMS).unwrap_err().reason, Reason::Period);
    let few = Terms { windows: 100, ..TERMS };
    let apart = [promise(10 * US, 100 * US, 0), promise(500 * MS, 2_000 * MS, 0)];
    assert_eq!(make(&apart, &few).unwrap_err().reason, Reason::Windows);
    // Three times 333 grains and a bound that a window of a grain cannot keep.
    let tight = [promise(5 * MS, 10 * MS, 600), promise(4 * MS, 10 * MS, 0)];
    assert_eq!(make(&tight, &TERMS).unwrap_err().reason, Reason::Latency(600));
}

#[test]
fn placement_finds_room_on_another_cpu_and_gives_it_back() {
    let mut book = Admission::new(&[None, None], TERMS);
    let first = book.enter(promise(7 * MS, 10 * MS, 0), None).unwrap();
    let second = book.enter(promise(6 * MS, 10 * MS, 0), None).unwrap();
    assert_ne!(first.cpu, second.cpu);
    let refused = book.enter(promise(5 * MS, 10 * MS, 0), None).unwrap_err();
    // Each CPU says why, the emptier one first; together there would be room.
    assert_eq!(refused.cpus.iter().map(|said| said.0).collect::<Vec<_>>(), [second.cpu, first.cpu]);
    assert!(matches!(refused.first().1.reason, Reason::Overload(1_100_000)));
    assert_eq!((book.room_ppm(first.cpu), refused.room_ppm), (300_000, 700_000));
    assert_eq!(book.leave(first.id), Some(first.cpu));
    assert!(book.table(first.cpu).unwrap().windows.is_empty());
    assert!(book.leave(first.id).is_none());
    assert_eq!(book.enter(promise(5 * MS, 10 * MS, 0), None).unwrap().cpu, first.cpu);
    assert!(book.enter(promise(MS, 10 * MS, 0), Some(2)).unwrap_err().cpus.is_empty());
}

#[test]
fn a_contract_moves_if_the_other_cpu_takes_it() {
    let mut book = Admission::new(&[None, None], TERMS);
    let here = book.enter(promise(6 * MS, 10 * MS, 0), Some(0)).unwrap();
    book.enter(promise(5 * MS, 10 * MS, 0), Some(1)).unwrap();
    assert!(book.shift(here.id, 1).unwrap().is_err());
    assert_eq!(book.room_ppm(0), 400_000);
    let small = book.enter(promise(4 * MS, 10 * MS, 0), Some(0)).unwrap();
    assert_eq!(book.shift(small.id, 1), Some(Ok(0)));
    assert_eq!((book.room_ppm(0), book.room_ppm(1)), (400_000, 100_000));
    assert_eq!(book.leave(small.id), Some(1));
    assert_eq!(book.shift(small.id, 0), None);
}

#[test]
fn a_cpu_without_a_scheduler_has_room_for_all_who_live_on_slack() {
    let mut book = Admission::new(&[Some(MS)], TERMS);
    let slack = Contract { extra: true, ..Contract::default() };
    book.enter(slack, None).unwrap();
    let refused = book.enter(promise(10 * MS, 10 * MS, 0), None).unwrap_err();
    assert_eq!(refused.first().1, Refusal { owner: None, reason: Reason::Starved });
    book.enter(promise(9 * MS, 10 * MS, 0), None).unwrap();
    assert!(book.table(0).unwrap().given(0) > 0);
}

#[test]
fn a_cpu_can_be_full_whatever_its_clock() {
    for tsc_hz in [1_000_000_000, 2_596_367_000, 2_419_199_999, 3_792_871_113, 100_000_000] {
        let terms = Terms::new(tsc_hz, 32_000);
        let fifth = promise(table::ticks(2_000_000, tsc_hz), table::ticks(10_000_000, tsc_hz), 0);
        let made = make(&[fifth; 5], &terms);
        // What makes the whole: a fifth is a fifth up to the rounding of ticks.
        assert!(made.is_ok() || fifth.slice * 5 > fifth.period, "{tsc_hz}: {made:?}");
        assert!(make(&[fifth; 4], &terms).is_ok());
    }
}

#[test]
fn periods_that_were_rounded_to_ticks_still_divide_each_other() {
    // 10 ms, 1 ms and their slices on a TSC of 999.9994 MHz.
    let contracts = [promise(499_999, 9_999_994, 0), promise(199_999, 999_999, 0), promise(2_999_998, 9_999_994, 0)];
    let table = make(&contracts, &Terms::new(999_999_400, 32_000)).unwrap();
    assert_eq!(table.cycle, 9_999_994);
    assert!((0..3).all(|owner| table.given(owner) <= contracts[owner].share_of(table.cycle) + 10), "{table:?}");
}

#[test]
fn reasons_keep_their_numbers() {
    for code in 1..=7 {
        let reason = Reason::from_code(code, 5).unwrap();
        assert_eq!(reason.code().0, code);
        assert!(reason.code().1 == 5 || reason.code().1 == 0);
    }
    assert_eq!(Reason::from_code(8, 0), None);
}

#[test]
fn slack_is_handed_out_in_turns() {
    let slack = Contract { extra: true, ..Contract::default() };
    let contracts = [promise(5 * MS, 10 * MS, 0), slack, slack];
    let mut table = make(&contracts, &TERMS).unwrap();
    assert_eq!(fill(&mut table, &contracts, MS, 2_000, 1_000), None);
    assert!(kernel_takes(&table));
    assert_eq!(table.given(1) + table.given(2), 5 * MS);
    assert!(table.given(1) >= 2 * MS && table.given(2) >= 2 * MS);
    let alone = [promise(4 * MS, 10 * MS, 0), Contract { extra: true, ..promise(MS, 10 * MS, 0) }];
    let mut table = make(&alone, &TERMS).unwrap();
    let before = table.windows.len() + table.gaps().count();
    assert_eq!(fill(&mut table, &alone, MS, 2_000, 1_000), None);
    assert_eq!((table.given(1), table.windows.len()), (6 * MS, before), "no turns for one");
    let full = [promise(10 * MS, 10 * MS, 0), slack];
    let mut table = make(&full, &TERMS).unwrap();
    assert_eq!(fill(&mut table, &full, MS, 2_000, 1_000), Some(1));
}

fn contract() -> impl Strategy<Value = Contract> {
    let period = prop_oneof![
        100 * US..MS,
        MS..20 * MS,
        20 * MS..1_000 * MS,
        prop::sample::select(&[1, 2, 5, 10, 20, 50, 100][..]).prop_map(|ms| ms * MS)
    ];
    (period, 1u64..600, prop_oneof![3 => Just(0u64), 1 => 5u64..100]).prop_map(|(period, permille, bound)| {
        let slice = (period / 1_000 * permille).max(2_000);
        Contract { slice, period, latency: period / 100 * bound, extra: false }
    })
}

proptest! {
    /// Admitted: the kernel takes the table and it breaks no contract. Refused: the reason is true.
    #[test]
    fn kept_or_refused_for_a_true_reason(contracts in prop::collection::vec(contract(), 1..8)) {
        match make(&contracts, &TERMS) {
            Ok(table) => {
                prop_assert!(kernel_takes(&table));
                for (owner, contract) in contracts.iter().enumerate() {
                    prop_assert_eq!(contract::check(&table.windows, table.cycle, owner, contract), Ok(()));
                    // Counted anew, by another rule: over any whole number of cycles the share is what was promised.
                    let given = table.given(owner) + table.cycle / 1_000_000 + 2 * (table.cycle / contract.period + 1);
                    prop_assert!(u128::from(given) * u128::from(contract.period) >= u128::from(contract.slice) * u128::from(table.cycle));
                }
            }
            Err(refusal) => match refusal.reason {
                Reason::Impossible => prop_assert!(!contracts[refusal.owner.unwrap()].possible()),
                Reason::Overload(ppm) => {
                    prop_assert!(exact_sum_is_above_one(&contracts) && ppm > 1_000_000);
                }
                Reason::Latency(bound) => {
                    let loose: Vec<Contract> = contracts.iter().map(|contract| Contract { latency: 0, ..*contract }).collect();
                    prop_assert!(make(&loose, &TERMS).is_ok());
                    prop_assert_eq!(contracts[refusal.owner.unwrap()].latency, bound);
                }
                // Nearly full: rounding up to grains took the rest, or cut periods did.
                Reason::Grain(ppm) => prop_assert!(ppm > 950_000, "{}", ppm),
                Reason::Windows => {
                    let shortest = contracts.iter().map(|c| c.period.min(if c.latency > 0 { c.latency } else { u64::MAX })).min().unwrap();
                    let longest = contracts.iter().map(|c| c.period).max().unwrap();
                    prop_assert!(longest / shortest * contracts.len() as u64 > 100, "{} {}", longest, shortest);
                }
                Reason::Starved => prop_assert!(false, "no slack was asked for"),
                Reason::Period => prop_assert!(contracts[refusal.owner.unwrap()].period > TERMS.longest),
            },
        }
    }

    /// A window taken away or moved is found out by the check.
    #[test]
    fn the_check_can_fail(contracts in prop::collection::vec(contract(), 1..6), pick: prop::sample::Index) {
        let Ok(table) = make(&contracts, &TERMS) else { return Ok(()) };
        let index = pick.index(table.windows.len());
        let mut windows = table.windows.clone();
        let owner = windows[index].owner;
        windows.remove(index);
        let kept = contract::check(&windows, table.cycle, owner, &contracts[owner]);
        // What was rounded up to whole grains may bear a loss only where the slice is a few grains.
        let rounded = table.cycle / 1_000_000 + 2 * (table.cycle / contracts[owner].period + 2);
        let slack = (table.given(owner) + rounded).saturating_sub(contracts[owner].share_of(table.cycle));
        let lost = table.windows[index].end - table.windows[index].start;
        prop_assert!(kept.is_err() || slack >= lost);
    }

    #[test]
    fn who_was_let_in_stays_in(contracts in prop::collection::vec((contract(), prop::option::of(0usize..3)), 1..12), leave in any::<u32>(), shift in any::<u32>()) {
        let mut book = Admission::new(&[None; 3], TERMS);
        let mut inside = Vec::new();
        let kept = |book: &Admission| {
            for cpu in 0..3 {
                let table = book.table(cpu).unwrap();
                for (owner, (_, contract)) in book.members(cpu).enumerate() {
                    prop_assert_eq!(contract::check(&table.windows, table.cycle, owner, &contract), Ok(()));
                }
            }
            Ok(())
        };
        for (index, (contract, cpu)) in contracts.into_iter().enumerate() {
            if let Ok(placed) = book.enter(contract, cpu) {
                prop_assert!(cpu.is_none_or(|cpu| cpu == placed.cpu));
                inside.push(placed);
            }
            kept(&book)?;
            if shift >> index & 1 == 1 && let Some(last) = inside.last_mut() && let Some(Ok(from)) = book.shift(last.id, index % 3) {
                prop_assert_eq!(from, last.cpu);
                last.cpu = index % 3;
                kept(&book)?;
            }
            if leave >> index & 1 == 1 && let Some(gone) = inside.pop() {
                prop_assert_eq!(book.leave(gone.id), Some(gone.cpu));
                kept(&book)?;
            }
        }
        prop_assert_eq!(inside.len(), (0..3).map(|cpu| book.members(cpu).count()).sum::<usize>());
    }
}
