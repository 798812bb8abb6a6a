//! What the root task works out before it acts: which bytes of the archive are what, how a program lies in memory, how much
//! memory a task takes, and when one that died is made anew. All of it is pure and is tested on the host.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod archive;
pub mod budget;
pub mod image;
pub mod restart;
