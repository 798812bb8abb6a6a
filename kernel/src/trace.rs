//! The trace: a ring of events per CPU, written by that CPU alone. Format: `docs/abi/trace.md`, `moira_abi::trace`.

use crate::{
    arch,
    memory::{DIRECT_MAP, Obj},
    object::thread::Thread,
    percpu::{self, Cpu, attention},
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
pub use moira_abi::trace::{EVENTS, Event, kind::*};

/// Kinds of events that are recorded: bit n for kind n.
static KINDS: AtomicU64 = AtomicU64::new(0);
/// Times the trace was switched: what was said before is not known to the reader any more.
static TURN: AtomicU64 = AtomicU64::new(0);

/// A ring.
#[repr(C)]
pub struct Ring {
    /// Events ever written.
    pub written: Cell<u64>,
    /// Who was charged, and for whom, when it was said last; and in which turn of the trace.
    last: Cell<(u64, u64, u64)>,
    /// The last ones.
    pub events: [Cell<Event>; EVENTS],
}

/// Switches the trace of all CPUs on or off. `kinds`: 0 off, 1 all kinds of events, else bit n for kind n.
pub fn switch(kinds: u64) {
    TURN.fetch_add(1, Relaxed);
    KINDS.store(if kinds == 1 { u64::MAX } else { kinds }, Relaxed);
    for cpu in percpu::online() {
        match kinds {
            0 => cpu.attention.fetch_and(!attention::TRACE, Relaxed),
            _ => cpu.attention.fetch_or(attention::TRACE, Relaxed),
        };
    }
}

/// Records an event, if the trace is on.
#[inline(always)]
pub fn event(cpu: &Cpu, kind: u32, a: u64, b: u64) {
    if is_on(cpu) {
        record(cpu, arch::now(), kind, a, b);
    }
}

/// Records an event of a thread. Of its virtual address: the physical one is computed when the trace is on.
#[inline(always)]
pub fn of(cpu: &Cpu, kind: u32, thread: Obj<Thread>, b: u64) {
    event(cpu, kind, thread.address(), b);
}

/// Records an event of that moment: where the trace must say to the tick what the ledger says.
#[inline(always)]
pub fn event_at(cpu: &Cpu, time: u64, kind: u32, a: u64, b: u64) {
    if is_on(cpu) {
        record(cpu, time, kind, a, b);
    }
}

/// Whether anything is recorded.
#[inline(always)]
pub fn is_on(cpu: &Cpu) -> bool {
    cpu.attention.load(Relaxed) & attention::TRACE != 0
}

#[cold]
#[inline(never)]
fn record(cpu: &Cpu, time: u64, kind: u32, a: u64, b: u64) {
    if KINDS.load(Relaxed) >> kind & 1 == 0 {
        return;
    }
    let ring = &cpu.trace;
    let (written, what, a) = (ring.written.get(), kind as u64 | (cpu.index as u64) << 32, a & !DIRECT_MAP);
    ring.events[written as usize % EVENTS].set(Event { time, what, a, b });
    ring.written.set(written + 1);
}

/// A choice: who is charged from now on, and for whom, if that is news; else only which thread runs.
#[inline(always)]
pub fn account(cpu: &Cpu, thread: Option<Obj<Thread>>) {
    if is_on(cpu) {
        record_account(cpu, thread);
    }
}

#[cold]
#[inline(never)]
fn record_account(cpu: &Cpu, thread: Option<Obj<Thread>>) {
    let thread = thread.map_or(0, |thread| thread.physical());
    let time = cpu.account_since.get();
    let chosen = cpu.chosen.get().map_or(0, |context| context.physical());
    let whom = cpu.beneficiary.get().map_or(0, |context| context.physical());
    let said = (chosen, whom, TURN.load(Relaxed));
    if cpu.trace.last.replace(said) == said {
        return record(cpu, time, SWITCH, thread, 0);
    }
    record(cpu, time, CHOOSE, chosen, thread);
    if chosen != 0 && whom != chosen {
        record(cpu, time, FOR, chosen, whom);
    }
}
