//! vmm-devices
#![no_std]
