//! moira-proto
#![no_std]
