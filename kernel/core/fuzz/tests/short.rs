//! A short run of each target, the same bytes every time, with nothing that a compiler does not bring. `FUZZ_ROUNDS` makes it longer.

use kernel_fuzz::{memory, messages, plan, vcpu};

/// Runs a target on its seeds, and on what becomes of them.
fn rounds(run: fn(&[u8]), seeds: Vec<Vec<u8>>) {
    let rounds = std::env::var("FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000u64);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for seed in &seeds {
        run(seed);
        for _ in 0..rounds {
            let mut bytes = seed.clone();
            bytes.extend((0..word() % 64).map(|_| word() as u8));
            for _ in 0..word() % 8 {
                let at = word() as usize % bytes.len();
                bytes[at] = word() as u8;
            }
            run(&bytes);
        }
    }
}

#[test]
fn checks_of_a_vcpu_keep_their_promises() {
    rounds(vcpu::run, vcpu::seeds());
}

#[test]
fn plans_keep_their_promises() {
    rounds(plan::run, plan::seeds());
}

#[test]
fn untyped_memory_is_taken_once() {
    rounds(memory::run, memory::seeds());
}

#[test]
fn messages_are_read_or_refused() {
    rounds(messages::run, messages::seeds());
}
