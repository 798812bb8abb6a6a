//! moira-sys
#![no_std]
