//! A whole monitor, with exits, registers and memory that are anything.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::exits::run, vmm_fuzz::exits::seeds);
