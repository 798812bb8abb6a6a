//! The victim: mixes a page of numbers again and again. Its memory and its progress are what the fuzzer must not touch.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words of its memory.
pub const WORDS: usize = 1024;

/// What the victim shows of itself.
pub struct Shown {
    /// Rounds done.
    pub rounds: AtomicU64,
    /// Rounds in which its memory was not what it left behind.
    pub wrong: AtomicU64,
}

/// Shown to the supervisor.
pub static SHOWN: Shown = Shown { rounds: AtomicU64::new(0), wrong: AtomicU64::new(0) };

static MEMORY: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

fn mix(value: u64, round: u64) -> u64 {
    (value ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// What word `index` holds after `round`.
fn word(index: usize, round: u64) -> u64 {
    mix(index as u64, round)
}

/// The victim's thread.
pub extern "C" fn main() -> ! {
    let mut round = 0;
    for (index, cell) in MEMORY.iter().enumerate() {
        cell.store(word(index, round), Relaxed);
    }
    loop {
        let mut good = true;
        for (index, cell) in MEMORY.iter().enumerate() {
            good &= cell.swap(word(index, round + 1), Relaxed) == word(index, round);
        }
        round += 1;
        SHOWN.rounds.store(round, Relaxed);
        if !good {
            SHOWN.wrong.fetch_add(1, Relaxed);
        }
    }
}
