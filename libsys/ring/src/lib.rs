//! moira-ring
#![no_std]
