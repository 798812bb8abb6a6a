//! The kernel's checks of what a monitor writes into a state page.
#![no_main]
moira_libfuzzer::target!(kernel_fuzz::vcpu::run, kernel_fuzz::vcpu::seeds);
