//! Typed capabilities: one handle type per kernel object, one method per invocation.
//!
//! A handle is the number of a slot in the caller's capability table. Its type keeps arguments apart: what takes a
//! [`Frame`] does not compile with a [`Thread`]. What the slot really holds is the kernel's to check, at each use.
//! Errors have one meaning each ([`Error`]); the pages of `docs/abi/` say which method gives which, and when.
//!
//! ```compile_fail,E0308
//! # use moira_sys::*;
//! fn wrong(space: AddressSpace, thread: Thread) {
//!     let _ = space.map(thread, 0x1000, MapFlags::READ); // a thread is not a frame
//! }
//! ```
//!
//! # What safe means here
//!
//! Invocations can unmap or end memory that the task itself uses. They are safe functions all the same, like writing to
//! `/proc/self/mem` is on other systems: the kernel knows nothing of Rust, and an ordinary task's own memory is made of frames
//! whose capabilities it does not hold. Turning an address that was mapped into a reference is what needs `unsafe`, and
//! `moira-rt` does that in one place.
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg(test)]
extern crate std;

mod cpu;
mod device;
mod ipc;
#[allow(unsafe_code)]
mod mapped;
mod message;
mod platform;
#[allow(unsafe_code)]
mod raw;
mod slot;
mod space;
mod table;
#[cfg(test)]
mod tests;
mod thread;
mod untyped;
mod vcpu;

pub use cpu::{Blocked, Cpu, Dispatched, Plan};
pub use device::{Interrupt, IoPorts};
pub use ipc::{Endpoint, Notification};
pub use mapped::MessageBuffer;
pub use message::{
    Deadline, Event, Fault, Message, Next, Received, park, receive, reply, reply_receive, reply_receive_short, serve,
};
pub use moira_abi as abi;
pub use moira_abi::{Error, FrameSize, ObjectType, Rights};
pub use platform::{InterruptFlags, Outcome, Platform, TraceCopy};
pub use raw::now;
pub use slot::{Capability, Caps, Slot};
pub use space::{AddressSpace, Frame, GuestSpace, MapFlags, Space};
pub use table::{CapTable, Inspected};
pub use thread::{Configuration, Consumed, SchedContext, Snapshot, Thread};
pub use untyped::{Untyped, UntypedInfo};
pub use vcpu::{Vcpu, VcpuExit};

/// Calls `step` until it answers neither *Again* nor *Retiring*: for the operations that store their progress. Each step is
/// one bounded invocation, so the caller stays preemptible, and the time is its own.
///
/// # Errors
/// Any other error of `step`.
pub fn fully<T>(mut step: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match step() {
            Err(Error::Again | Error::Retiring) => core::hint::spin_loop(),
            other => return other,
        }
    }
}
