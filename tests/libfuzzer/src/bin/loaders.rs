//! Kernel images.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::loaders::run, vmm_fuzz::loaders::seeds);
