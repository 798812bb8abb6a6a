//! `SchedContext`: an account of CPU time, homed on one CPU. ABI: `docs/abi/sched-context.md`.

use super::{Header, cpu, life, thread::Thread};
use crate::{
    cap,
    memory::{Obj, Object},
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{Error, ObjectType, Rights};

/// Losers that an account keeps by name.
pub const LOSERS: usize = 8;

/// A scheduling context: 512 bytes.
#[repr(C)]
pub struct SchedContext {
    /// Header.
    pub header: Header,
    /// The thread it pays for.
    pub thread: Cell<Option<Obj<Thread>>>,
    /// Time charged to it for its own work.
    pub own: Cell<u64>,
    /// Time charged to it while it helped others along.
    pub lost: Cell<u64>,
    /// Time others were charged while they worked for it.
    pub helped: Cell<u64>,
    /// Part of `own`: structural work it asked for.
    pub structural: Cell<u64>,
    /// Index on the status page, or `u32::MAX`.
    pub index: Cell<u32>,
    /// Who it lost time to, and how much.
    pub losers: [Cell<(u64, u64)>; LOSERS],
    /// Time lost to others than the eight.
    pub lost_others: Cell<u64>,
}

static_assertions::const_assert!(size_of::<SchedContext>() <= 512);

impl Object for SchedContext {
    const KIND: ObjectType = ObjectType::SchedContext;
}

impl Obj<SchedContext> {
    /// How a plan's window names it: its address with its index in the low bits. A window proves nothing: contexts die without
    /// a search for the plans that name them. `None`: it has no index.
    pub fn in_window(self) -> Option<u64> {
        let index = self.index.get() as u64;
        (index < 512).then_some(self.physical() | index)
    }

    /// Charges time to this account. `beneficiary` is whose request ran.
    #[inline(always)]
    pub fn charge(self, ticks: u64, beneficiary: Option<Obj<SchedContext>>) {
        match beneficiary {
            Some(other) if other != self => self.charge_lost(ticks, other),
            _ => self.own.set(self.own.get() + ticks),
        }
    }

    #[cold]
    fn charge_lost(self, ticks: u64, other: Obj<SchedContext>) {
        self.lost.set(self.lost.get() + ticks);
        other.helped.set(other.helped.get() + ticks);
        for loser in &self.losers {
            let (name, total) = loser.get();
            if name == other.physical() || name == 0 {
                loser.set((other.physical(), total + ticks));
                return;
            }
        }
        self.lost_others.set(self.lost_others.get() + ticks);
    }
}

/// `bind`: W0 thread slot, W1 CPU slot. Neither may be bound. A context that was bound before stays on its CPU (`set_home` gives a
/// new one).
pub fn bind(context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    let table = caller.table()?;
    let thread: Obj<Thread> = table.read(caller.word(0))?.object(Rights::USE)?;
    let home = cpu::named(caller, caller.word(1), Rights(0))?;
    if context.thread.get().is_some() || thread.context.get().is_some() {
        return Err(Error::InUse);
    }
    // An active thread's account is set on its own CPU only.
    let here = crate::arch::cpu().index;
    if thread.header.life() == life::ACTIVE && (thread.header.home() != home.index || thread.header.home() != here) {
        return Err(Error::WrongCpu);
    }
    // A context whose thread died keeps its home and its index for the next one.
    let kept = context.header.life() == life::ACTIVE;
    if kept && context.header.home() != home.index {
        return Err(Error::WrongCpu);
    }
    let index = if kept { context.index.get() } else { home.take_index(context) };
    context.index.set(index);
    context.thread.set(Some(thread));
    thread.context.set(Some(context));
    if thread.caller.get().is_none() {
        thread.beneficiary.set(Some(context));
    }
    context.header.home.store(home.index, Relaxed);
    context.header.life.store(life::ACTIVE, Release);
    caller.answer1(if index == u32::MAX { u64::MAX } else { index as u64 });
    Ok(())
}

/// `consumed`: W0 own, W1 lost, W2 helped, W3 structural.
pub fn consumed(context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    caller.answer4(context.own.get(), context.lost.get(), context.helped.get(), context.structural.get());
    Ok(())
}

/// `set_home`: W0 CPU slot; the thread must be inactive.
pub fn set_home(context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    let home = cpu::named(caller, caller.word(0), Rights(0))?;
    if let Some(thread) = context.thread.get()
        && thread.header.life() == life::ACTIVE
    {
        return Err(Error::Active);
    }
    if context.header.life() == life::ACTIVE {
        crate::percpu::by_index(context.header.home()).drop_index(context);
    }
    context.index.set(home.take_index(context));
    context.header.home.store(home.index, Relaxed);
    context.header.life.store(life::ACTIVE, Release);
    Ok(())
}

/// Lets go of a context on its home CPU. Its time so far is booked to *gone*.
pub fn retire(context: Obj<SchedContext>, home: &crate::percpu::Cpu) {
    home.cut_context(context);
    if let Some(thread) = context.thread.get() {
        thread.context.set(None);
        crate::sched::disown(thread, Some(context));
    }
    context.thread.set(None);
}

/// Assertion helper for the cap module: contexts are never frames.
pub fn source(table: Obj<super::cap_table::CapTable>, index: u64) -> Result<Obj<SchedContext>, Error> {
    cap::slot_of(table, index)?.read().object(Rights::USE)
}
