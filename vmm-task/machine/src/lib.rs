//! The virtual machine as its guest first meets it, as pure logic.
//!
//! | module | what it decides |
//! | --- | --- |
//! | [`layout`] | the fixed addresses of the q35-like machine |
//! | [`memory_map`] | where RAM lies and what the guest is told about it (E820) |
//! | [`boot`] | putting a guest image into RAM and the registers it starts with |
//! | [`acpi`] | the ACPI tables |
//! | [`mp_table`] | the tables of systems older than ACPI |
//! | [`cpuid`] | what CPUID answers |
//! | [`msr`] | which MSRs exist and what reading and writing them does |
//!
//! Nothing here performs IPC or touches hardware: guest memory comes in through [`GuestRam`], the host's CPUID through
//! a closure. Whatever a guest image or a guest's register says is untrusted, and is answered with an error.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod memory_map;
pub mod mp_table;
pub mod msr;
mod ram;

pub use ram::{GuestRam, OutOfRange, fill_zero};

#[cfg(test)]
mod test_ram;
