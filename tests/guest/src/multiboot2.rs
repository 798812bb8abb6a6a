//! A test payload for Multiboot 2.
#![no_std]
#![no_main]

#[macro_use]
mod serial;
#[allow(dead_code)]
mod hardware;
mod payload;

/// Whether it is for Multiboot 2.
const IS_2: bool = true;
