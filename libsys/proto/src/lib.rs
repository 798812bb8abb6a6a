//! Protocols between tasks, one module per service, and the two data formats that describe a running system: the
//! compiled manifest ([`system`]) and what a task is told at its start ([`start`]).
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod console;
pub mod planner;
pub mod platform;
pub mod start;
pub mod system;
