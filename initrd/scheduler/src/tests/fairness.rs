//! Shares and wake-up latency of each policy, in a simulator: one CPU, all of it slack.

use super::*;
use crate::policy::Policy;

/// What a simulated context does.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Always wants to run.
    Greedy,
    /// Runs for the first number of ticks, then sleeps for the second.
    Bursts(u64, u64),
}

struct Outcome {
    ran: Vec<u64>,
    /// Longest time from wake-up to the first tick.
    latency: Vec<u64>,
    rounds: u64,
}

/// Runs a policy for so many ticks. Nothing costs time but the contexts themselves.
fn simulate(policy: &mut dyn Policy, loads: &[Load], length: u64) -> Outcome {
    let count = loads.len();
    let mut outcome = Outcome { ran: vec![0; count], latency: vec![0; count], rounds: 0 };
    // Ticks left of the burst (awake) and when it wakes (asleep); when it woke, until it runs.
    let mut left: Vec<u64> =
        loads.iter().map(|load| if let Load::Bursts(run, _) = load { *run } else { u64::MAX }).collect();
    let mut asleep: Vec<Option<u64>> = vec![None; count];
    let mut woke: Vec<Option<u64>> = vec![Some(0); count];
    (0..count).for_each(|context| policy.wake(context, 0));
    let mut now = 0;
    while now < length {
        outcome.rounds += 1;
        for context in 0..count {
            if asleep[context].is_some_and(|at| at <= now) {
                asleep[context] = None;
                woke[context] = Some(now);
                policy.wake(context, now);
            }
        }
        let next = asleep.iter().flatten().min().copied().unwrap_or(length).min(length);
        let Some(choice) = policy.choose(now) else {
            now = next.max(now + 1);
            continue;
        };
        let context = choice.context;
        assert!(asleep[context].is_none(), "chose a blocked context");
        assert!(choice.until > now);
        if let Some(since) = woke[context].take() {
            outcome.latency[context] = outcome.latency[context].max(now - since);
        }
        let used = (choice.until - now).min(left[context]).min(next.max(now + 1) - now);
        now += used;
        outcome.ran[context] += used;
        policy.ran(context, used, now);
        if let Load::Bursts(run, sleep) = loads[context] {
            left[context] -= used;
            if left[context] == 0 {
                left[context] = run;
                asleep[context] = Some(now + sleep);
                policy.block(context, now);
            }
        }
    }
    outcome
}

const QUANTUM: u64 = 1_000;

fn weighted(weights: &[u64]) -> Vec<Share> {
    weights.iter().map(|weight| Share { weight: *weight, ..Share::EQUAL }).collect()
}

