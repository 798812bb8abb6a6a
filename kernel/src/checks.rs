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
    entered: Cell<u64>,
    locked: Cell<u64>,
    stretches: [Cell<u32>; ROWS],
    holds: [Cell<u32>; ROWS],
    counts: [Cell<u64>; 2],
}

/// Interrupts are off from here on: the kernel was entered for a method (0: a trap).
#[inline(always)]
pub fn entered(cpu: &Cpu, what: u8) {
    if ON {
        cpu.checks.what.set(what);
        cpu.checks.entered.set(arch::now());
    }
}

/// Interrupts were let in, and are off again.
#[inline(always)]
pub fn again(cpu: &Cpu) {
    if ON {
        cpu.checks.entered.set(arch::now());
    }
}

/// Interrupts are let in.
#[inline(always)]
pub fn left(cpu: &Cpu) {
    if ON {
        let now = arch::now();
        let entered = cpu.checks.entered.replace(0);
        if entered != 0 {
            longest(&cpu.checks.stretches, &cpu.checks.what, now - entered + ENTRY_AND_EXIT);
            cpu.checks.counts[0].set(cpu.checks.counts[0].get() + 1);
        }
    }
}

/// The structural lock was taken.
#[inline(always)]
pub fn locked(cpu: &Cpu) {
    if ON {
        cpu.checks.locked.set(arch::now());
    }
}

/// It is about to be given back.
#[inline(always)]
pub fn unlocked(cpu: &Cpu) {
    if ON {
        longest(&cpu.checks.holds, &cpu.checks.what, arch::now() - cpu.checks.locked.get());
        cpu.checks.counts[1].set(cpu.checks.counts[1].get() + 1);
    }
}

/// A task is about to run: its space is the one that is loaded.
#[inline(always)]
pub fn before_task(cpu: &Cpu, thread: Obj<Thread>) {
    if ON {
        let space = thread.space.embedded::<AddressSpace>();
        let loaded = cpu.loaded_space.load(Relaxed);
        // A space that dies at this moment on another CPU has a flush on its way here.
        let good = space.is_some_and(|space| {
            loaded == space.physical() && arch::mitigations::loaded(cpu) == space.load.get()
                || soon(|| smp::has_mail(cpu))
        });
        assert!(good || soon(|| smp::has_mail(cpu)), "a task would run with another one's translations");
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

fn longest(rows: &[Cell<u32>], what: &Cell<u8>, ticks: u64) {
    if let Some(row) = rows.get(what.get() as usize)
        && ticks > row.get() as u64
    {
        row.set(ticks.min(u32::MAX as u64) as u32);
    }
}

/// Prints what this CPU saw: `cargo xtask bench` reads it.
pub fn report(cpu: &Cpu) {
    if !ON {
        return;
    }
    // Not this report itself.
    cpu.checks.entered.set(0);
    for (name, rows, count) in
        [("stretch", &cpu.checks.stretches, &cpu.checks.counts[0]), ("hold", &cpu.checks.holds, &cpu.checks.counts[1])]
    {
        for (method, ticks) in rows.iter().enumerate().filter(|(_, ticks)| ticks.get() != 0) {
            crate::log!("checks: {name} {method} {}", ticks.get());
        }
        crate::log!("checks: {name}s {}", count.get());
    }
}
