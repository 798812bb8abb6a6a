//! The heart of the virtual-machine monitor: what happens between an exit and the next entry.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`machine`] | what the processors of a machine share: devices behind a lock, endings, who is told what |
//! | [`vm`] | one processor of the machine and its run loop |
//! | [`exits`](mod@exits) | one function for each kind of exit |
//! | [`event`] | which event goes into the guest next |
//! | [`state`] | the state page that the monitor shares with the kernel |
//! | [`ram`] | guest memory |
//! | [`boot`] | from an image to the first instruction |
//! | [`clock`] | time |
//! | [`disk`] | a disk held in memory |
//! | [`history`] | the last exits, and how many there were of each kind |
//! | [`debug`], [`gdb`] | stops and steps of the guest, and a debugger's commands |
//! | [`report`] | what a dead machine leaves behind |
//!
//! The kernel is behind the trait [`vm::Processor`], so that all of this runs on the host too. Whatever a guest does
//! ends in a fault for the guest, a reset of its device, or the end of its machine with a report: never in a panic.
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod boot;
pub mod clock;
pub mod debug;
pub mod disk;
pub mod event;
pub mod exits;
pub mod gdb;
pub mod history;
pub mod machine;
pub mod ram;
pub mod report;
pub mod state;
pub mod vm;

#[cfg(test)]
mod tests;
