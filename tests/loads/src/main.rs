//! Loads for experiments: tasks that want time in different ways, and tasks that measure what they got.
//!
//! One image; the argument `role=` says what a task is. All times are absolute: `from_ms` and `to_ms` count from `epoch_ms` after the TSC's zero (0, but
//! where firmware and a boot loader take seconds), which all tasks of a CPU share, so that all measure the same stretch. Results are lines `data: {…}` on the console, printed after `to_ms`.
//!
//! | role | what it does |
//! | --- | --- |
//! | `greedy` | runs always; measures its windows |
//! | `victim` | like `greedy`, and calls `server`, if it has one, every `call_us` |
//! | `io` | runs for `run_us`, sleeps for `sleep_us`; measures its wake-ups |
//! | `server` | serves calls, each for `work_us` |
//! | `judge` | reads the accounts of `watch=a,b,c` once in `every_ms`, and the CPU's ledger |
//! | `tenant` | asks the planner for contracts until it refuses, and sees that they are kept |
//! | `watcher` | waits until all of `watch=a,b,c` have run again and again after `from_ms` |
//! | `ticker` | takes the interval timer's interrupts |
//! | `tracer` | holds the ledger against the trace |
//! | `ledger` | the same on all CPUs, for as long as the system runs |
//! | `nothing`, `spinner`, `syscalls`, `faults`, `calls`, `objects`, `signals` | antagonists |
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod antagonist;
mod io;
mod judge;
mod tenant;
mod ticker;
mod tracer;
mod windows;

use moira_rt::{
    Env,
    logging::{PlatformSink, set_sink},
    sys::{self, Deadline, Event, reply_receive_short},
};

moira_rt::entry!(main);

fn main(mut env: Env) {
    static PLATFORM: spin::Once<PlatformSink> = spin::Once::new();
    if let (None, Some(platform)) = (env.info.capability("console"), env.capability("platform")) {
        set_sink(PLATFORM.call_once(|| PlatformSink(platform)), log::LevelFilter::Info);
    }
    let role = alloc::string::String::from(env.argument("role").unwrap_or_default());
    match role.as_str() {
        "greedy" | "victim" => windows::run(&env),
        "io" => io::run(&env),
        "server" => serve(&env),
        "judge" => judge::run(&mut env),
        "watcher" => judge::watch(&env),
        "ticker" => ticker::run(&env),
        "tracer" => tracer::run(&mut env),
        "ledger" => tracer::watch::run(&mut env),
        "tenant" => tenant::run(&mut env),
        role => antagonist::run(&env, role),
    }
}

/// A time among the arguments, in ticks; its key ends with its unit.
fn time(env: &Env, key: &str, otherwise: u64) -> u64 {
    let unit = if key.ends_with("_us") { 1_000 } else { 1_000_000 };
    env.ticks(env.number(key, otherwise).saturating_mul(unit))
}

/// A moment among the arguments.
fn moment(env: &Env, key: &str, otherwise: u64) -> u64 {
    time(env, "epoch_ms", 0) + time(env, key, otherwise)
}

/// The stretch that is measured.
fn stretch(env: &Env) -> (u64, u64) {
    (moment(env, "from_ms", 300), moment(env, "to_ms", 2_300))
}

/// Runs until then. Plain work between looks at the clock: emulators are slow at reading it, and at pausing.
fn work_until(end: u64) {
    while sys::now() < end {
        for step in 0..64_u32 {
            core::hint::black_box(step);
        }
    }
}

/// Sleeps until then.
fn sleep_until(env: &Env, end: u64) {
    while sys::now() < end {
        // Bits that come are of no interest here; a deadline in the past is no wait at all.
        if env.notification().wait(Deadline(end)).is_err() && sys::now() < end {
            let _ = sys::receive(Deadline(end));
        }
    }
}

fn serve(env: &Env) {
    let work = time(env, "work_us", 20);
    let mut event = sys::receive(Deadline::NEVER);
    loop {
        event = match event {
            Ok(Event::Call(_)) => {
                work_until(sys::now() + work);
                reply_receive_short(0, &[], Deadline::NEVER)
            }
            Ok(_) => sys::receive(Deadline::NEVER),
            Err(error) => {
                log::error!("server: {error:?}");
                return;
            }
        };
    }
}
