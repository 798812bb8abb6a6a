//! What a task that always runs can see of its time: when its windows begin, and how long it waits between them.
//!
//! It reads the TSC all the time. A step far longer than the loop is time that went elsewhere. Its windows come at the same offsets in
//! each cycle of the plan, so a start that is later than the earliest one at this offset is late by the difference.

use crate::{stretch, time};
use alloc::vec::Vec;
use moira_rt::{
    Env,
    sys::{self, Endpoint},
};

/// Steps longer than this are time of others.
const STEP: u64 = 150;
/// Those longer than this are others' windows; shorter ones are interrupts.
const WINDOW: u64 = 5_000;
/// Offsets closer than this are the same window.
const NEAR: u64 = 50_000;

/// Starts of one window of the cycle.
struct Start {
    first: u64,
    last: u64,
    count: u64,
}

#[derive(Default)]
struct Seen {
    ran: u64,
    /// Taken in short steps.
    short: u64,
    shorts: u64,
    longest_short: u64,
    windows: u64,
    longest_gap: u64,
    calls: u64,
    starts: Vec<Start>,
}

impl Seen {
    fn step(&mut self, cycle: u64, from: u64, to: u64, clean: bool) {
        let length = to - from;
        if length <= STEP || !clean && length <= WINDOW {
            self.ran += length;
        } else if length <= WINDOW {
            self.short += length;
            self.shorts += 1;
            self.longest_short = self.longest_short.max(length);
        } else {
            self.windows += 1;
            if clean {
                self.longest_gap = self.longest_gap.max(length);
                self.start(to % cycle);
            }
        }
    }

    fn start(&mut self, offset: u64) {
        let full = self.starts.len() >= 64;
        match self.starts.iter_mut().find(|start| offset.abs_diff(start.first) < NEAR) {
            Some(start) => {
                start.first = start.first.min(offset);
                start.last = start.last.max(offset);
                start.count += 1;
            }
            // Full: many offsets mean that the cycle is another one; then lateness means nothing.
            None if !full => self.starts.push(Start { first: offset, last: offset, count: 1 }),
            None => {}
        }
    }
}

/// Measures, and says what was seen.
pub fn run(env: &Env) {
    let (from, to) = stretch(env);
    let cycle = time(env, "cycle_ms", 100).max(1);
    let every = time(env, "call_us", 500);
    let server = env.capability::<Endpoint>("server");
    let mut seen = Seen::default();
    seen.starts.reserve(64);
    crate::work_until(from);
    let mut last = sys::now();
    let mut next_call = last;
    while last < to {
        let mut clean = true;
        if let Some(server) = server
            && last >= next_call
        {
            clean = false;
            if server.call_short(0, &[]).is_ok() {
                seen.calls += 1;
            }
            next_call = last + every;
        }
        let now = sys::now();
        seen.step(cycle, last, now, clean);
        last = now;
    }
    // Apart from each other: all tasks have the same end.
    crate::work_until(to + time(env, "print_ms", 0));
    let Seen { ran, short, shorts, longest_short, windows, longest_gap, calls, starts } = &seen;
    // A start seen once says nothing about lateness.
    let late = starts.iter().filter(|start| start.count > 1).map(|start| start.last - start.first).max().unwrap_or(0);
    let places = starts.iter().filter(|start| start.count > 1).count();
    let name = &env.info.name;
    log::info!(
        "data: {{\"kind\":\"windows\",\"task\":\"{name}\",\"ran\":{ran},\"windows\":{windows},\"places\":{places},\"lateness\":{late},\"longest_gap\":{longest_gap},\"interruptions\":{shorts},\"interrupted\":{short},\"longest_interruption\":{longest_short},\"calls\":{calls}}}"
    );
}
