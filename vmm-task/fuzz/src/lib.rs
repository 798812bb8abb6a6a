//! What a hostile guest or a hostile kernel image can reach in the monitor, each as a function of arbitrary bytes that must come
//! back: no panic, no endless loop, nothing outside of the guest's memory. A fuzzer may call them; `tests/short.rs` does so for a
//! few seconds in every test run, with bytes from seeds and with mutated valid inputs.
#![forbid(unsafe_code)]

mod bytes;
pub mod decoder;
pub mod devices;
pub mod exits;
pub mod loaders;
mod memory;
pub mod virtio;

pub use bytes::{Bytes, Random};
