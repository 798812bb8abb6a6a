//! The kernel's checks of plans, and how it follows them.
#![no_main]
moira_libfuzzer::target!(kernel_fuzz::plan::run, kernel_fuzz::plan::seeds);
