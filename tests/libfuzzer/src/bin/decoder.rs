//! Instructions and page tables of a guest.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::decoder::run, vmm_fuzz::decoder::seeds);
