//! From contracts to plans: admission, placement, tables. Pure: what runs in the planner task also runs on the host, in tests.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`contract`] | what is promised, and when a table keeps it |
//! | [`table`] | the windows of one CPU's cycle, or the reason why there is none |
//! | [`admission`] | the contracts of all CPUs: who is let in, where, and why not |
//! | [`fill`] | slack in windows, for a CPU without a scheduler |
//!
//! All times are TSC ticks.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod contract;
mod edf;
pub mod fill;
pub mod table;
#[cfg(test)]
mod tests;

pub use admission::{Admission, Placed, Refused};
pub use contract::{Broken, Contract, Window};
pub use table::{Reason, Refusal, Table, Terms, make, make_full};
