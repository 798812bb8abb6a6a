//! A laboratory for the kernel: a root task that has the machine to itself and does one thing at a time.
//!
//! It is its own scheduler, so nothing runs but what it dispatches, and it learns exactly why that stopped. Its subjects are
//! [`Puppet`]s: threads that execute one instruction (a system call, or something forbidden) and then fault; what their
//! registers hold before and after is the experiment. Everything an experiment makes comes from one untyped, which is revoked
//! afterwards and must then be whole again.
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod accounts;
mod check;
pub mod guest;
mod puppet;
mod raw;
mod smp;
mod stubs;

mod lab;
mod ledger;

pub use check::Check;
pub use guest::{Guest, Mode};
pub use lab::{ARENA_BITS, Lab};
pub use puppet::{Outcome, Puppet, With, taken};
pub use raw::{Answer, code_of, invoke, store, stored};
pub use smp::Entry;
pub use stubs::Stub;
