//! Device models of the virtual-machine monitor.
//!
//! Every model is a plain state machine: registers in, registers out, and time as an argument. None of them knows how
//! an exit arrived, where guest memory lives or who reads the console, so all of them run, and are fuzzed, on the host.
//!
//! * A model never calls into the interrupt controllers. It shows the level of its line, and [`board::Board`] carries
//!   changes to the PIC and the I/O APIC. Only message-signalled interrupts go through a trait ([`traits::MsiSink`]).
//! * Time is `now`, in nanoseconds since the VM was made, and never runs backwards. A model that will want attention
//!   later says when through `next_deadline`; calling `poll` early or late is always allowed.
//! * Whatever the guest writes is data, never an index or a length that is trusted: no method panics, and each does a
//!   bounded amount of work.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi_pm;
pub mod apic_bus;
pub mod bits;
pub mod board;
pub mod bus;
pub mod debug;
pub mod fabric;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod platform;
pub mod rtc;
pub mod test_device;
#[cfg(test)]
mod test_memory;
pub mod text_screen;
pub mod time;
pub mod traits;
pub mod uart;
pub mod virtio;
