//! Contexts that come with a contract live on the slack of a CPU that has a scheduler, if their contract says so: told of by the planner, on each CPU,
//! forgotten when the contract ends, and told again to a scheduler that was made anew.

use super::{Agent, Failure, PATIENCE, Tenant};
use moira_rt::{
    proto::planner::{ASK, BOUND, DONE, EXTRA, INSTALL, RELEASE, YES},
    sys::{self, Capability, Cpu, Message, Thread, abi::fault::Registers},
};

/// Times that somebody must be seen to have had slack.
const OFTEN: u32 = 3;
/// How long it looks each time.
const PERIODS: u64 = 4;

impl Agent<'_> {
    /// Runs the test on the first two CPUs.
    pub(super) fn slack(&mut self, exact: bool) -> Result<(), Failure> {
        for cpu in 0..2 {
            let lives = self.newcomer(cpu, 0, EXTRA, true)?;
            let takes = self.newcomer(cpu, self.slice / 2, EXTRA, true)?;
            let content = self.newcomer(cpu, self.slice / 2, 0, false)?;
            self.has_slack(&takes)?;
            self.has_slack(&lives)?;
            self.has_windows_only(&content, exact)?;
            if cpu == 0 {
                self.end_scheduler()?;
                self.has_slack(&lives)?;
                self.has_slack(&takes)?;
                self.has_windows_only(&content, exact)?;
            }
            self.forgotten(&takes)?;
            self.has_slack(&lives)?;
            // Where one was, another one comes: he is not taken for the one before.
            let again = self.newcomer(cpu, self.slice / 2, EXTRA, true)?;
            self.has_slack(&again)?;
            // One that dies without a word gives its place back, too.
            again.memory.revoke_fully().map_err(|error| alloc::format!("{error:?}"))?;
            let last = self.newcomer(cpu, 0, EXTRA, true)?;
            self.has_slack(&last)?;
            must!(self.call(&Message::new(RELEASE).words([again.id]))?.label == DONE, "RELEASE was refused");
            for tenant in [lives, content, last] {
                self.forgotten(&tenant)?;
            }
            log::info!("tenant: slack of CPU {cpu} was had as promised");
        }
        Ok(())
    }

    /// Asks for a contract on a CPU and gives a thread to it.
    fn newcomer(&mut self, cpu: u64, slice: u64, flags: u64, slack: bool) -> Result<Tenant, Failure> {
        let answer = self.call(&Message::new(ASK).words([slice, self.period, 0, BOUND | flags, cpu]))?;
        must!(answer.label == YES, "ASK on CPU {cpu}: {answer:?}");
        let received = answer.capability(0).ok_or("no CPU came with the answer")?;
        let tenant = self.thread(answer.words[0], cpu, Cpu::at(received));
        let _ = self.env.table().delete_fully(received);
        let tenant = tenant.map_err(|error| alloc::format!("a thread on CPU {cpu}: {error:?}"))?;
        let install = Message::new(INSTALL).words([tenant.id]).capability(tenant.context.slot());
        let answer = self.call(&install)?;
        must!(answer.label == DONE && answer.words[0] == u64::from(slack), "INSTALL on CPU {cpu}: {answer:?}");
        Ok(tenant)
    }

    fn own(tenant: &Tenant) -> u64 {
        tenant.context.consumed().map_or(0, |consumed| consumed.own)
    }

    /// What it has in [`PERIODS`].
    fn in_periods(&mut self, tenant: &Tenant) -> u64 {
        let before = Self::own(tenant);
        crate::sleep_until(self.env, sys::now() + PERIODS * self.period);
        Self::own(tenant) - before
    }

    /// It has more than its windows, again and again: those are a tenth of the time.
    fn has_slack(&mut self, tenant: &Tenant) -> Result<(), Failure> {
        let mut times = 0;
        for _ in 0..PATIENCE {
            times += u32::from(self.in_periods(tenant) > PERIODS * self.period / 5);
            if times >= OFTEN {
                return Ok(());
            }
        }
        Err(alloc::format!("contract {} on CPU {} had slack {times} times", tenant.id, tenant.cpu))
    }

    fn has_windows_only(&mut self, tenant: &Tenant, exact: bool) -> Result<(), Failure> {
        // Its windows come with a plan that replaces another one at the end of a cycle; others may have had slack before.
        let begun = (0..PATIENCE).any(|_| Self::own(tenant) > 0 || self.in_periods(tenant) > 0);
        must!(begun, "contract {} on CPU {} never began", tenant.id, tenant.cpu);
        let (had, promised) = (self.in_periods(tenant), PERIODS * self.slice / 2);
        must!(had > 0, "contract {} on CPU {} had nothing", tenant.id, tenant.cpu);
        // An emulator that was kept waiting in somebody's window makes that longer.
        must!(
            !exact || had.abs_diff(promised) <= self.slice / 50,
            "contract {} on CPU {}: {had} ticks instead of {promised}",
            tenant.id,
            tenant.cpu
        );
        Ok(())
    }

    /// Its contract ends, and its time.
    fn forgotten(&mut self, tenant: &Tenant) -> Result<(), Failure> {
        must!(self.call(&Message::new(RELEASE).words([tenant.id]))?.label == DONE, "RELEASE was refused");
        let stopped = (0..PATIENCE).any(|_| self.in_periods(tenant) == 0);
        must!(stopped, "contract {} on CPU {} was released and still has time", tenant.id, tenant.cpu);
        tenant.memory.revoke_fully().map_err(|error| alloc::format!("{error:?}"))
    }

    /// Makes the scheduler of the own CPU fault; its supervisor makes it anew, with an empty table.
    fn end_scheduler(&mut self) -> Result<(), Failure> {
        let thread: Thread = self.env.capability("scheduler-0-control").ok_or("not given the scheduler")?;
        let buffer = &mut self.env.buffer;
        let stopped = thread.stop().and_then(|()| thread.read_registers(buffer));
        let broken = stopped.and_then(|snapshot| {
            let registers = Registers { rip: 0, ..snapshot.registers };
            thread.write_registers(buffer, &registers)
        });
        let ended = broken.and_then(|()| thread.resume());
        ended.map_err(|error| alloc::format!("the scheduler cannot be ended: {error:?}"))
    }
}
