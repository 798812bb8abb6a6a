//! `top`: who gets the time, from two readings of all accounts.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};
use moira_abi::vcpu::Exit;
use moira_proto::control::{Account, Answer, CpuAccount, Exits, MachineInfo, Request, State, SystemInfo, TaskInfo};
use serde::Serialize;

use super::client::{Client, UNEXPECTED};

/// One reading of all that counts.
pub struct Sample {
    now: u64,
    cpus: Vec<CpuAccount>,
    accounts: BTreeMap<u16, Account>,
    /// Ticks lost by a task to each number.
    lost: BTreeMap<u16, BTreeMap<u64, u64>>,
    machines: Vec<MachineInfo>,
    exits: BTreeMap<String, Exits>,
}

impl Sample {
    /// Reads everything now.
    pub fn take(client: &mut Client) -> Result<Sample> {
        let (now, cpus, accounts) = client.ledger()?;
        let mut lost = BTreeMap::new();
        for account in accounts.iter().filter(|account| account.lost > 0) {
            // A task that has just been ended has no account any more.
            if let Ok(Answer::Losers(list)) = client.try_ask(&Request::Losers { task: account.task })? {
                let mut to = BTreeMap::new();
                for (number, ticks) in list {
                    *to.entry(number).or_default() += ticks;
                }
                lost.insert(account.task, to);
            }
        }
        let Answer::Machines(machines) = client.ask(&Request::Machines)? else { bail!(UNEXPECTED) };
        let mut exits = BTreeMap::new();
        for machine in machines.iter().filter(|machine| matches!(machine.state, State::Running | State::Paused)) {
            // One that gets no time does not answer; its row is without exits then.
            if let Ok(Answer::Exits(counts)) = client.try_ask(&Request::Exits { name: &machine.name })? {
                exits.insert(machine.name.clone(), counts);
            }
        }
        let accounts = accounts.into_iter().map(|account| (account.task, account)).collect();
        Ok(Sample { now, cpus, accounts, lost, machines, exits })
    }
}

/// What happened between two readings. Shares are in percent of one CPU.
#[derive(Debug, Serialize)]
pub struct Report {
    system: String,
    /// Seconds of the system's own time between the readings.
    seconds: f64,
    cpus: Vec<CpuRow>,
    tasks: Vec<TaskRow>,
}

/// A CPU.
#[derive(Debug, Serialize)]
struct CpuRow {
    cpu: u32,
    busy: f64,
    idle: f64,
    interrupts: f64,
    /// Decisions of the kernel in a second.
    choices: f64,
}

/// A task with an account of its own.
#[derive(Debug, Serialize)]
struct TaskRow {
    name: String,
    cpu: u32,
    /// What its contract promises.
    contract: f64,
    /// What it was charged: own and lost.
    share: f64,
    /// What of that its contract does not promise.
    slack: f64,
    /// The part of its share that was lost while it helped others along.
    lost: f64,
    /// To whom.
    lost_to: BTreeMap<String, f64>,
    /// What others were charged while they worked for it.
    delivered: f64,
    /// Its interrupt handlers.
    interrupts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<MachineRow>,
}

/// A virtual machine.
#[derive(Debug, Serialize)]
struct MachineRow {
    state: String,
    cpus: u32,
    resets: u64,
    /// Exits in a second.
    exits: f64,
    /// Exits in a second by reason.
    by_reason: BTreeMap<String, f64>,
}

/// How a machine is, in a word.
pub fn state(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Paused => "paused",
        State::Ended => "ended",
    }
}

/// The name of an exit's reason.
pub fn reason(number: u8) -> String {
    Exit::from_code(number.into()).map_or_else(|| format!("reason {number}"), |exit| format!("{exit:?}"))
}

/// Exits by reason, all virtual processors together.
pub fn by_reason(exits: &Exits) -> BTreeMap<u8, u64> {
    let mut sums = BTreeMap::new();
    for (number, count) in exits.cpus.iter().flatten() {
        *sums.entry(*number).or_default() += count;
    }
    sums
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { rounded(part as f64 * 100.0 / whole as f64) }
}

