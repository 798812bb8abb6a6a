//! A guest that keeps to itself: it mixes a piece of memory again and again, looks at no clock and no device, and says in
//! the end what came out. Whatever others do, that is the same.

use core::ptr::addr_of_mut;

const WORDS: usize = 32 * 1024;
static mut MEMORY: [u64; WORDS] = [0; WORDS];

/// Mixes for so many rounds, and prints the hash of its memory.
pub fn run(rounds: u64) {
    // SAFETY: nobody else uses it.
    let memory = unsafe { &mut *addr_of_mut!(MEMORY) };
    for (word, index) in memory.iter_mut().zip(0u64..) {
        *word = index;
    }
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for round in 0..rounds {
        for word in memory.iter_mut() {
            hash = (hash ^ *word).wrapping_mul(0x100_0000_01b3).rotate_left(round as u32 & 63);
            *word = hash;
        }
    }
    say!("victim: {rounds} rounds, hash {hash:016x}");
}
