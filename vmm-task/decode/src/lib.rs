//! vmm-decode
#![no_std]
