//! What untrusted tasks hand to the kernel's checks, and peers to the protocols, each as a function of arbitrary bytes that must come back
//! with every promise kept. `cargo xtask fuzz` calls them, guided by coverage; `tests/short.rs` does so with bytes from a seed.
#![forbid(unsafe_code)]

pub mod memory;
pub mod messages;
pub mod plan;
pub mod vcpu;

/// Takes 64-bit words from bytes; zeros once they are used up.
#[derive(Debug)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// All of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Words(bytes)
    }

    /// Whether all are used up.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number of so many bytes, at most eight.
    pub fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes.min(8).min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A word.
    pub fn word(&mut self) -> u64 {
        self.number(8)
    }

    /// A number whose size its first byte says: small ones and whole words alike.
    pub fn any(&mut self) -> u64 {
        let size = self.number(1);
        self.number([1, 2, 4, 8][size as usize & 3]) << (size >> 2 & 15)
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }
}
