//! A 16550 serial port, apart from IPC: with registers of its own it runs on the host in tests.
//!
//! | module | what |
//! | --- | --- |
//! | [`uart`] | the registers; sending by waiting, as the console does |
//! | [`line`] | bytes in both directions by interrupt, with bounded queues, as the serial driver does |
//! | [`ports`] | the registers of a real one, behind a capability |
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod line;
pub mod ports;
pub mod uart;
