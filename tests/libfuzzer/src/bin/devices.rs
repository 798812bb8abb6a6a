//! All devices of a machine, as guest code reaches them.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::devices::run, vmm_fuzz::devices::seeds);
