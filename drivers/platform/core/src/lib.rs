//! What the platform task knows, apart from the hardware: ACPI tables, AML by two interpreters, PCI, power.
//!
//! | module | what |
//! | --- | --- |
//! | [`machine`] | the trait through which all of it reaches hardware |
//! | [`tables`] | finds the tables and copies them, checked |
//! | [`summary`] | reads the fixed tables |
//! | [`interpreter`], [`second`] | AML by the crates `acpi` and `aml` |
//! | [`value`] | a value of AML, whoever computed it |
//! | [`findings`] | what AML says, one crate checked against the other |
//! | [`pci`], [`msi`] | the PCI functions, and their message-signalled interrupts |
//! | [`power`] | off and reset |
//! | [`timer`] | the TSC against the PM timer |
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod findings;
pub mod interpreter;
pub mod machine;
pub mod msi;
pub mod pci;
pub mod power;
pub mod second;
pub mod summary;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod timer;
pub mod value;
