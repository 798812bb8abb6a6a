//! The processor. Everything outside of this folder is written against what is re-exported here.

mod x86_64;
pub use x86_64::*;
