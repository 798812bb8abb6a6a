//! The system behind the session's trait: capabilities, regions, mailboxes.

use alloc::{format, string::String, vec::Vec};
use control_core::{Agent, World};
use core::sync::atomic::Ordering;
use moira_ring::{Reader, Writer};
use moira_rt::{
    Env,
    mapped::Shared,
    proto::{
        control::{Account, CpuAccount, Error, Exits, MachineInfo, State, SystemInfo, TaskInfo},
        mailbox::{self, Mailbox, state},
        system::System,
    },
    sys::{self, Caps, Cpu, MessageBuffer, Notification, SchedContext, Slot, abi},
};
use moira_scheduler::policy::POLICIES;

/// First word of region `policy` where schedulers say which policy is in force.
const IN_FORCE: usize = 64;

/// A mailbox, and what tells the other side that there is something in it.
struct Door {
    mailbox: Mailbox<'static>,
    signal: Notification,
    /// Its region: behind the mailbox there may be room for a stream's queues.
    region: Shared<'static>,
    stream: Option<(Writer<'static>, Reader<'static>)>,
}

/// A task as the control task holds it.
struct Held {
    info: TaskInfo,
    /// The main thread's first.
    contexts: Caps<SchedContext>,
    /// It is the monitor of a virtual machine that can be controlled.
    door: Option<Door>,
}

/// The running system.
pub struct Live {
    info: SystemInfo,
    tasks: Vec<Held>,
    cpus: Vec<Cpu>,
    root: Option<Door>,
    policy: Option<Shared<'static>>,
    /// This thread's message buffer. Nothing is kept there from one call to the next.
    pub buffer: MessageBuffer,
}

fn door(env: &Env, task: &str, region: &str) -> Option<Door> {
    let region = env.shared(region).filter(Shared::writable)?;
    let mailbox = Mailbox::new(region.words64())?;
    let signal = env.capability(&format!("{task}-signal"))?;
    Some(Door { mailbox, signal, region, stream: None })
}

impl Live {
    /// All that this task was given.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn new(env: Env) -> Result<Live, String> {
        let file = env.file("system").ok_or("no file `system`: is the task's role `control`?")?;
        let system: System =
            postcard::from_bytes(file).map_err(|_| "the file `system` cannot be read: packed by another version?")?;
        let tasks = system.tasks.iter().map(|task| {
            let door = door(&env, &task.name, &format!("{}{}", task.name, mailbox::SUFFIX));
            let info = TaskInfo {
                name: task.name.clone(),
                cpu: task.cpu,
                level: task.level,
                slice_ns: task.threads.iter().map(|thread| thread.time.slice_ns).sum::<u64>() + task.time.slice_ns,
                period_ns: task.time.period_ns,
                slack: task.time.extra,
                account: task.time.context,
                machine: door.is_some(),
            };
            let contexts = env.capabilities(&format!("{}-context", task.name));
            Held { info, contexts: contexts.unwrap_or(Caps::new(Slot::NONE, 0)), door }
        });
        let tasks: Vec<Held> = tasks.collect();
        let cpus: Vec<Cpu> = (0..system.cpus).map_while(|cpu| env.capability(&format!("cpu-{cpu}"))).collect();
        let info = SystemInfo {
            name: system.name,
            tsc_hz: env.info.tsc_hz,
            cpus: cpus.len() as u32,
            tasks: u16::try_from(tasks.len()).unwrap_or(u16::MAX),
        };
        let root = door(&env, "root", mailbox::ROOT);
        Ok(Live { info, tasks, cpus, root, policy: env.shared("policy"), buffer: env.buffer })
    }

    fn held(&self, task: u16) -> Option<&Held> {
        self.tasks.get(usize::from(task))
    }

    fn door(&self, agent: Agent) -> Option<&Door> {
        match agent {
            Agent::Root => self.root.as_ref(),
            Agent::Machine(task) => self.held(task)?.door.as_ref(),
        }
    }

    fn stream(&mut self, task: u16) -> Option<&mut Door> {
        self.tasks.get_mut(usize::from(task))?.door.as_mut()
    }

    /// A word of region `policy`.
    fn policy_word(&self, word: usize, cpu: u32) -> Result<&core::sync::atomic::AtomicU64, Error> {
        let cpu = usize::try_from(cpu).ok().filter(|cpu| *cpu < self.cpus.len()).ok_or(Error::NoSuchNumber)?;
        let region = self.policy.as_ref().filter(|region| region.writable()).ok_or(Error::NotGranted)?;
        region.words64().get(word + cpu).filter(|_| cpu < IN_FORCE).ok_or(Error::NoSuchNumber)
    }
}

fn kernel(error: abi::Error) -> Error {
    Error::Kernel(error as u16)
}

impl World for Live {
    fn system(&self) -> SystemInfo {
        self.info.clone()
    }

    fn task(&self, number: u16) -> Option<TaskInfo> {
        self.held(number).map(|held| held.info.clone())
    }

    fn cpu(&mut self, number: u32) -> Option<CpuAccount> {
        let cpu = self.cpus.get(usize::try_from(number).ok()?)?;
        let ledger = cpu.ledger(&mut self.buffer).ok()?;
        Some(CpuAccount {
            cpu: number,
            elapsed: ledger.elapsed,
            contexts: ledger.contexts,
            idle: ledger.idle,
            interrupts: ledger.interrupts,
            choices: ledger.choices,
        })
    }

