//! `SchedContext`: an account of CPU time, homed on one CPU. ABI: `docs/abi/sched-context.md`.

use super::{Header, life, thread::Thread};
use crate::{
    memory::{self, Obj, Object},
    percpu::Cpu,
    sched,
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{
    Error, ObjectType, Rights,
    time::{LOSERS, Losers},
};

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
    /// Interrupt handlers of sources whose notification its thread waits on or is bound to. Not part of `own`.
    pub interrupts: Cell<u64>,
    /// What was charged on CPUs that it left.
    pub elsewhere: Cell<u64>,
    /// Who it lost time to (a context's number; 0: the place is free), and how much: the eight largest.
    pub losers: [Cell<(u64, u64)>; LOSERS],
    /// Time lost to others than the eight.
    pub lost_others: Cell<u64>,
    /// Time lost to nobody who lives: servers finish the requests of callers that died.
    pub lost_gone: Cell<u64>,
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
        if beneficiary == Some(self) {
            self.own.set(self.own.get() + ticks);
        } else {
            self.charge_lost(ticks, beneficiary);
        }
    }

    #[cold]
    fn charge_lost(self, ticks: u64, beneficiary: Option<Obj<SchedContext>>) {
        self.lost.set(self.lost.get() + ticks);
        let Some(other) = beneficiary else {
            self.lost_gone.set(self.lost_gone.get() + ticks);
            return;
        };
        other.helped.set(other.helped.get() + ticks);
        let mut least = &self.losers[0];
        for loser in &self.losers {
            let (name, total) = loser.get();
            if name == other.number() || name == 0 {
                loser.set((other.number(), total + ticks));
                return;
            }
            if total < least.get().1 {
                least = loser;
            }
        }
        // The eight largest keep their names: a newcomer's time is with the others until it is more than one of them has.
        let (_, total) = least.get();
        if ticks > total {
            least.set((other.number(), ticks));
        }
        self.lost_others.set(self.lost_others.get() + ticks.min(total));
    }

    /// Its number in accounts: its address in units of its size.
    pub fn number(self) -> u64 {
        self.physical() >> 9
    }

    /// It leaves its CPU: answers what it was charged there.
    pub fn leave(self) -> u64 {
        let total = self.own.get() + self.lost.get();
        total - self.elsewhere.replace(total)
    }
}

/// `bind`: W0 thread slot, W1 CPU slot. Neither may be bound. A context that was bound before stays on its CPU (`set_home` gives a
/// new one).
pub fn bind(context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    let table = caller.table()?;
    let thread: Obj<Thread> = table.object(caller.word(0), Rights::USE)?;
    let home: Obj<Cpu> = table.object(caller.word(1), Rights(0))?;
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

/// `consumed`: W0 own, W1 lost, W2 helped, W3 structural, W4 interrupts, W5 lost to nobody, W6 number, W7 its thread in the trace.
pub fn consumed(cpu: &Cpu, context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    sched::charge(cpu);
    caller.answer4(context.own.get(), context.lost.get(), context.helped.get(), context.structural.get());
    caller.set_word(4, context.interrupts.get());
    caller.set_word(5, context.lost_gone.get());
    caller.set_word(6, context.number());
    caller.set_word(7, context.thread.get().map_or(0, |thread| thread.physical()));
    Ok(())
}

/// `losers` into the caller's message buffer.
pub fn losers(cpu: &Cpu, context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    let buffer = caller.buffer()?;
    sched::charge(cpu);
    let mut losers = Losers { to: [[0; 2]; LOSERS], others: context.lost_others.get(), gone: context.lost_gone.get() };
    for (to, from) in losers.to.iter_mut().zip(&context.losers) {
        *to = from.get().into();
    }
    memory::write_struct(buffer, &losers);
    Ok(())
}

/// `set_home`: W0 CPU slot; the thread must be inactive, and an account that has a home is moved from there.
pub fn set_home(cpu: &Cpu, context: Obj<SchedContext>, caller: Obj<Thread>) -> Result<(), Error> {
    let home: Obj<Cpu> = caller.table()?.object(caller.word(0), Rights(0))?;
    if let Some(thread) = context.thread.get()
        && thread.header.life() != life::INACTIVE
    {
        return Err(Error::Active);
    }
    if context.header.life() == life::ACTIVE {
        if context.header.home() != cpu.index {
            return Err(Error::WrongCpu);
        }
        // Nothing here refers to it afterwards: it may be charged elsewhere from now on.
        cpu.cut_context(context);
    }
    context.index.set(home.take_index(context));
    context.header.home.store(home.index, Relaxed);
    context.header.life.store(life::ACTIVE, Release);
    Ok(())
}

/// Lets go of a context on its home CPU. Its time so far is booked to *gone*.
pub fn retire(context: Obj<SchedContext>, home: &Cpu) {
    home.cut_context(context);
    if let Some(thread) = context.thread.take() {
        thread.context.set(None);
        sched::disown(thread, Some(context));
    }
}
