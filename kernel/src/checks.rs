//! What a kernel built with the feature `checks` looks at while it runs: how long the structural lock is held and how long
//! interrupts stay off, by method, and what must be true before each entry. Without the feature nothing of it is left.
//!
//! `cargo xtask bench` boots such a kernel on the deterministic machine under the conformance suite and the fuzzer; at its end
//! it prints what it saw.

use crate::{
    arch,
    memory::Obj,
    object::{address_space::AddressSpace, thread::Thread},
    percpu::Cpu,
    smp,
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_kernel_core::flush::Seen;

/// Whether this kernel checks.
pub const ON: bool = cfg!(feature = "checks");

/// Rows: one for each method number; 0 is exceptions and interrupts.
const ROWS: usize = if ON { 256 } else { 0 };
/// Instructions between the hardware's entry and the first reading of the clock, and between the last one and the hardware's exit
/// (`entry.s`), on the longer of the ways.
const ENTRY_AND_EXIT: u64 = 80;

/// What a CPU saw.
#[repr(C)]
pub struct Checks {
    what: Cell<u8>,
    stretches: Spans,
    holds: Spans,
}

/// Spans of time: when the one that lasts began, the longest by method, how many there were.
#[repr(C)]
struct Spans {
    begun: Cell<u64>,
    longest: [Cell<u64>; ROWS],
    count: Cell<u64>,
}

impl Spans {
    fn end(&self, what: &Cell<u8>, more: u64) {
        let (now, begun, row) = (arch::now(), self.begun.take(), self.longest.get(what.get() as usize));
        if let Some(row) = row.filter(|_| begun != 0) {
            row.set(row.get().max(now - begun + more));
            self.count.set(self.count.get() + 1);
        }
    }
}

/// Interrupts are off from here on: the kernel was entered for a method (0: a trap).
#[inline(always)]
pub fn entered(cpu: &Cpu, what: u8) {
    if ON {
        cpu.checks.what.set(what);
        again(cpu);
    }
}

/// Interrupts were let in, and are off again.
#[inline(always)]
pub fn again(cpu: &Cpu) {
    if ON {
        cpu.checks.stretches.begun.set(arch::now());
    }
}

/// Interrupts are let in.
#[inline(always)]
pub fn left(cpu: &Cpu) {
    if ON {
        cpu.checks.stretches.end(&cpu.checks.what, ENTRY_AND_EXIT);
    }
}

/// The structural lock was taken.
#[inline(always)]
pub fn locked(cpu: &Cpu) {
    if ON {
        cpu.checks.holds.begun.set(arch::now());
    }
}

/// It is about to be given back.
#[inline(always)]
pub fn unlocked(cpu: &Cpu) {
    if ON {
        cpu.checks.holds.end(&cpu.checks.what, 0);
    }
}

/// A task is about to run: its space is the one that is loaded.
#[inline(always)]
pub fn before_task(cpu: &Cpu, thread: Obj<Thread>) {
    if ON {
        let loaded = |space: Obj<AddressSpace>| {
            cpu.loaded_space.load(Relaxed) == space.physical() && arch::mitigations::loaded(cpu) == space.load.get()
        };
        // A space that dies at this moment on another CPU has a flush on its way here.
        let good = thread.space.embedded().is_some_and(loaded) || soon(|| smp::has_mail(cpu));
        assert!(good, "a task would run with another one's translations");
    }
}

/// A guest is about to run: its tag has seen the last change of its space, or a flush is on its way here.
#[inline(always)]
pub fn before_guest(cpu: &Cpu, seen: Seen, space: Option<Obj<AddressSpace>>) {
    if ON && let Some(space) = space {
        let now = || Seen { space: space.id.get(), generation: space.generation.load(SeqCst) };
        assert!(seen == now() || soon(|| smp::has_mail(cpu)), "a guest would run with old translations");
    }
}

/// Whether something that another CPU is about to do is done soon.
fn soon(done: impl Fn() -> bool) -> bool {
    (0..100_000).any(|_| done())
}

/// Prints what this CPU saw: `cargo xtask bench` reads it.
pub fn report(cpu: &Cpu) {
    if !ON {
        return;
    }
    // Not this report itself.
    cpu.checks.stretches.begun.set(0);
    for (name, spans) in [("stretch", &cpu.checks.stretches), ("hold", &cpu.checks.holds)] {
        for (method, ticks) in spans.longest.iter().enumerate().filter(|(_, ticks)| ticks.get() != 0) {
            crate::log!("checks: {name} {method} {}", ticks.get());
        }
        crate::log!("checks: {name}s {}", spans.count.get());
    }
}
