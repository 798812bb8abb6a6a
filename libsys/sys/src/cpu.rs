//! Processors, plans and the scheduler's call.

use crate::slot::capability;
use crate::*;
use moira_abi::{
    Method,
    time::{CpuLedger, blocked, dispatch},
};

capability! {
    /// A processor. Rights: PLAN, DISPATCH.
    Cpu, Cpu
}

capability! {
    /// Windows of one cycle for one CPU.
    Plan, Plan
}

/// Where a context that was dispatched cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// It receives or waits.
    Waiting,
    /// It is stopped, inactive or parked.
    Stopped,
    /// Its thread is gone.
    Gone,
}

impl Blocked {
    /// From the number on the status page or in an answer; `None`: it can run.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Blocked> {
        match code {
            blocked::RUNNABLE => None,
            blocked::WAITING => Some(Blocked::Waiting),
            blocked::STOPPED => Some(Blocked::Stopped),
            _ => Some(Blocked::Gone),
        }
    }
}

/// How a dispatch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatched {
    /// The token was older than the sequence: nothing ran; read the news.
    Stale,
    /// There is news.
    News,
    /// `until` passed.
    Until,
    /// The context is blocked.
    Blocked {
        /// How.
        kind: Blocked,
        /// When its wait ends; 0: no such time.
        deadline: u64,
        /// Number of the thread at which its chain of calls is blocked, as the news log will carry it; 0: look on the status page.
        at: u32,
    },
}

impl Cpu {
    /// Installs a plan (PLAN): at the next cycle boundary of the old one, or at once if there is none. `None`: all is slack.
    ///
    /// # Errors
    /// `InUse` (installed elsewhere); `BadPlan` (empty); `WrongCpu` (a context of it is homed elsewhere).
    pub fn install_plan(self, plan: Option<Plan>) -> Result<(), Error> {
        let slot = plan.map_or(Slot::NONE, Capability::slot);
        raw::simple(Method::CpuInstallPlan, self.slot().0, &[slot.word()]).map(|_| ())
    }

    /// Makes a context's thread the slack scheduler of this CPU (PLAN) and names the frame that becomes its status page.
    ///
    /// # Errors
    /// `WrongCpu` (homed elsewhere); `Inactive` (not bound); `BadArgument` (frame size).
    pub fn set_scheduler(self, context: SchedContext, status: Frame) -> Result<(), Error> {
        let words = [context.slot().word(), status.slot().word()];
        raw::simple(Method::CpuSetScheduler, self.slot().0, &words).map(|_| ())
    }

    /// Gives the slack to a context (or to nobody) until there is something to decide (DISPATCH, the registered scheduler only).
    /// `token` is the sequence that the caller read before it read the news. Answers how it ended, and the ticks that the context was
    /// charged meanwhile outside of its windows.
    ///
    /// # Errors
    /// `NoRight` (not the scheduler); `WrongCpu`; `BadArgument` (itself). Errors of the context's slot.
    #[inline(always)]
    pub fn dispatch(
        self,
        context: Option<SchedContext>,
        until: Deadline,
        token: u64,
    ) -> Result<(Dispatched, u64), Error> {
        let slot = context.map_or(Slot::NONE, Capability::slot);
        // W3 and W4 go in as 0, so that an answer without them says "unknown" and "nothing".
        let answer = match raw::simple(Method::Dispatch, self.slot().0, &[slot.word(), until.0, token, 0, 0]) {
            Err(Error::Stale) => return Ok((Dispatched::Stale, 0)),
            other => other?,
        };
        let dispatched = match answer[0] {
            dispatch::STALE => Dispatched::Stale,
            dispatch::UNTIL => Dispatched::Until,
            dispatch::BLOCKED => match Blocked::from_code(answer[1] as u32) {
                Some(kind) => Dispatched::Blocked { kind, deadline: answer[2], at: answer[3] as u32 },
                None => Dispatched::News,
            },
            _ => Dispatched::News,
        };
        Ok((dispatched, answer[4]))
    }

    /// The CPU's accounts (PLAN or DISPATCH). `buffer` is the calling thread's own; its contents are overwritten.
    ///
    /// # Errors
    /// `WrongCpu`.
    pub fn ledger(self, buffer: &mut MessageBuffer) -> Result<CpuLedger, Error> {
        raw::simple(Method::CpuLedger, self.slot().0, &[])?;
        Ok(CpuLedger {
            elapsed: buffer.word(0),
            contexts: buffer.word(1),
            idle: buffer.word(2),
            interrupts: buffer.word(3),
            gone: buffer.word(4),
            choices: buffer.word(5),
            started: buffer.word(6),
        })
    }
}

impl Plan {
    /// Empties a plan that is not installed and sets the length of its cycle in TSC ticks.
    ///
    /// # Errors
    /// `InUse` (installed); `BadArgument` (length).
    pub fn clear(self, cycle: u64) -> Result<(), Error> {
        raw::simple(Method::PlanClear, self.slot().0, &[cycle]).map(|_| ())
    }

    /// Appends windows in few calls: each is its context, start and end, after all windows before it. `buffer` is the calling thread's
    /// own; its contents are overwritten. On an error a whole number of eights was appended.
    ///
    /// # Errors
    /// As [`Plan::append`].
    pub fn append_all(self, buffer: &mut MessageBuffer, windows: &[(SchedContext, u64, u64)]) -> Result<(), Error> {
        for chunk in windows.chunks(16) {
            let mut bytes = [0; 16 * 24];
            for (place, (context, start, end)) in bytes.chunks_exact_mut(24).zip(chunk) {
                let words = [context.slot().word(), *start, *end];
                for (place, word) in place.chunks_exact_mut(8).zip(words) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
            }
            buffer.write(bytes.get(..24 * chunk.len()).unwrap_or_default());
            let count = [chunk.len() as u64, 0];
            raw::simple(Method::PlanAppendMany, self.slot().0, &count)?;
        }
        Ok(())
    }

    /// Appends a window: `start` to `end` in ticks from the start of the cycle, after all windows before it.
    ///
    /// # Errors
    /// `BadPlan`; `NoMemory` (the plan is full); `InUse` (installed).
    pub fn append(self, context: SchedContext, start: u64, end: u64) -> Result<(), Error> {
        raw::simple(Method::PlanAppend, self.slot().0, &[context.slot().word(), start, end]).map(|_| ())
    }
}
