//! The console task's logic, apart from ports and IPC: it runs on the host in tests.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod consoles;
