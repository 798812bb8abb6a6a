//! `Cpu`: one processor: its plan, its scheduler, its ledger. ABI: `docs/abi/cpu.md`.

use super::{life, plan::Plan, sched_context::SchedContext, thread::Thread};
use crate::{
    cap, memory,
    memory::Obj,
    percpu::{Cpu, NO_PLAN},
    sched, smp,
};
use core::sync::atomic::Ordering::*;
use moira_abi::{Error, Rights, time::CpuLedger};

/// `install_plan`: W0 plan slot, 0 for none.
pub fn install_plan(cpu: &Cpu, target: Obj<Cpu>, caller: Obj<Thread>) -> Result<(), Error> {
    let plan = if caller.word(0) == 0 {
        None
    } else {
        let plan: Obj<Plan> = caller.table()?.object(caller.word(0), Rights::USE)?;
        if plan.cpu.get() != target.index as u64 + 1 {
            return Err(if plan.cpu.get() == 0 { Error::BadPlan } else { Error::WrongCpu });
        }
        if plan.header.life() == life::ACTIVE {
            return Err(Error::Active);
        }
        Some(plan)
    };
    // Only this method sets it, under the structural lock; the CPU itself only clears it.
    if target.next_plan.load(Acquire) != 0 {
        return Err(Error::Again);
    }
    if let Some(plan) = plan {
        plan.header.home.store(target.index, Relaxed);
        plan.header.life.store(life::ACTIVE, Release);
    }
    target.next_plan.store(plan.map_or(NO_PLAN, |plan| plan.physical()), Release);
    if target.index == cpu.index {
        cpu.must_choose.set(true);
    } else {
        smp::post_cpu(&target, smp::mail::PLAN);
    }
    Ok(())
}

/// `set_scheduler`: W0 context slot, W1 status-page frame slot.
pub fn set_scheduler(cpu: &Cpu, target: Obj<Cpu>, caller: Obj<Thread>) -> Result<(), Error> {
    let table = caller.table()?;
    let context: Obj<SchedContext> = table.object(caller.word(0), Rights::USE)?;
    let frame = cap::slot_of(table, caller.word(1))?;
    frame.read().frame(Rights::READ.or(Rights::WRITE))?;
    context.header.active_on(target.index)?;
    cap::keep(frame, &target.status, Rights::ALL)?;
    target.next_scheduler.store(context.physical(), Release);
    if target.index == cpu.index {
        sched::register(cpu);
    } else {
        smp::post_cpu(&target, smp::mail::SCHEDULER);
    }
    Ok(())
}

/// `ledger` into the caller's message buffer.
pub fn ledger(cpu: &Cpu, target: Obj<Cpu>, caller: Obj<Thread>) -> Result<(), Error> {
    let buffer = caller.buffer()?;
    if target.index == cpu.index {
        sched::charge(cpu);
    }
    memory::write_struct(
        buffer,
        &CpuLedger {
            elapsed: target.account_since.get() - target.ledger_start.get(),
            contexts: target.charged.get(),
            idle: target.idle.get(),
            interrupts: target.interrupt_time.get(),
            gone: target.gone.load(Relaxed),
            choices: target.choices.get(),
            started: target.ledger_start.get(),
        },
    );
    Ok(())
}
