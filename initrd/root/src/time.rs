//! Plans and schedulers: what the manifest promises becomes the windows of each CPU.

use crate::{Doing, Failure, Root, grants::status_of};
use alloc::{format, vec::Vec};
use log::{debug, info};
use moira_abi::boot::slot;
use moira_proto::system::{Role, Time};
use moira_root::plan::{self, Contract, Terms};
use moira_rt::sys::{SchedContext, Slot};

/// What the root task keeps for itself on CPU 0, to see to tasks that died: nanoseconds in each period.
const OWN_SLICE: u64 = 500_000;
const OWN_PERIOD: u64 = 10_000_000;
/// Cycle where nobody is promised anything, and longest window of slack, in nanoseconds.
const CYCLE: u64 = 10_000_000;
const QUANTUM: u64 = 2_000_000;
/// Shortest window: what a switch costs should be small beside it.
const SHORTEST: u64 = 10_000;

/// A thread with time of its own.
pub struct Account<'a> {
    /// Its task.
    pub name: &'a str,
    /// Where it lives.
    pub cpu: u32,
    /// What it was promised.
    pub time: &'a Time,
    /// Who pays.
    pub context: SchedContext,
}

impl Root {
    fn ticks(&self, nanoseconds: u64) -> u64 {
        let ticks = u128::from(nanoseconds) * u128::from(self.info.tsc_hz) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// All that have time of their own: main threads and further ones, in the order of the tasks.
    pub fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.system.tasks.iter().zip(&self.identities).flat_map(|(spec, identity)| {
            let main = (spec.cpu, &spec.time, identity.context);
            let further = spec.threads.iter().zip(&identity.threads);
            let further = further.map(|(thread, known)| (thread.cpu, &thread.time, known.context));
            core::iter::once(main)
                .chain(further)
                .filter_map(|(cpu, time, context)| Some(Account { name: &spec.name, cpu, time, context: context? }))
        })
    }

    /// Makes the scheduler tasks what they are.
    pub fn register_schedulers(&mut self) -> Result<(), Failure> {
        for (spec, identity) in self.system.tasks.iter().zip(&self.identities) {
            if spec.role != Role::Scheduler {
                continue;
            }
            let doing = || format!("registering the scheduler {}", spec.name);
            let context = identity.context.ok_or_else(|| format!("{}: it has no time of its own", doing()))?;
            let status = self.store.regions.get(&status_of(spec.cpu)).and_then(|page| page.parts.first());
            let status = status.ok_or_else(|| format!("{}: it has no status page", doing()))?;
            self.machine.cpu(spec.cpu)?.set_scheduler(context, status.frame).doing(doing)?;
        }
        Ok(())
    }

    /// Makes and installs a plan for each CPU, that of the root task's own CPU last: with it the root task's time ends but for
    /// its windows.
    pub fn install_plans(&mut self) -> Result<(), Failure> {
        for index in (0..self.machine.cpus.len() as u32).rev() {
            let scheduled = self.system.tasks.iter().any(|task| task.cpu == index && task.role == Role::Scheduler);
            let mut owners: Vec<SchedContext> = Vec::new();
            let mut names = Vec::new();
            let mut contracts = Vec::new();
            if index == 0 {
                owners.push(SchedContext::new(Slot(slot::CONTEXT)));
                names.push("root");
                contracts.push(Contract {
                    slice: self.ticks(OWN_SLICE),
                    period: self.ticks(OWN_PERIOD),
                    latency: 0,
                    extra: false,
                });
            }
            for account in self.accounts().filter(|account| account.cpu == index) {
                owners.push(account.context);
                names.push(account.name);
                contracts.push(Contract {
                    slice: self.ticks(account.time.slice_ns),
                    period: self.ticks(account.time.period_ns),
                    latency: self.ticks(account.time.latency_ns),
                    extra: account.time.extra,
                });
            }
            if owners.is_empty() {
                continue;
            }
            let terms = Terms {
                cycle: self.ticks(CYCLE),
                shortest: self.ticks(SHORTEST).max(1000),
                quantum: self.ticks(QUANTUM),
                fill: !scheduled,
            };
            let plan = plan::make(&contracts, &terms).map_err(|why| {
                let name = why.owner().and_then(|owner| names.get(owner)).copied().unwrap_or_default();
                format!("CPU {index}: the time of task {name} cannot be promised: {why}")
            })?;
            let promised =
                (u128::from(plan.promised) * 1000 + u128::from(plan.cycle) / 2) / u128::from(plan.cycle.max(1));
            let (windows, whole, part) = (plan.windows.len(), promised / 10, promised % 10);
            info!(
                "root: CPU {index}: {windows} windows in {} us, {whole}.{part} % promised",
                crate::microseconds(self.info, plan.cycle)
            );
            for window in &plan.windows {
                debug!(
                    "root: CPU {index}: {} to {}: {}",
                    window.start,
                    window.end,
                    names.get(window.owner).copied().unwrap_or_default()
                );
            }
            self.install(index, &plan, &owners)?;
        }
        Ok(())
    }

    fn install(&mut self, index: u32, plan: &plan::Plan, owners: &[SchedContext]) -> Result<(), Failure> {
        let doing = || format!("the plan of CPU {index}");
        let bytes = (plan.windows.len() as u64 + 2) * 32;
        let bits = bytes.next_power_of_two().trailing_zeros().max(12) as u8;
        let block = self.pool.take(bits, &mut self.memory.slots).doing(doing)?;
        let slot = self.slot()?;
        let object = block.untyped.retype_plan(bits, slot).doing(doing)?;
        object.clear(plan.cycle).doing(doing)?;
        for window in &plan.windows {
            if let Some(owner) = owners.get(window.owner) {
                object.append(*owner, window.start, window.end).doing(doing)?;
            }
        }
        let cpu = self.machine.cpu(index)?;
        moira_rt::sys::fully(|| cpu.install_plan(Some(object))).doing(doing)
    }
}
