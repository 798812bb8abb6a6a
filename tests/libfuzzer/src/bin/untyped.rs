//! The kernel's arithmetic of untyped memory.
#![no_main]
moira_libfuzzer::target!(kernel_fuzz::memory::run, kernel_fuzz::memory::seeds);