proptest! {
    /// Greedy contexts get what their weights say, within a quantum for each of them.
    #[test]
    fn greedy_contexts_share_by_weight(weights in prop::collection::vec(1u64..20, 1..8), name in prop::sample::select(&["atropos", "bvt"][..])) {
        let length = 2_000_000;
        let mut policy = by_name(name, &weighted(&weights), QUANTUM).unwrap();
        let outcome = simulate(&mut *policy, &vec![Load::Greedy; weights.len()], length);
        let sum: u64 = weights.iter().sum();
        for (ran, weight) in outcome.ran.iter().zip(&weights) {
            let fair = length * weight / sum;
            prop_assert!(ran.abs_diff(fair) <= QUANTUM * 20 * weights.len() as u64, "{:?} for {:?}", outcome.ran, weights);
        }
        prop_assert!(outcome.rounds <= 2 * length / QUANTUM + 100);
    }

    /// Round robin gives the same to all.
    #[test]
    fn round_robin_is_equal(count in 1usize..9) {
        let mut policy = by_name("round-robin", &vec![Share::EQUAL; count], QUANTUM).unwrap();
        let outcome = simulate(&mut *policy, &vec![Load::Greedy; count], 1_000_000);
        let (least, most) = (outcome.ran.iter().min().unwrap(), outcome.ran.iter().max().unwrap());
        prop_assert!(most - least <= QUANTUM);
    }

    /// Atropos: slices that fit are had in full, whatever the others do.
    #[test]
    fn slices_that_fit_are_had(slices in prop::collection::vec((1u64..20, 2u64..40), 1..6), burst in 1u64..5_000) {
        let count = slices.len() as u64;
        // At most nine tenths in sum.
        let shares: Vec<Share> = slices.iter().map(|(percent, period)| Share { slice: period * 1_000 * percent.min(&(90 / count)) / 100, period: period * 1_000, ..Share::EQUAL }).collect();
        let mut with_rest = shares.clone();
        with_rest.extend([Share::EQUAL, Share::EQUAL]);
        let mut loads = vec![Load::Greedy; shares.len()];
        loads.extend([Load::Greedy, Load::Bursts(burst, burst)]);
        let length = 4_000_000;
        let mut policy = by_name("atropos", &with_rest, QUANTUM).unwrap();
        let outcome = simulate(&mut *policy, &loads, length);
        for (ran, share) in outcome.ran.iter().zip(&shares) {
            let promised = length / share.period * share.slice;
            prop_assert!(*ran + share.slice >= promised, "{ran} of {promised}");
        }
    }

    /// Nobody who can run is forgotten, under any policy and load.
    #[test]
    fn nobody_starves(loads in prop::collection::vec(prop_oneof![Just(Load::Greedy), (1u64..3_000, 1u64..3_000).prop_map(|(run, sleep)| Load::Bursts(run, sleep))], 1..8), policy in 0..POLICIES.len()) {
        let shares: Vec<Share> = (0..loads.len()).map(|index| Share { weight: 1 + index as u64 % 3, warp: index as u64 % 2 * 700, ..Share::EQUAL }).collect();
        let mut policy = (POLICIES[policy].1)(&shares, QUANTUM);
        let outcome = simulate(&mut *policy, &loads, 1_000_000);
        for index in 0..loads.len() {
            // A turn of everybody, with the weights and the warps there are.
            prop_assert!(outcome.latency[index] <= 30 * QUANTUM * loads.len() as u64, "{index}: {:?} {:?}", outcome.latency, loads);
            prop_assert!(outcome.ran[index] > 0);
        }
    }
}

#[test]
fn tickets_are_shares_in_the_long_run() {
    let mut policy = by_name("lottery", &weighted(&[1, 2, 5]), QUANTUM).unwrap();
    let outcome = simulate(&mut *policy, &[Load::Greedy; 3], 20_000_000);
    for (ran, weight) in outcome.ran.iter().zip([1_u64, 2, 5]) {
        // 20,000 draws: three standard deviations are below 1.1 % of all.
        assert!(ran.abs_diff(20_000_000 * weight / 8) < 220_000, "{:?}", outcome.ran);
    }
}

#[test]
fn warp_shortens_the_latency_of_the_interactive() {
    let loads = [Load::Greedy, Load::Greedy, Load::Greedy, Load::Bursts(200, 9_000)];
    let latency = |warp| {
        let mut shares = vec![Share::EQUAL; 4];
        shares[3].warp = warp;
        simulate(&mut *by_name("bvt", &shares, 10_000).unwrap(), &loads, 3_000_000)
    };
    let (without, with) = (latency(0), latency(50_000));
    assert!(with.latency[3] == 0 && without.latency[3] > 1_000, "{} {}", with.latency[3], without.latency[3]);
    // The greedy ones still share evenly.
    assert!(with.ran[..3].iter().all(|ran| ran.abs_diff(with.ran[0]) <= 20_000));
}

#[test]
fn policies_are_found_by_name() {
    for (name, _) in POLICIES {
        assert!(by_name(name, &[Share::EQUAL], 1).is_some());
    }
    assert!(by_name("no-such-policy", &[], 1).is_none());
}
