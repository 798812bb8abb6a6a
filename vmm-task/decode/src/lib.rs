//! What an exit leaves out: the instruction behind it.
//!
//! A processor that stops at an access to device memory says where, not what: which register receives the value, how
//! wide, whether it is a read, a write or both. And SVM without next-RIP save does not say how long CPUID was. This
//! crate answers both from the instruction's bytes, and walks guest page tables to find them.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`mmio`](mod@mmio) | decodes an access to device memory into an [`MmioOp`] |
//! | [`complete`] | applies a finished access to registers and flags |
//! | [`length`] | length of the instruction behind an exit that carries none |
//! | [`string_io`](mod@string_io) | the memory side of INS and OUTS |
//! | [`walk`](mod@walk) | guest page tables: linear to guest-physical |
//! | [`fetch`](mod@fetch) | the bytes of the instruction that exited |
//!
//! Everything is pure: registers go in and out by value, guest memory is a closure. The bytes are a hostile guest's,
//! possibly changed since the exit; whatever they are, the answer is an operation or an error, in bounded time.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod alu;
pub mod complete;
mod fast;
pub mod fetch;
mod full;
mod gprs;
pub mod length;
pub mod mmio;
pub mod string_io;
pub mod walk;

pub use alu::Alu;
pub use fetch::{Fetched, LengthError, fetch, length_at};
pub use gprs::{Gprs, Target};
pub use length::{Expected, exit_length};
pub use mmio::{Action, Address, DecodeError, MmioOp, Mode, Repeat, SegmentName, Step, StringStep, mmio, operand};
pub use string_io::{StringIo, string_io};
pub use walk::{Access, Paging, Translation, WalkError, walk};

#[cfg(test)]
mod tests;
