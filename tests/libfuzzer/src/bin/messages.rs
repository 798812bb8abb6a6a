//! Tags, frames, requests, and a queue with a hostile other side.
#![no_main]
moira_libfuzzer::target!(kernel_fuzz::messages::run, kernel_fuzz::messages::seeds);
