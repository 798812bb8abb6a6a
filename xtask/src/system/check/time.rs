//! Time: everybody's is said, and what is promised fits the CPU.

use super::super::manifest::{Contract, Name, Role, Task};
use super::super::units::Time;
use super::{Checker, threads_of};
use toml::Spanned;

/// Shortest and longest period that the planner makes plans for.
const PERIODS: std::ops::RangeInclusive<Time> = Time(100_000)..=Time(10_000_000_000);

impl Checker<'_> {
    pub(super) fn time(&mut self) {
        let manifest = self.manifest;
        for (name, task) in &manifest.tasks {
            self.source_of_time(name, task.get_ref());
            if let Some(contract) = &task.get_ref().time {
                self.contract(contract.get_ref());
            }
        }
        for cpu in 0..(*manifest.system.cpus.get_ref()).min(super::CPU_LIMIT) {
            self.sum(cpu);
        }
    }

    fn source_of_time(&mut self, name: &Name, task: &Task) {
        let text = name.get_ref();
        let passive = task.passive.as_ref().is_some_and(|passive| *passive.get_ref());
        if let (true, Some(passive)) = (passive, &task.passive) {
            if task.time.is_some() || task.slack {
                let hint = "a passive server runs on its callers' time only: remove `passive`, or `time` and `slack`";
                self.report(passive.span(), format!("`{text}` is passive and has time of its own"), hint);
            }
            if !task.serves {
                let hint = "nobody can lend it time: add `serves = true`, or give it `time` or `slack = true`";
                self.report(passive.span(), format!("`{text}` is passive and serves nothing"), hint);
            }
        } else if task.time.is_none() && !task.slack {
            let hint = "add `time = { slice = \"1ms\", period = \"10ms\" }`, `slack = true` or `passive = true`";
            self.report(name.span(), format!("`{text}` would never run"), hint);
        }
        if let Some(role) = &task.role
            && task.time.is_none()
        {
            let what = match role.get_ref() {
                Role::Planner => "planner",
                Role::Scheduler => "scheduler",
                Role::Supervisor => "supervisor",
                Role::Control => "control task",
            };
            let hint = "the system's guarantees stand on it: add `time = { slice = …, period = … }`";
            self.report(role.span(), format!("the {what} `{text}` has no window of its own"), hint);
        }
    }

    pub(super) fn contract(&mut self, contract: &Contract) {
        let (slice, period) = (*contract.slice.get_ref(), *contract.period.get_ref());
        if !PERIODS.contains(&period) {
            let hint = format!("periods go from {} to {}", PERIODS.start(), PERIODS.end());
            self.report(contract.period.span(), format!("a period of {period}"), hint);
        }
        if slice.0 == 0 || slice > period {
            let hint = format!("a slice is more than nothing and at most its period, {period}");
            self.report(contract.slice.span(), format!("a slice of {slice}"), hint);
        }
        if let Some(latency) = &contract.latency
            && (latency.get_ref().0 == 0 || *latency.get_ref() > period)
        {
            let hint = format!("the wait between two windows is more than nothing and at most the period, {period}");
            self.report(latency.span(), format!("a latency bound of {}", latency.get_ref()), hint);
        }
    }

    /// Adds the shares of one CPU up and points at the contract that goes over.
    fn sum(&mut self, cpu: u32) {
        let mut total = 0.0_f64;
        let mut shares = Vec::new();
        for (name, task) in &self.manifest.tasks {
            for thread in threads_of(task.get_ref()).iter().filter(|thread| thread.cpu == cpu) {
                let (slice, period) = (thread.time.slice_ns, thread.time.period_ns);
                if period == 0 || slice > period {
                    continue; // Reported where it stands.
                }
                // Shares are shown to people and compared with one; a billionth is below any window.
                let share = slice as f64 / period as f64;
                total += share;
                let contract = task.get_ref().time.as_ref().map(Spanned::span);
                shares.push((share, name, contract.unwrap_or_else(|| name.span())));
            }
        }
        if total <= 1.0 + 1e-9 {
            return;
        }
        shares.sort_by(|left, right| right.0.total_cmp(&left.0));
        let list: Vec<String> =
            shares.iter().map(|(share, name, _)| format!("{} {:.1} %", name.get_ref(), share * 100.0)).collect();
        if let Some((_, _, span)) = shares.first().cloned() {
            let message = format!("CPU {cpu} is promised {:.1} %", total * 100.0);
            self.report(span, message, format!("lower slices or move tasks: {}", list.join(", ")));
        }
    }
}
