//! A whole monitor under a debugger that says anything.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::exits::debug, vmm_fuzz::exits::debug_seeds);
