//! vmm-machine
#![no_std]