impl Report {
    /// Compares two readings.
    pub fn new(system: &SystemInfo, tasks: &[TaskInfo], before: &Sample, after: &Sample) -> Report {
        let seconds = after.now.saturating_sub(before.now) as f64 / system.tsc_hz.max(1) as f64;
        let per_second = |count: u64| if seconds > 0.0 { (count as f64 / seconds).round() } else { 0.0 };
        let pairs = after.cpus.iter().filter_map(|now| Some((before.cpus.iter().find(|was| was.cpu == now.cpu)?, now)));
        let cpus: Vec<CpuRow> = pairs
            .map(|(was, now)| {
                let elapsed = now.elapsed.saturating_sub(was.elapsed);
                CpuRow {
                    cpu: now.cpu,
                    busy: percent(now.contexts.saturating_sub(was.contexts), elapsed),
                    idle: percent(now.idle.saturating_sub(was.idle), elapsed),
                    interrupts: percent(now.interrupts.saturating_sub(was.interrupts), elapsed),
                    choices: per_second(now.choices.saturating_sub(was.choices)),
                }
            })
            .collect();
        let elapsed = |cpu: u32| {
            let of = |sample: &Sample| sample.cpus.iter().find(|row| row.cpu == cpu).map_or(0, |row| row.elapsed);
            of(after).saturating_sub(of(before))
        };
        let rows = (0u16..).zip(tasks).filter_map(|(number, task)| {
            let now = after.accounts.get(&number)?;
            let was = before.accounts.get(&number)?;
            let of = |part: fn(&Account) -> u64| percent(part(now).saturating_sub(part(was)), elapsed(task.cpu));
            let share = rounded(of(|account| account.own) + of(|account| account.lost));
            let contract = percent(task.slice_ns, task.period_ns);
            Some(TaskRow {
                name: task.name.clone(),
                cpu: task.cpu,
                contract,
                share,
                slack: rounded((share - contract).max(0.0)),
                lost: of(|account| account.lost),
                lost_to: lost_to(tasks, before, after, number, elapsed(task.cpu)),
                delivered: of(|account| account.delivered),
                interrupts: of(|account| account.interrupts),
                machine: machine(before, after, &task.name, per_second),
            })
        });
        Report { system: system.name.clone(), seconds: rounded(seconds), cpus, tasks: rows.collect() }
    }

