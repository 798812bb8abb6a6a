//! moira-kernel-core
#![no_std]
