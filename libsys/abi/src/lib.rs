//! The binary interface between the Moira kernel and tasks, and nothing else.
//!
//! Every constant and structure here is described, with its errors and bounds, in `docs/abi/`. Tasks make
//! invocations through the typed methods of `moira-sys`, and see from here only what is data: errors, rights, boot information, a vCPU's state page, trace events.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod boot;
pub mod error;
pub mod fault;
pub mod method;
pub mod object;
pub mod tag;
pub mod time;
pub mod trace;
pub mod vcpu;

pub use error::Error;
pub use method::Method;
pub use object::{FrameSize, ObjectType, Rights};
pub use tag::Tag;

/// Size of the smallest page and of a message buffer, in bytes.
pub const PAGE: u64 = 4096;

/// Message words that travel in registers (`rsi rdx r8 r9 r10 r12 r13 r14`, in this order).
pub const MESSAGE_WORDS: usize = 8;

/// Most capabilities one message carries.
pub const MESSAGE_CAPS: usize = 4;

/// First virtual address that no task can map: the page below 2^47 and everything above it (SDM 3.3.7.1: a `SYSCALL`
/// in the last canonical page would make `SYSRET` fault in ring 0).
pub const USER_END: u64 = (1 << 47) - PAGE;

/// A deadline that never comes.
pub const NO_DEADLINE: u64 = 0;
