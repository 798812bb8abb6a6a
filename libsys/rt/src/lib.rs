//! moira-rt
#![no_std]
