//! The trace: a ring of events per CPU, written by that CPU alone. Format: `docs/abi/trace.md`.

use crate::{
    arch,
    percpu::{self, Cpu, attention},
};
use core::{cell::Cell, sync::atomic::Ordering::Relaxed};

/// Choose took a context (object 1) and a thread (object 2).
pub const CHOOSE: u32 = 1;
/// A direct switch to a thread.
pub const SWITCH: u32 = 2;
/// A thread faulted; argument: vector.
pub const FAULT: u32 = 3;
/// An interrupt; argument: vector.
pub const INTERRUPT: u32 = 4;
/// A guest exit; argument: reason.
pub const EXIT: u32 = 6;
/// A system call; argument: method.
pub const SYSCALL: u32 = 7;
/// The structural lock was taken, and this CPU waits for its turn.
pub const WAIT: u32 = 8;
/// A system call runs again from its start; argument: the thread.
pub const RESTART: u32 = 9;
/// Translations were dropped; arguments: reason ([`moira_kernel_core::flush::Reason`]), space or page.
pub const FLUSH: u32 = 10;

/// Events of a ring.
pub const EVENTS: usize = 512;

/// One event.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Event {
    /// TSC.
    pub time: u64,
    /// Kind in the low half, CPU in the upper.
    pub kind: u64,
    /// First argument.
    pub a: u64,
    /// Second argument.
    pub b: u64,
}

/// A ring.
#[repr(C)]
pub struct Ring {
    /// Events ever written.
    pub written: Cell<u64>,
    /// The last ones.
    pub events: [Cell<Event>; EVENTS],
}

/// Switches the trace of all CPUs on or off.
pub fn switch(on: bool) {
    for cpu in percpu::online() {
        if on {
            cpu.attention.fetch_or(attention::TRACE, Relaxed);
        } else {
            cpu.attention.fetch_and(!attention::TRACE, Relaxed);
        }
    }
}

/// Records an event, if the trace is on.
#[inline(always)]
pub fn event(cpu: &Cpu, kind: u32, a: u64, b: u64) {
    if cpu.attention.load(Relaxed) & attention::TRACE != 0 {
        record(cpu, kind, a, b);
    }
}

#[cold]
fn record(cpu: &Cpu, kind: u32, a: u64, b: u64) {
    let ring = &cpu.trace;
    let written = ring.written.get();
    ring.events[written as usize % EVENTS].set(Event {
        time: arch::now(),
        kind: kind as u64 | (cpu.index as u64) << 32,
        a,
        b,
    });
    ring.written.set(written + 1);
}
