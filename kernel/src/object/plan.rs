//! `Plan`: the windows of one cycle for one CPU. ABI: `docs/abi/plan.md`. Following it: `sched.rs`.

use super::{Header, sched_context, thread::Thread};
use crate::memory::{Obj, Object};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{Error, ObjectType};
use moira_kernel_core::plan::{self, Window};

/// The header of a plan; windows of 32 bytes follow at offset 64.
#[repr(C, align(64))]
pub struct Plan {
    /// Header. `life` is ACTIVE while some CPU follows it or is about to.
    pub header: Header,
    /// Ticks of a cycle; 0: cleared never.
    pub length: Cell<u64>,
    /// Windows in use.
    pub count: Cell<u64>,
    /// CPU index + 1 of the windows' contexts; 0: no window yet.
    pub cpu: Cell<u64>,
}

impl Object for Plan {
    const KIND: ObjectType = ObjectType::Plan;
}

impl Obj<Plan> {
    /// Windows there is room for.
    pub fn capacity(self) -> u64 {
        ((1u64 << self.header.bits.load(Relaxed)) - 64) / 32
    }

    fn cell(self, index: usize) -> Obj<Cell<Window>> {
        // SAFETY: callers stay below the capacity; the memory behind the header belongs to the plan.
        unsafe { Obj::at(self.physical() + 64 + index as u64 * 32) }
    }

    /// A window.
    #[inline(always)]
    pub fn window(self, index: usize) -> Window {
        self.cell(index).get()
    }
}

fn editable(plan: Obj<Plan>) -> Result<(), Error> {
    if plan.header.life() == super::life::ACTIVE { Err(Error::Active) } else { Ok(()) }
}

/// `clear`: W0 length of a cycle in ticks.
pub fn clear(plan: Obj<Plan>, caller: Obj<Thread>) -> Result<(), Error> {
    editable(plan)?;
    if !plan::valid_length(caller.word(0)) {
        return Err(Error::BadArgument);
    }
    plan.length.set(caller.word(0));
    plan.count.set(0);
    plan.cpu.set(0);
    Ok(())
}

/// `append`: W0 context slot, W1 start, W2 end.
pub fn append(plan: Obj<Plan>, caller: Obj<Thread>) -> Result<(), Error> {
    editable(plan)?;
    let context = sched_context::source(caller.table()?, caller.word(0))?;
    if context.header.life() != super::life::ACTIVE {
        return Err(Error::Inactive);
    }
    let home = context.header.home() as u64 + 1;
    if plan.cpu.get() != 0 && plan.cpu.get() != home {
        return Err(Error::WrongCpu);
    }
    let (start, end, count) = (caller.word(1), caller.word(2), plan.count.get());
    let previous = if count == 0 { 0 } else { plan.window(count as usize - 1).end };
    if !plan::may_append(plan.length.get(), previous, start, end) {
        return Err(Error::BadPlan);
    }
    if count >= plan.capacity() {
        return Err(Error::NoMemory);
    }
    let Some(owner) = context.in_window() else { return Err(Error::TooDeep) };
    plan.cell(count as usize).set(Window { start, end, owner, reserved: 0 });
    plan.count.set(count + 1);
    plan.cpu.set(home);
    Ok(())
}
