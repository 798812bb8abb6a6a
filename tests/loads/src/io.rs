//! A task that works in bursts: `run_us` of work, `sleep_us` of sleep. How late it wakes, and how long after its time the work is done, is
//! what a scheduler's latency feels like.

use crate::{stretch, time};
use moira_rt::{
    Env,
    sys::{self, Deadline},
};

/// Measures, and says what was seen.
pub fn run(env: &Env) {
    let (from, to) = stretch(env);
    let (run, sleep) = (time(env, "run_us", 200), time(env, "sleep_us", 2_000));
    crate::sleep_until(env, from);
    let (mut wakes, mut sum, mut worst, mut bursts, mut slowest) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut wanted = from;
    while wanted < to {
        // Waiting for nothing but the deadline.
        let _ = env.notification().wait(Deadline(wanted));
        let now = sys::now();
        let late = now.saturating_sub(wanted);
        wakes += 1;
        sum += late;
        worst = worst.max(late);
        let mut done = 0;
        let mut last = now;
        // Work is what it ran itself, not what passed.
        while done < run && last < to {
            let now = sys::now();
            if now - last < 150 {
                done += now - last;
            }
            last = now;
        }
        if done >= run {
            bursts += 1;
            slowest = slowest.max(last - wanted);
        }
        wanted = last + sleep;
    }
    crate::sleep_until(env, to + time(env, "print_ms", 0));
    let mean = sum / wakes.max(1);
    log::info!(
        "data: {{\"kind\":\"latency\",\"task\":\"{}\",\"wakes\":{wakes},\"bursts\":{bursts},\"mean\":{mean},\"worst\":{worst},\"slowest\":{slowest}}}",
        env.info.name
    );
}
