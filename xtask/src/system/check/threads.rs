//! Threads of a task: where each lives, and what it is promised.

use super::super::manifest::{Contract, Name, Task};
use super::Checker;
use moira_proto::system::{MOST_THREADS, Time};
use std::ops::Range;
use toml::Spanned;

/// How long virtual processors on one CPU run in turn: they spin for each other.
const TURN_NS: u64 = 1_000_000;
/// Most virtual processors of one machine.
const MOST_VCPUS: usize = 8;

/// A thread as the manifest means it: number 0 is the main one.
pub struct Placed {
    /// CPU that it lives on.
    pub cpu: u32,
    /// What it is promised.
    pub time: Time,
}

/// Nanoseconds of a contract.
fn nanoseconds(contract: Option<&Spanned<Contract>>, slack: bool) -> Time {
    let contract = contract.map(Spanned::get_ref);
    Time {
        context: contract.is_some() || slack,
        slice_ns: contract.map_or(0, |contract| contract.slice.get_ref().0),
        period_ns: contract.map_or(0, |contract| contract.period.get_ref().0),
        latency_ns: contract.and_then(|contract| contract.latency.as_ref()).map_or(0, |latency| latency.get_ref().0),
        extra: slack,
    }
}

/// The CPUs that `vcpus` names, the main thread's first; none if it is neither a count nor a list.
fn places(vcpus: &str, cpu: u32) -> Option<Vec<u32>> {
    let list: Vec<u32> = vcpus.split(',').map(|word| word.trim().parse().ok()).collect::<Option<_>>()?;
    match list.as_slice() {
        [] => None,
        [count] => usize::try_from(*count).ok().filter(|count| *count <= MOST_VCPUS).map(|count| vec![cpu; count]),
        _ => Some(list),
    }
}

/// All threads of a task, which passed the check, the main one first.
pub fn threads_of(task: &Task) -> Vec<Placed> {
    let cpu = *task.cpu.get_ref();
    let own = nanoseconds(task.time.as_ref(), task.slack);
    let shared = task.vcpus.as_ref().and_then(|vcpus| places(vcpus.get_ref(), cpu)).filter(|places| !places.is_empty());
    let Some(places) = shared else {
        let further = task.threads.iter().map(Spanned::get_ref);
        let further =
            further.map(|one| Placed { cpu: *one.cpu.get_ref(), time: nanoseconds(one.time.as_ref(), one.slack) });
        return std::iter::once(Placed { cpu, time: own }).chain(further).collect();
    };
    let shared = |cpu: u32| {
        let here = places.iter().filter(|other| **other == cpu).count().max(1) as u64;
        let (slice_ns, mut latency_ns) = (own.slice_ns / here, own.latency_ns);
        if here > 1 && slice_ns > 0 {
            let turns = (TURN_NS * (here - 1)).min(own.period_ns);
            latency_ns = if latency_ns == 0 { turns } else { latency_ns.min(turns) };
        }
        Placed { cpu, time: Time { slice_ns, latency_ns, ..own } }
    };
    places.iter().map(|&cpu| shared(cpu)).collect()
}

impl Checker<'_> {
    pub(super) fn threads(&mut self, name: &Name, task: &Task) {
        let name = name.get_ref();
        let passive = task.passive.as_ref().is_some_and(|passive| *passive.get_ref());
        if let Some(vcpus) = &task.vcpus {
            self.vcpus(name, task, vcpus);
        }
        let Some(first) = task.threads.first() else { return };
        if task.vcpus.is_some() || passive || task.threads.len() >= MOST_THREADS {
            let hint = format!("up to {} threads, for a task that is not passive and has no `vcpus`", MOST_THREADS - 1);
            self.report(first.span(), format!("`{name}` cannot have these threads"), hint);
        }
        for thread in &task.threads {
            let span = thread.span();
            let thread = thread.get_ref();
            self.on_cpu(*thread.cpu.get_ref(), thread.cpu.span(), &format!("a thread of `{name}`"));
            match &thread.time {
                Some(contract) => self.contract(contract.get_ref()),
                None if thread.slack => {}
                None => {
                    let hint = "add `time = { slice = \"1ms\", period = \"10ms\" }` or `slack = true`";
                    self.report(span, format!("a thread of `{name}` would never run"), hint);
                }
            }
        }
        self.stack(task, first.span());
    }

    fn vcpus(&mut self, name: &str, task: &Task, vcpus: &Spanned<String>) {
        let cpu = *task.cpu.get_ref();
        let span = vcpus.span();
        match places(vcpus.get_ref(), cpu) {
            Some(places) if (1..=MOST_VCPUS).contains(&places.len()) => {
                if places.first() != Some(&cpu) {
                    let hint = format!("begin the list with {cpu}, or move the task");
                    self.report(
                        span.clone(),
                        format!("the first vCPU of `{name}` does not live on the task's CPU {cpu}"),
                        hint,
                    );
                }
                if let Some(far) = places.iter().find(|far| **far >= super::CPU_LIMIT) {
                    self.report(
                        span.clone(),
                        format!("a vCPU on CPU {far}"),
                        format!("CPUs 0 to {} are possible", super::CPU_LIMIT - 1),
                    );
                }
                self.stack(task, span);
            }
            _ => {
                let hint = format!("write a number from 1 to {MOST_VCPUS}, or as many CPUs: \"0,1\"");
                self.report(span, format!("`{}` vCPUs", vcpus.get_ref()), hint);
            }
        }
    }

    /// Each thread has a stack of the task's size, in a place of fixed size.
    fn stack(&mut self, task: &Task, span: Range<usize>) {
        const MOST: u64 = moira_proto::start::layout::MOST_STACK;
        if task.memory.stack.as_ref().is_some_and(|stack| stack.get_ref().0 > MOST) {
            self.report(span, "threads with so large a stack", format!("at most {} KiB each", MOST >> 10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_or_a_list_says_where_vcpus_live() {
        assert_eq!(places("3", 1), Some(vec![1, 1, 1]));
        assert_eq!(places("0, 1,1", 0), Some(vec![0, 1, 1]));
        for wrong in ["", "x", "9", "1,,2", "-1"] {
            assert_eq!(places(wrong, 0), None, "{wrong}");
        }
    }
}
