//! Plans as the kernel follows them, with its own arithmetic: what the check says of a table is what happens.

use super::{MS, TERMS, US, contract, kernel_takes, promise};
use crate::{Contract, Table, Window, contract as kept, make};
use core::cell::Cell;
use moira_kernel_core::plan::{self, Position};
use proptest::prelude::*;
use std::vec::Vec;

/// Who had the CPU when: the kernel chooses at the ends of stretches, and at any moment in between.
fn follow(table: &Table, begin: u64, cycles: u64, steps: &[u64]) -> Vec<(usize, u64, u64)> {
    let window = |window: &Window| {
        Cell::new(plan::Window { start: window.start, end: window.end, owner: window.owner as u64 + 1, reserved: 0 })
    };
    let windows: Vec<_> = table.windows.iter().map(window).collect();
    let mut position = Position { index: 0, cycle_start: begin };
    let (mut now, mut had, mut turn) = (begin, Vec::new(), 0);
    while now < begin + cycles * table.cycle {
        let stretch = plan::advance(&mut position, table.cycle, &windows, now);
        // Now and then something wakes up in the middle.
        let step = steps[turn % steps.len()];
        turn += 1;
        let next = if step == 0 { stretch.until } else { stretch.until.min(now + step) };
        if let Some(owner) = stretch.owner {
            had.push((owner as usize - 1, now - begin, next - begin));
        }
        now = next;
    }
    had
}

/// Whether what a context had keeps its contract, counted without the check: each part of each cycle, and each wait.
fn is_kept(had: &[(usize, u64, u64)], table: &Table, cycles: u64, owner: usize, contract: &Contract) -> bool {
    let mine: Vec<(u64, u64)> = had.iter().filter(|one| one.0 == owner).map(|one| (one.1, one.2)).collect();
    let parts = kept::parts(table.cycle, contract.period);
    for cycle in 0..cycles {
        for part in 0..parts {
            let edge = |part: u64| {
                cycle * table.cycle + (u128::from(part) * u128::from(table.cycle) / u128::from(parts)) as u64
            };
            let (from, to) = (edge(part), edge(part + 1));
            let given: u64 = mine.iter().map(|(start, end)| (*end).min(to).saturating_sub((*start).max(from))).sum();
            if given + kept::rounding(to - from) < contract.share_of(to - from) {
                return false;
            }
        }
    }
    contract.latency == 0 || (mine.len() > 1 && mine.windows(2).all(|pair| pair[1].0 - pair[0].1 <= contract.latency))
}

/// Any table that the kernel takes: pairs of a gap and a window.
fn any_table() -> impl Strategy<Value = Table> {
    let piece = (prop_oneof![Just(0u64), 0..50 * US], 2 * US..100 * US, 0usize..3);
    (prop::collection::vec(piece, 1..30), 0..100 * US).prop_map(|(pieces, rest)| {
        let (mut at, mut windows) = (0, Vec::new());
        for (gap, length, owner) in pieces {
            windows.push(Window { start: at + gap, end: at + gap + length, owner });
            at += gap + length;
        }
        Table { cycle: at + rest, windows }
    })
}

fn steps() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![2 => Just(0u64), 1 => 1..200 * US], 1..20)
}

proptest! {
    /// Whatever the windows and whatever is promised: the check says yes if, and only if, the kernel that follows them keeps it.
    #[test]
    fn the_check_is_right_about_any_plan(
        table in any_table(),
        steps in steps(),
        begin in 0u64..1 << 50,
        owner in 0usize..3,
        parts in 1u64..5,
        share in 0u64..110,
        bound in prop_oneof![Just(0u64), 1..200 * US],
    ) {
        prop_assert!(kernel_takes(&table));
        let period = table.cycle / parts + 1;
        // About as much as there is.
        let slice = (table.given(owner) / parts * share / 100).min(period);
        let contract = Contract { slice, period, latency: if slice > 0 { bound } else { 0 }, extra: false };
        let had = follow(&table, begin, 3, &steps);
        let said = kept::check(&table.windows, table.cycle, owner, &contract).is_ok();
        prop_assert_eq!(said, is_kept(&had, &table, 3, owner, &contract), "{:?}", contract);
    }

    /// Random contracts are admitted and then met by a kernel that follows the plan, from any moment on.
    #[test]
    fn what_is_admitted_is_met(contracts in prop::collection::vec(contract(), 1..5), steps in steps(), begin in 0u64..1 << 50) {
        let Ok(table) = make(&contracts, &TERMS) else { return Ok(()) };
        // A plan of thousands of windows says nothing that one of hundreds does not.
        prop_assume!(table.windows.len() < 2_000);
        let steps: Vec<u64> = steps.iter().map(|step| step * 20).collect();
        let had = follow(&table, begin, 2, &steps);
        for (owner, contract) in contracts.iter().enumerate() {
            prop_assert!(is_kept(&had, &table, 2, owner, contract), "{:?}", contract);
        }
    }
}

#[test]
fn a_plan_that_is_a_grain_short_is_found_out() {
    let contracts = [promise(3 * MS, 10 * MS, 0), promise(4 * MS, 20 * MS, 0)];
    let mut table = make(&contracts, &TERMS).unwrap();
    table.windows[0].end -= 2 * US;
    let had = follow(&table, 77, 2, &[0]);
    assert!(!is_kept(&had, &table, 2, table.windows[0].owner, &contracts[table.windows[0].owner]));
}
