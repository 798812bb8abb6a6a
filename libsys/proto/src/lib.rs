//! Protocols between tasks, one module per service; sizes as people write them ([`units`]); the control channel to the host ([`frame`], [`control`]); and the two data formats
//! that describe a running system: the compiled manifest ([`system`]) and what a task is told at its start ([`start`]).
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod control;
pub mod frame;
pub mod mailbox;
pub mod planner;
pub mod platform;
pub mod start;
pub mod system;
pub mod units;
