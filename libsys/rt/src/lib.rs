//! The task runtime: entry, heap, logging, panics, memory.
//!
//! An image is a binary crate of its own:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! #![forbid(unsafe_code)]
//!
//! moira_rt::entry!(main);
//!
//! fn main(env: moira_rt::Env) {
//!     log::info!("{} is up", env.info.name);
//! }
//! ```
//!
//! with one line in its `build.rs` that names `libsys/rt/task.ld` (see `docs/how-to/add-a-task.md`).
//!
//! `unsafe` is in few modules: [`entry`](mod@start) (the first instructions), `heap`, `mapped` (memory shared with others), `threads` (their stacks) and
//! `end` (the deliberate fault). All else is safe code.
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod end;
pub mod env;
pub mod heap;
pub mod logging;
pub mod mapped;
pub mod memory;
pub mod received;
pub mod start;
pub mod threads;

pub use env::Env;
pub use log;
pub use moira_proto as proto;
pub use moira_sys as sys;
