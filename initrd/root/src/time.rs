//! Plans and schedulers: what the manifest promises becomes the windows of each CPU.

use crate::{Doing, Failure, Root, grants::status_of};
use alloc::{format, vec::Vec};
use log::{debug, info};
use moira_abi::boot::slot;
use moira_planner::{Contract, Table, Terms};
use moira_proto::{
    planner::{Book, Booked},
    system::{Role, Time},
};
use moira_rt::sys::{SchedContext, Slot};

/// The root task's own account.
pub const OWN: SchedContext = SchedContext::new(Slot(slot::CONTEXT));
/// Where the root task lives.
pub const OWN_CPU: u32 = 0;
/// What the root task keeps for itself there, to see to tasks that died: nanoseconds in each period. Memory that is to be cleaned makes that long work,
/// so it takes slack as well.
const OWN_SLICE: u64 = 500_000;
const OWN_PERIOD: u64 = 10_000_000;
/// Longest window of slack where there is no scheduler, in nanoseconds.
const QUANTUM: u64 = 2_000_000;
/// What the largest plan object holds.
const MOST_WINDOWS: usize = (1 << 20) / 32 - 2;

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
    pub(crate) fn ticks(&self, nanoseconds: u64) -> u64 {
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

    /// Those that take the slack of a CPU.
    pub fn slack_takers(&self, cpu: u32) -> impl Iterator<Item = Account<'_>> {
        self.accounts().filter(move |account| account.cpu == cpu && account.time.extra)
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

    /// What the manifest promises, the root task's own windows first.
    pub fn book(&self) -> Book {
        // Without a scheduler slack is handed out in windows, which are lost where their owner has nothing to do, and the root task hardly ever has: it
        // takes what nobody else would.
        let extra = self.scheduler_of(OWN_CPU).is_some() || self.slack_takers(OWN_CPU).next().is_none();
        let own = Booked {
            name: "root".into(),
            cpu: OWN_CPU,
            slice: self.ticks(OWN_SLICE),
            period: self.ticks(OWN_PERIOD),
            latency: 0,
            extra,
        };
        let tasks = self.accounts().map(|account| Booked {
            name: account.name.into(),
            cpu: account.cpu,
            slice: self.ticks(account.time.slice_ns),
            period: self.ticks(account.time.period_ns),
            latency: self.ticks(account.time.latency_ns),
            extra: account.time.extra,
        });
        let quantum = |cpu| {
            if self.scheduler_of(cpu).is_some() { 0 } else { self.ticks(QUANTUM) }
        };
        Book {
            quanta: (0..self.machine.cpus.len() as u32).map(quantum).collect(),
            newcomers: (0..self.machine.cpus.len() as u32).map(|cpu| self.newcomers_of(cpu)).collect(),
            contracts: core::iter::once(own).chain(tasks).collect(),
        }
    }

    /// Makes and installs a plan for each CPU, that of the root task's own CPU last: with it the root task's time ends but for
    /// its windows.
    pub fn install_plans(&mut self) -> Result<(), Failure> {
        let book = self.book();
        let terms = Terms::new(self.info.tsc_hz, MOST_WINDOWS);
        let contexts: Vec<SchedContext> =
            core::iter::once(OWN).chain(self.accounts().map(|account| account.context)).collect();
        for (index, quantum) in book.quanta.iter().enumerate().rev() {
            let index = index as u32;
            let here = || book.contracts.iter().zip(&contexts).filter(|(booked, _)| booked.cpu == index);
            let contracts: Vec<Contract> = here().map(|(booked, _)| Contract::from(booked)).collect();
            if contracts.is_empty() {
                continue;
            }
            let name = |owner: usize| here().nth(owner).map_or("", |(booked, _)| &booked.name);
            let quantum = (*quantum > 0).then_some(*quantum);
            let table = moira_planner::make_full(&contracts, &terms, quantum).map_err(|why| {
                let name = why.owner.map(name).unwrap_or_default();
                format!("CPU {index}: the time of task {name} cannot be promised: {}", why.reason)
            })?;
            let promised: u64 = contracts.iter().filter(|contract| contract.promises()).map(Contract::share_ppm).sum();
            let promised = (promised + 500) / 1_000;
            let (windows, whole, part) = (table.windows.len(), promised / 10, promised % 10);
            info!(
                "root: CPU {index}: {windows} windows in {} us, {whole}.{part} % promised",
                crate::microseconds(self.info, table.cycle)
            );
            for window in &table.windows {
                debug!("root: CPU {index}: {} to {}: {}", window.start, window.end, name(window.owner));
            }
            let owners: Vec<SchedContext> = here().map(|(_, context)| *context).collect();
            self.install(index, &table, &owners)?;
        }
        Ok(())
    }

    fn install(&mut self, index: u32, plan: &Table, owners: &[SchedContext]) -> Result<(), Failure> {
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
