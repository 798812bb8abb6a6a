//! Being written.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]
moira_rt::entry!(main);
fn main(_env: moira_rt::Env) {}
