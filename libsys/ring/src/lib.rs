//! The shared-memory queue: one producer, one consumer, who need not trust each other.
//!
//! Both sides see the same memory as a slice of atomic words; nothing else is shared. Capacity and own index are kept
//! privately, what comes from the other side is checked, and every loop has a bound of the caller's own. The worst a hostile peer
//! can do is to send nonsense entries, to send nothing, or to get [`PeerMisbehaved`], after which this side touches the memory
//! no more.
//!
//! # Memory
//!
//! | 32-bit words | written by | what |
//! | --- | --- | --- |
//! | 0 | producer | head: entries ever written, modulo 2^32 |
//! | 1 | producer, cleared by the consumer | producer sleeps |
//! | 16 | consumer | tail: entries ever taken, modulo 2^32 |
//! | 17 | consumer, cleared by the producer | consumer sleeps |
//! | 32… | producer | entries; number `i` at `32 + (i mod capacity) × words` |
//!
//! Zeroed memory is an empty queue. The first two lines are cache lines of their own.
//!
//! # Sleeping and waking
//!
//! The side that finds nothing to do says so, looks again, and only then waits on its notification; the other side
//! publishes, and then looks whether somebody sleeps. Each stores first and loads then, so both need a full fence in between
//! (Dekker's pattern; x86 itself reorders a store with a later load, SDM 8.2.3.4):
//!
//! | step | consumer ([`Consumer::prepare_sleep`]) | producer ([`Producer::push`], [`Producer::must_wake`]) |
//! | --- | --- | --- |
//! | 1 | sleeps := 1 | head := new |
//! | 2 | fence | fence |
//! | 3 | load head; if it moved: sleeps := 0, go on | load sleeps; if 1: sleeps := 0, signal |
//! | 4 | wait | |
//!
//! At least one of the two loads sees the other's store: either the consumer finds the entry, or the producer signals. The signal is
//! remembered by the notification, so it does not matter whether the consumer waits already. The same holds with the roles swapped, for a
//! producer that waits for room. `tests/loom.rs` checks it with
//! loom, and that the checks fail if the fence or an ordering is left out.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(test)]
extern crate std;

mod bytes;
mod consumer;
mod entry;
mod layout;
mod producer;
#[cfg(test)]
mod tests;
mod word;

pub use bytes::{Reader, Writer};
pub use consumer::{Consumer, Drain};
pub use entry::Entry;
pub use layout::{LayoutError, words_needed};
pub use producer::{Producer, PushError};
pub use word::Word;

/// The other side broke the protocol: an index that it never could have reached. The queue is dead for this side; what to do with
/// the peer is its user's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerMisbehaved;

impl core::fmt::Display for PeerMisbehaved {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str("the queue's other side wrote an impossible index")
    }
}

impl core::error::Error for PeerMisbehaved {}
