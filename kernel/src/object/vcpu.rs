//! `Vcpu`: a virtual processor. ABI: `docs/abi/vcpu.md`.

use super::{Header, thread::Thread};
use crate::{memory::{Obj, Object}, percpu::Cpu};
use core::cell::Cell;
use moira_abi::{Error, ObjectType, vcpu::Exit};

/// A vCPU: 32 KiB; the first page is this, the rest belongs to `arch::virt`.
#[repr(C, align(4096))]
pub struct Vcpu {
    /// Header.
    pub header: Header,
    /// The thread that runs it.
    pub thread: Cell<Option<Obj<Thread>>>,
}

impl Object for Vcpu {
    const KIND: ObjectType = ObjectType::Vcpu;
}
pub fn init(_: Obj<Vcpu>) {}
pub fn run(_cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> { thread.set_status(Err(Error::NoHardware)); thread }
pub fn kick(_: &Cpu, _: Obj<Vcpu>) -> Result<(), Error> { Err(Error::NoHardware) }
pub fn configure(_: Obj<Vcpu>, _: Obj<Thread>) -> Result<(), Error> { Err(Error::NoHardware) }
pub fn set_space(_: Obj<Vcpu>, _: Obj<Thread>) -> Result<(), Error> { Err(Error::NoHardware) }
pub fn allow_msr(_: Obj<Vcpu>, _: Obj<Thread>) -> Result<(), Error> { Err(Error::NoHardware) }
pub fn allow_ports(_: Obj<Vcpu>, _: Obj<Thread>) -> Result<(), Error> { Err(Error::NoHardware) }
pub fn retire(_: &Cpu, _: Obj<Vcpu>) {}
pub fn check(_: Obj<Thread>, _: u64) {}
pub fn leave(_: Obj<Thread>, _: Exit) {}
pub fn enter(_: &'static Cpu, _: Obj<Thread>) -> bool { true }
pub fn space_changes(_: &Cpu, _: u64) {}
