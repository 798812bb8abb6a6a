//! The control channel (`docs/abi/control.md`): the second serial port of a running system.
//!
//! Whoever runs the emulator (`run`, `test`) holds the line and lets other commands share it ([`hub`]); those find it by a file in the
//! run's folder ([`client`]).

pub mod client;
pub mod commands;
pub mod gdb;
pub mod hub;
mod link;
mod top;
