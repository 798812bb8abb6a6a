//! The system-call fuzzer: an ordinary thread with some capabilities of every type throws random and mutated invocations at the
//! kernel, beside a victim that works undisturbed.
//!
//! The laboratory's root thread is the supervisor of both: it gives the fuzzer its time in turns, rebuilds what it destroyed,
//! and in the end takes everything back and looks whether anything is missing. The kernel's command line gives `seed=` and `count=`;
//! the same seed makes the same run on the deterministic machine.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod attack;
mod bench;
mod machine;
mod storm;
mod victim;

use moira_lab::Lab;

moira_rt::root_entry!(main, 1 << 20);

/// Invocations of the normal test.
const COUNT: u64 = 1_000_000;

fn main(info: &'static moira_abi::boot::BootInfo, buffer: moira_sys::MessageBuffer, _: &'static [u8]) {
    let mut lab = Lab::new(info, buffer);
    let number = |name: &str| lab.option(name).and_then(|text| text.parse::<u64>().ok());
    let (seed, count) = (number("seed").unwrap_or(1), number("count").unwrap_or(COUNT));
    let storms = lab.option("storm").is_some();
    let machines = lab.option("kind") == Some("machine");
    let run = match (storms, machines) {
        (true, _) => storm::run(&mut lab, seed),
        (_, true) => machine::run(&mut lab, seed, count),
        _ => bench::run(&mut lab, seed, count),
    };
    match run {
        Ok(()) => lab.finish("fuzz"),
        Err(error) => lab.fail(&alloc::format!("fuzz: the supervisor failed: {error:?}")),
    }
}