    /// As a table.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {:.3} s of its own time\n", self.system, self.seconds);
        for cpu in &self.cpus {
            let _ = writeln!(
                text,
                "CPU {}: {:.2} % busy, {:.2} % idle, {:.2} % interrupts, {} decisions a second",
                cpu.cpu, cpu.busy, cpu.idle, cpu.interrupts, cpu.choices
            );
        }
        let width = self.tasks.iter().map(|task| task.name.len()).max().unwrap_or(0).max(4);
        let _ = writeln!(
            text,
            "{:<width$} CPU contract %  share %  slack %   lost %  delivered %  irq %  exits/s  state, lost to",
            "task"
        );
        for task in &self.tasks {
            let _ = write!(
                text,
                "{:<width$} {:>3} {:>10.2} {:>8.2} {:>8.2} {:>8.2} {:>12.2} {:>6.2}",
                task.name, task.cpu, task.contract, task.share, task.slack, task.lost, task.delivered, task.interrupts
            );
            match &task.machine {
                Some(machine) => {
                    let _ = write!(text, " {:>8}  {}", machine.exits, machine.state);
                    if machine.resets > 0 {
                        let _ = write!(text, ", {} resets", machine.resets);
                    }
                }
                None => text += "         -  ",
            }
            let to: Vec<String> = task.lost_to.iter().map(|(name, share)| format!(" {name} {share:.2} %")).collect();
            text += &to.join(",");
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// To whom a task lost time, by name.
fn lost_to(tasks: &[TaskInfo], before: &Sample, after: &Sample, task: u16, elapsed: u64) -> BTreeMap<String, f64> {
    let name = |number: u64| {
        let found = after.accounts.values().find(|account| number != 0 && account.number == number);
        let task = found.and_then(|account| tasks.get(usize::from(account.task)));
        task.map_or_else(
            || if number == 0 { "nobody who lives".into() } else { format!("context {number}") },
            |task| task.name.clone(),
        )
    };
    let was = |number| before.lost.get(&task).and_then(|lost| lost.get(number)).copied().unwrap_or(0);
    let now = after.lost.get(&task).into_iter().flatten();
    let deltas = now.map(|(number, ticks)| (name(*number), percent(ticks.saturating_sub(was(number)), elapsed)));
    deltas.filter(|(_, share)| *share > 0.0).collect()
}

fn machine(before: &Sample, after: &Sample, name: &str, per_second: impl Fn(u64) -> f64) -> Option<MachineRow> {
    let info = after.machines.iter().find(|machine| machine.name == name)?;
    let counts = |sample: &Sample| sample.exits.get(name).map(by_reason).unwrap_or_default();
    let (was, now) = (counts(before), counts(after));
    let delta = |number: &u8, count: u64| count.saturating_sub(was.get(number).copied().unwrap_or(0));
    // Without a first reading the counts since the start would look like a burst.
    let known = before.exits.contains_key(name);
    let now: BTreeMap<u8, u64> = now.into_iter().filter(|_| known).collect();
    Some(MachineRow {
        state: state(info.state).into(),
        cpus: info.cpus,
        resets: info.resets,
        exits: per_second(now.iter().map(|(number, count)| delta(number, *count)).sum()),
        by_reason: now
            .iter()
            .map(|(number, count)| (reason(*number), per_second(delta(number, *count))))
            .filter(|(_, rate)| *rate > 0.0)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(now: u64, own: u64, lost: u64, exits: u64) -> Sample {
        let account =
            |task, own, lost, number| Account { task, own, lost, delivered: 0, structural: 0, interrupts: 0, number };
        let cpu = CpuAccount {
            cpu: 0,
            elapsed: now,
            contexts: own + lost,
            idle: now - own - lost,
            interrupts: 0,
            choices: now,
        };
        Sample {
            now,
            cpus: vec![cpu],
            accounts: BTreeMap::from([(0, account(0, own, lost, 11)), (1, account(1, 0, 0, 12))]),
            lost: BTreeMap::from([(0, BTreeMap::from([(12, lost)]))]),
            machines: vec![MachineInfo { name: "one".into(), state: State::Running, cpus: 1, resets: 0 }],
            exits: BTreeMap::from([("one".into(), Exits { cpus: vec![vec![(2, exits)]] })]),
        }
    }

    fn task(name: &str) -> TaskInfo {
        TaskInfo {
            name: name.into(),
            cpu: 0,
            level: 1,
            slice_ns: 3,
            period_ns: 10,
            slack: true,
            account: true,
            machine: false,
        }
    }

    #[test]
    fn shares_are_what_happened_in_between() {
        let system = SystemInfo { name: "s".into(), tsc_hz: 1000, cpus: 1, tasks: 2 };
        let tasks = [task("one"), task("two")];
        let report = Report::new(&system, &tasks, &sample(1000, 100, 0, 7), &sample(3000, 900, 200, 107));
        let one = &report.tasks[0];
        assert_eq!((one.share, one.contract, one.slack, one.lost), (50.0, 30.0, 20.0, 10.0));
        assert_eq!(one.lost_to, BTreeMap::from([("two".into(), 10.0)]));
        assert_eq!(one.machine.as_ref().unwrap().exits, 50.0);
        assert_eq!((report.cpus[0].busy, report.cpus[0].idle), (50.0, 50.0));
        let text = report.text();
        assert!(text.contains("one    0      30.00    50.00    20.00    10.00"), "{text}");
        assert!(text.contains("running two 10.00 %"), "{text}");
    }
}
