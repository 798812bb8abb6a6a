//! `Plan`: the windows of one cycle for one CPU. ABI: `docs/abi/plan.md`. Following it: `sched.rs`.

use super::{Header, sched_context, thread::Thread};
use crate::memory::{self, Obj, Object};
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

/// Windows that one `append many` takes at most: what fits a hold of the lock.
pub const MANY: usize = 8;

/// `append`: W0 context slot, W1 start, W2 end.
pub fn append(plan: Obj<Plan>, caller: Obj<Thread>) -> Result<(), Error> {
    fill(plan, caller, &[[caller.word(0), caller.word(1), caller.word(2)]])
}

/// `append many`: W0 windows, which lie in the message buffer as context slot, start, end. All of them, or none.
pub fn append_many(plan: Obj<Plan>, caller: Obj<Thread>) -> Result<(), Error> {
    let count = caller.word(0) as usize;
    if count == 0 || count > MANY {
        return Err(Error::BadArgument);
    }
    // Read once: another thread of the task may write it meanwhile.
    let asked: [[u64; 3]; MANY] = memory::read_struct(caller.buffer().ok_or(Error::NotMapped)?);
    fill(plan, caller, &asked[..count])
}

fn fill(plan: Obj<Plan>, caller: Obj<Thread>, asked: &[[u64; 3]]) -> Result<(), Error> {
    editable(plan)?;
    let (table, length, count) = (caller.table()?, plan.length.get(), plan.count.get() as usize);
    let mut home = plan.cpu.get();
    let mut previous = if count == 0 { 0 } else { plan.window(count - 1).end };
    if count + asked.len() > plan.capacity() as usize {
        return Err(Error::NoMemory);
    }
    for (index, [slot, start, end]) in asked.iter().enumerate() {
        let context = sched_context::source(table, *slot)?;
        if context.header.life() != super::life::ACTIVE {
            return Err(Error::Inactive);
        }
        let here = context.header.home() as u64 + 1;
        if home != 0 && home != here {
            return Err(Error::WrongCpu);
        }
        home = here;
        if !plan::may_append(length, previous, *start, *end) {
            return Err(Error::BadPlan);
        }
        previous = *end;
        let Some(owner) = context.in_window() else { return Err(Error::TooDeep) };
        // Not a window before it is counted: an error later on leaves the plan as it was.
        plan.cell(count + index).set(Window { start: *start, end: *end, owner, reserved: 0 });
    }
    plan.count.set((count + asked.len()) as u64);
    plan.cpu.set(home);
    Ok(())
}
