//! The kernel's pure algorithms: no hardware, no unsafe code. They run, are property-tested and fuzzed on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod capword;
pub mod derivation;
pub mod flush;
pub mod mitigations;
pub mod plan;
pub mod radix;
pub mod turns;
pub mod untyped;
pub mod vcpu_check;
