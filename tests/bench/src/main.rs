//! Measures the kernel's paths, in TSC ticks: executed instructions under the deterministic machine of `cargo xtask bench`.
//!
//! One image, two tasks: `role=client` measures and prints a line `bench: {…}` for each figure; `role=server` answers. What a
//! figure means stands in `docs/performance.md`.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod interrupts;
mod ipc;
mod memory;
mod server;
mod time_paths;
mod waiter;

use alloc::{format, vec::Vec};
use moira_rt::Env;

moira_rt::entry!(main);

/// Samples of one figure.
const SAMPLES: usize = 1000;

fn main(env: Env) {
    match env.argument("role") {
        Some("server") => server::run(env),
        Some("waiter") => waiter::run(env),
        Some("slack") => waiter::slack(&env, &mut Report { overhead: overhead() }),
        Some("interrupts") => interrupts::run(&env),
        Some("mark") => time_paths::mark(&env),
        Some("dispatched") => time_paths::dispatched(),
        Some("greedy") => loop {
            core::hint::black_box(());
        },
        Some("share") => time_paths::share(&mut { env }),
        Some("window-switch") => time_paths::window_switch(&env, &mut Report { overhead: overhead() }),
        Some("dispatcher") => time_paths::dispatch(&env, &mut Report { overhead: overhead() }),
        Some("installer") => time_paths::install(&mut { env }, &mut Report { overhead: overhead() }),
        _ => client(env),
    }
}

fn client(mut env: Env) {
    let overhead = overhead();
    let mut report = Report { overhead };
    ipc::measure(&mut env, &mut report);
    memory::measure(&mut env, &mut report);
    waiter::measure(&mut env, &mut report);
    log::info!("bench: done");
}

/// Prints figures.
struct Report {
    /// What taking the time costs.
    overhead: u64,
}

impl Report {
    /// Runs `once` a thousand times; it answers the ticks of one run, measured with [`time`].
    fn figure(&mut self, name: &str, mut once: impl FnMut() -> u64) {
        let mut samples: Vec<u64> = Vec::with_capacity(SAMPLES);
        // The first rounds fill caches and tables that are made on demand.
        for _ in 0..8 {
            once();
        }
        for _ in 0..SAMPLES {
            samples.push(once().saturating_sub(self.overhead));
        }
        self.samples(name, samples);
    }

    /// Prints a figure of samples taken elsewhere.
    fn samples(&mut self, name: &str, mut samples: Vec<u64>) {
        samples.sort_unstable();
        let count = samples.len();
        if count == 0 {
            log::error!("bench: no samples of {name}");
            return;
        }
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        let line = format!(
            "bench: {{\"name\":\"{name}\",\"unit\":\"instructions\",\"minimum\":{},\"median\":{},\"maximum\":{},\"samples\":{count}}}",
            at(0),
            at(count / 2),
            at(count - 1)
        );
        log::info!("{line}");
    }
}

/// Ticks that `work` takes, the measuring included.
#[inline(always)]
fn time(work: impl FnOnce()) -> u64 {
    let begin = moira_sys::now();
    work();
    moira_sys::now() - begin
}

fn overhead() -> u64 {
    (0..64).map(|_| time(|| {})).min().unwrap_or(0)
}
