//! The slack scheduler's logic, apart from the system call: it runs on the host in tests.
//!
//! The kernel follows its plan; what the plan leaves over is *slack*, and this task hands it out. Nobody needs to trust it: the
//! worst it can do is to give slack to the wrong context.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod page;
pub mod policy;
pub mod slack;
#[cfg(test)]
mod tests;