    /// All threads of the task together.
    fn account(&mut self, task: u16) -> Option<Account> {
        let each = self.held(task)?.contexts.iter().filter_map(|context| context.consumed().ok());
        each.map(|consumed| Account {
            task,
            own: consumed.own,
            lost: consumed.lost,
            delivered: consumed.delivered,
            structural: consumed.structural,
            interrupts: consumed.interrupts,
            number: consumed.number,
        })
        .reduce(|sum, one| Account {
            own: sum.own.saturating_add(one.own),
            lost: sum.lost.saturating_add(one.lost),
            delivered: sum.delivered.saturating_add(one.delivered),
            structural: sum.structural.saturating_add(one.structural),
            interrupts: sum.interrupts.saturating_add(one.interrupts),
            ..sum
        })
    }

    fn losers(&mut self, task: u16) -> Result<Vec<(u64, u64)>, Error> {
        let contexts = self.held(task).map(|held| held.contexts).filter(|contexts| !contexts.is_empty());
        let mut all = Vec::new();
        for context in contexts.ok_or(Error::NoSuchNumber)?.iter() {
            let losers = context.losers(&mut self.buffer).map_err(kernel)?;
            all.extend(losers.to.into_iter().map(|[number, ticks]| (number, ticks)));
            all.push((0, losers.gone.saturating_add(losers.others)));
        }
        all.retain(|(_, ticks)| *ticks > 0);
        Ok(all)
    }

    fn policies(&self) -> Vec<String> {
        POLICIES.iter().map(|(name, _)| String::from(*name)).collect()
    }

    fn policy(&self, cpu: u32) -> Result<Option<usize>, Error> {
        let word = self.policy_word(IN_FORCE, cpu)?.load(Ordering::Relaxed);
        Ok(usize::try_from(word).ok().and_then(|number| number.checked_sub(1)))
    }

    fn set_policy(&mut self, cpu: u32, policy: usize) -> Result<(), Error> {
        self.policy_word(0, cpu)?.store(policy as u64 + 1, Ordering::Relaxed);
        Ok(())
    }

    fn machines(&self) -> Vec<MachineInfo> {
        let machines = self.tasks.iter().filter_map(|held| Some((&held.info.name, held.door.as_ref()?.mailbox)));
        machines
            .map(|(name, mailbox)| MachineInfo {
                name: name.clone(),
                state: match mailbox.get(mailbox::STATE) {
                    state::STARTING => State::Starting,
                    state::RUNNING => State::Running,
                    state::PAUSED => State::Paused,
                    _ => State::Ended,
                },
                cpus: mailbox.get(mailbox::CPUS) as u32,
                resets: mailbox.get(mailbox::RESETS),
            })
            .collect()
    }

    fn machine(&self, name: &str) -> Option<u16> {
        let index = self.tasks.iter().position(|held| held.info.machine && held.info.name == name)?;
        u16::try_from(index).ok()
    }

    fn post(&mut self, agent: Agent, order: u64, argument: u64) -> Result<u64, Error> {
        let door = self.door(agent).ok_or(Error::NotGranted)?;
        if agent != Agent::Root && door.mailbox.get(mailbox::STATE) == state::ENDED {
            return Err(Error::Ended);
        }
        let number = door.mailbox.post(order, argument);
        door.signal.signal().map_err(kernel)?;
        Ok(number)
    }

    fn result(&self, agent: Agent, number: u64) -> Option<u64> {
        self.door(agent)?.mailbox.result(number)
    }

    fn exits(&self, task: u16) -> Exits {
        let Some(door) = self.door(Agent::Machine(task)) else {
            return Exits { cpus: Vec::new() };
        };
        let cpus = (door.mailbox.get(mailbox::CPUS) as usize).min(mailbox::MOST_CPUS);
        let count = |cpu: usize, reason: usize| door.mailbox.get(mailbox::EXITS + cpu * mailbox::REASONS + reason);
        let reasons = |cpu| {
            let all = (0..mailbox::REASONS).map(|reason| (reason as u8, count(cpu, reason)));
            all.filter(|(_, count)| *count > 0).collect()
        };
        Exits { cpus: (0..cpus).map(reasons).collect() }
    }

    fn begin_stream(&mut self, task: u16) -> Result<(), Error> {
        let door = self.stream(task).ok_or(Error::NotGranted)?;
        let page = mailbox::BYTES as usize;
        let queues = door.region.part(page, page).zip(door.region.part(2 * page, page));
        let (to, from) = queues.ok_or(Error::NotGranted)?;
        for word in to.words32().iter().chain(from.words32()) {
            word.store(0, Ordering::Relaxed);
        }
        let writer = Writer::new(to.words32(), mailbox::STREAM_ENTRIES).ok();
        door.stream = writer.zip(Reader::new(from.words32(), mailbox::STREAM_ENTRIES).ok());
        Ok(())
    }

    fn read_stream(&mut self, task: u16, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some((_, reader)) = self.stream(task).and_then(|door| door.stream.as_mut()) {
            // Seven bytes each. A peer that broke the protocol says nothing more.
            let _ = reader.read((most / 8) as u32, |part| bytes.extend_from_slice(part));
        }
        bytes
    }

    fn write_stream(&mut self, task: u16, bytes: &[u8]) -> usize {
        let Some(door) = self.stream(task) else { return 0 };
        let written = door.stream.as_mut().and_then(|(writer, _)| writer.write(bytes).ok()).unwrap_or(0);
        // A monitor that is gone does not want to know.
        let _ = door.signal.signal();
        written
    }

    fn now(&self) -> u64 {
        sys::now()
    }
}
