//! `Plan`: the windows of one cycle for one CPU. ABI: `docs/abi/plan.md`. Following it: `sched.rs`.

use super::{Header, cap_table::CapTable, sched_context::SchedContext, thread::Thread};
use crate::{
    memory::{Obj, Object, Page},
    percpu::Cpu,
    smp,
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{Error, ObjectType, Rights};
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

    fn room(&self) -> &[Cell<Window>] {
        // SAFETY: the memory behind the header belongs to the plan; every pattern is a window.
        unsafe { core::slice::from_raw_parts((self.address() + 64) as *const _, self.capacity() as usize) }
    }

    /// Its windows.
    #[inline(always)]
    pub fn windows(&self) -> &[Cell<Window>] {
        // SAFETY: as for `room`; never more are counted than there is room for.
        unsafe { core::slice::from_raw_parts((self.address() + 64) as *const _, self.count.get() as usize) }
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

/// Windows that are appended in one hold of the lock.
const HOLD: usize = 8;
/// Windows that one `append many` takes at most.
const MANY: u64 = 16;

/// `append`: W0 context slot, W1 start, W2 end.
pub fn append(plan: Obj<Plan>, caller: Obj<Thread>) -> Result<(), Error> {
    fill(plan, caller.table()?, 1, |_| [caller.word(0), caller.word(1), caller.word(2)])
}

/// `append many`, without the lock: W0 windows, from number W1 on in the message buffer as context slot, start, end. Eight in a hold of the
/// lock: all of them, or none. W0 and W1 are the progress, with which the call runs again if the lock is taken (the answer is false).
pub fn append_many(cpu: &Cpu, plan: Obj<Plan>, caller: Obj<Thread>) -> Result<bool, Error> {
    let (table, buffer) = (caller.table()?, Page(caller.buffer()?));
    let (mut left, mut first) = (caller.word(0), caller.word(1));
    if left == 0 || left > MANY || first.saturating_add(left) > 128 + MANY {
        return Err(Error::BadArgument);
    }
    while left > 0 {
        let count = (left as usize).min(HOLD);
        // Each word is read once: another thread of the task may write it meanwhile.
        if !smp::lock(cpu) {
            return Ok(false);
        }
        let result = fill(plan, table, count, |index| {
            let at = (first + index as u64) * 24;
            [buffer.read(at), buffer.read(at + 8), buffer.read(at + 16)]
        });
        smp::unlock(cpu);
        result?;
        (left, first) = (left - count as u64, first + count as u64);
        caller.answer2(left, first);
    }
    Ok(true)
}

fn fill(plan: Obj<Plan>, table: Obj<CapTable>, more: usize, asked: impl Fn(usize) -> [u64; 3]) -> Result<(), Error> {
    editable(plan)?;
    let (length, count) = (plan.length.get(), plan.count.get() as usize);
    let mut home = plan.cpu.get();
    let mut previous = plan.windows().last().map_or(0, |window| window.get().end);
    let room = plan.room().get(count..count + more).ok_or(Error::NoMemory)?;
    for (index, window) in room.iter().enumerate() {
        let [slot, start, end] = asked(index);
        let context: Obj<SchedContext> = table.object(slot, Rights::USE)?;
        if context.header.life() != super::life::ACTIVE {
            return Err(Error::Inactive);
        }
        let here = context.header.home() as u64 + 1;
        if home != 0 && home != here {
            return Err(Error::WrongCpu);
        }
        home = here;
        if !plan::may_append(length, previous, start, end) {
            return Err(Error::BadPlan);
        }
        previous = end;
        let owner = context.in_window().ok_or(Error::TooDeep)?;
        // Not a window before it is counted: an error later on leaves the plan as it was.
        window.set(Window { start, end, owner, reserved: 0 });
    }
    plan.count.set((count + more) as u64);
    plan.cpu.set(home);
    Ok(())
}
