//! The control task's logic, apart from capabilities: what comes in on the line, what goes out, and which orders are under way.
//!
//! The host is not trusted with the control task's own health: what it sends is bounded ([`frame`]), what is kept for it is bounded
//! ([`Session`]), and nothing it says makes the task wait.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

use alloc::{string::String, vec::Vec};
use moira_proto::control::{
    Account, Answer, Command, CpuAccount, Error, Exits, MachineInfo, Request, SystemInfo, TaskInfo,
};
use moira_proto::frame::{self, Decoder, Frame, Kind, MOST_REQUEST};
use moira_proto::mailbox::{machine, root};

/// Bytes that wait to be sent at which the host gets no more credit.
pub const MOST_WAITING: usize = 4096;
/// Orders under way at once.
pub const MOST_ORDERS: usize = 8;
/// Tasks in one answer.
const TASKS_AT_ONCE: u16 = 24;
/// Bytes of a stream in one part.
const MOST_PART: usize = 1024;
/// How long an order to a machine, and how long one to the root task may take, in nanoseconds. The root task takes all of a machine's
/// memory back and cleans it, in its own small window.
const PATIENCE_NS: u64 = 5_000_000_000;
const ROOT_PATIENCE: u64 = 12;

/// Who carries out an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The root task.
    Root,
    /// The monitor of a virtual machine: its task's number.
    Machine(u16),
}

/// The system as the session sees it.
pub trait World {
    /// What system this is.
    fn system(&self) -> SystemInfo;
    /// A task; `None` beyond the last.
    fn task(&self, number: u16) -> Option<TaskInfo>;
    /// The ledger of a CPU; `None` beyond the last.
    fn cpu(&mut self, number: u32) -> Option<CpuAccount>;
    /// The account of a task, if it has one.
    fn account(&mut self, task: u16) -> Option<Account>;
    /// To whom a task lost time: numbers and ticks.
    ///
    /// # Errors
    /// `NoSuchNumber`, `Kernel`.
    fn losers(&mut self, task: u16) -> Result<Vec<(u64, u64)>, Error>;
    /// The names of all policies.
    fn policies(&self) -> Vec<String>;
    /// The number of the policy in force on a CPU, if its scheduler said so.
    ///
    /// # Errors
    /// `NoSuchNumber`, `NotGranted`.
    fn policy(&self, cpu: u32) -> Result<Option<usize>, Error>;
    /// Asks for another policy.
    ///
    /// # Errors
    /// `NoSuchNumber`, `NotGranted`.
    fn set_policy(&mut self, cpu: u32, policy: usize) -> Result<(), Error>;
    /// The virtual machines.
    fn machines(&self) -> Vec<MachineInfo>;
    /// The task of a virtual machine.
    fn machine(&self, name: &str) -> Option<u16>;
    /// Posts an order; answers its number.
    ///
    /// # Errors
    /// `NotGranted`; `Ended`.
    fn post(&mut self, agent: Agent, order: u64, argument: u64) -> Result<u64, Error>;
    /// The result of an order, once it was carried out.
    fn result(&self, agent: Agent, number: u64) -> Option<u64>;
    /// The numbers of exits that a monitor wrote.
    fn exits(&self, task: u16) -> Exits;
    /// Begins a new debug stream of a machine, with empty queues.
    ///
    /// # Errors
    /// `NotGranted`.
    fn begin_stream(&mut self, task: u16) -> Result<(), Error>;
    /// Bytes that came in that stream, at most so many.
    fn read_stream(&mut self, task: u16, most: usize) -> Vec<u8>;
    /// Writes into it; how many bytes there was room for.
    fn write_stream(&mut self, task: u16, bytes: &[u8]) -> usize;
    /// Ticks now.
    fn now(&self) -> u64;
}

/// What is answered when an order was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Done,
    Exits(u16),
    Stream(u16),
    /// A stream ended; number of the request that opened it.
    Closed(u16),
}

/// An order under way.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// The host's number of the request.
    request: u16,
    agent: Agent,
    order: u64,
    until: u64,
    then: Then,
}

/// What has come in, what waits to go out, and what is under way.
#[derive(Debug)]
pub struct Session {
    decoder: Decoder,
    out: Vec<u8>,
    /// Bytes that came in and were not given back to the host as credit.
    owed: u16,
    pending: Vec<Pending>,
    patience: u64,
    /// The stream that is open: number of the request that opened it, and the machine's task.
    stream: Option<(u16, u16)>,
}

impl Session {
    /// A session that greets the host; `tsc_hz`: ticks in a second.
    #[must_use]
    pub fn new(tsc_hz: u64) -> Session {
        let patience = u64::try_from(u128::from(tsc_hz) * u128::from(PATIENCE_NS) / 1_000_000_000).unwrap_or(u64::MAX);
        let decoder = Decoder::new(MOST_REQUEST);
        let (out, pending) = (Vec::new(), Vec::new());
        let mut session = Session { decoder, out, owed: 0, pending, patience, stream: None };
        session.greet(0);
        session
    }

    fn greet(&mut self, number: u16) {
        let [low, high] = frame::WINDOW.to_le_bytes();
        frame::encode(Kind::Hello, number, &[frame::VERSION, low, high], &mut self.out);
    }

    /// Takes bytes from the line.
    pub fn feed(&mut self, bytes: &[u8], world: &mut impl World) {
        for byte in bytes {
            self.owed = self.owed.saturating_add(1);
            if let Some(frame) = self.decoder.feed(*byte) {
                self.take(&frame, world);
            }
        }
    }

    fn take(&mut self, frame: &Frame, world: &mut impl World) {
        match frame.kind {
            Kind::Reset => {
                // Orders go on; nobody is told how they end.
                self.pending.clear();
                self.out.clear();
                self.stream = None;
                self.owed = 0;
                self.greet(frame.number);
            }
            Kind::Request => {
                let answer = match Request::decode(&frame.payload) {
                    Ok(request) => self.answer(frame.number, &request, world),
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(Some(answer)) => self.send(frame.number, &answer),
                    Ok(None) => {}
                    Err(error) => self.send(frame.number, &Answer::Error(error)),
                }
            }
            // These go the other way.
            Kind::Hello | Kind::Credit | Kind::Answer | Kind::Part => {}
        }
    }

    fn send(&mut self, number: u16, answer: &Answer) {
        // Without memory there is nothing to be said.
        if let Ok(bytes) = answer.encode() {
            frame::encode(Kind::Answer, number, &bytes, &mut self.out);
        }
    }

    /// The answer, if there is one at once.
    fn answer(&mut self, number: u16, request: &Request, world: &mut impl World) -> Result<Option<Answer>, Error> {
        Ok(Some(match *request {
            Request::System => Answer::System(world.system()),
            Request::Tasks { from } => {
                let end = from.saturating_add(TASKS_AT_ONCE);
                let tasks = (from..end).map_while(|task| world.task(task)).collect();
                Answer::Tasks { tasks, next: world.task(end).map(|_| end) }
            }
            Request::Ledger { from } => ledger(from, world),
            Request::Losers { task } => Answer::Losers(world.losers(task)?),
            Request::Policy { cpu, name } => policy(cpu, name, world)?,
            Request::Machines => Answer::Machines(world.machines()),
            Request::Machine { name, command } => {
                let task = world.machine(name).ok_or(Error::NoSuchMachine)?;
                let order = match command {
                    Command::Pause => machine::PAUSE,
                    Command::Resume => machine::RESUME,
                    Command::PowerButton => machine::POWER_BUTTON,
                    Command::Reset => machine::RESET,
                    Command::Nmi => machine::NMI,
                    Command::Kill => {
                        // Not asked of the monitor: it may hang, or be what shall be ended.
                        self.order(number, Agent::Root, root::KILL, task.into(), Then::Done, world)?;
                        return Ok(None);
                    }
                };
                self.order(number, Agent::Machine(task), order, 0, Then::Done, world)?;
                return Ok(None);
            }
            Request::Exits { name } => {
                let task = world.machine(name).ok_or(Error::NoSuchMachine)?;
                self.order(number, Agent::Machine(task), machine::LOOK, 0, Then::Exits(task), world)?;
                return Ok(None);
            }
            Request::Debug { name } => {
                let task = world.machine(name).ok_or(Error::NoSuchMachine)?;
                if self.stream.is_some() {
                    return Err(Error::Busy);
                }
                world.begin_stream(task)?;
                self.order(number, Agent::Machine(task), machine::DEBUG, 0, Then::Stream(task), world)?;
                return Ok(None);
            }
            Request::Write { stream, bytes } => {
                let task = self.stream(stream)?;
                // All or nothing, so that the host knows where it stands.
                let room = bytes.is_empty() || world.write_stream(task, bytes) == bytes.len();
                if room { Answer::Done } else { Answer::Error(Error::Busy) }
            }
            Request::Close { stream } => {
                let task = self.stream(stream)?;
                self.order(number, Agent::Machine(task), machine::DEBUG_END, 0, Then::Closed(stream), world)?;
                self.stream = None;
                return Ok(None);
            }
        }))
    }

    /// The machine whose stream the request of this number opened.
    fn stream(&self, request: u16) -> Result<u16, Error> {
        self.stream.filter(|stream| stream.0 == request).map(|stream| stream.1).ok_or(Error::NoStream)
    }

    /// Posts an order that is answered later.
    fn order(
        &mut self,
        request: u16,
        agent: Agent,
        order: u64,
        argument: u64,
        then: Then,
        world: &mut impl World,
    ) -> Result<(), Error> {
        // One mailbox holds one order.
        if self.pending.len() >= MOST_ORDERS || self.pending.iter().any(|pending| pending.agent == agent) {
            return Err(Error::Busy);
        }
        let order = world.post(agent, order, argument)?;
        let patience = if agent == Agent::Root { self.patience.saturating_mul(ROOT_PATIENCE) } else { self.patience };
        let until = world.now().saturating_add(patience);
        self.pending.push(Pending { request, agent, order, until, then });
        Ok(())
    }

    /// Looks whether orders were carried out, or their time is over.
    pub fn poll(&mut self, world: &mut impl World) {
        let now = world.now();
        for pending in core::mem::take(&mut self.pending) {
            match world.result(pending.agent, pending.order) {
                Some(0) => {
                    let answer = match pending.then {
                        Then::Done => Answer::Done,
                        Then::Exits(task) => Answer::Exits(world.exits(task)),
                        Then::Stream(task) => {
                            // Its answers come in parts.
                            self.stream = Some((pending.request, task));
                            continue;
                        }
                        Then::Closed(stream) => {
                            self.send(stream, &Answer::Done);
                            Answer::Done
                        }
                    };
                    self.send(pending.request, &answer);
                }
                Some(_) => self.send(pending.request, &Answer::Error(Error::Refused)),
                None if now >= pending.until => self.send(pending.request, &Answer::Error(Error::NoAnswer)),
                None => self.pending.push(pending),
            }
        }
    }

    /// Sends what came in the stream, as far as the host takes it.
    pub fn pump(&mut self, world: &mut impl World) {
        let Some((request, task)) = self.stream else { return };
        while self.out.len() < MOST_WAITING {
            let bytes = world.read_stream(task, MOST_PART);
            if bytes.is_empty() {
                return;
            }
            if let Ok(payload) = Answer::Bytes(bytes).encode() {
                frame::encode(Kind::Part, request, &payload, &mut self.out);
            }
        }
    }

    /// Whether orders are under way: [`Session::poll`] wants to be called now and then.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Bytes to be sent.
    pub fn outgoing(&mut self) -> &[u8] {
        // Credit last: whoever does not take the answers is not to ask for more.
        if self.owed > 0 && self.out.len() < MOST_WAITING {
            let owed = core::mem::take(&mut self.owed);
            frame::encode(Kind::Credit, 0, &owed.to_le_bytes(), &mut self.out);
        }
        &self.out
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, count: usize) {
        self.out.drain(..count.min(self.out.len()));
    }
}

fn ledger(from: u16, world: &mut impl World) -> Answer {
    let now = world.now();
    let mut cpus = Vec::new();
    if from == 0 {
        while let Some(account) = world.cpu(cpus.len() as u32) {
            cpus.push(account);
        }
    }
    let end = from.saturating_add(TASKS_AT_ONCE);
    let tasks = (from..end).filter_map(|task| world.account(task)).collect();
    Answer::Ledger { now, cpus, tasks, next: world.task(end).map(|_| end) }
}

fn policy(cpu: u32, name: &str, world: &mut impl World) -> Result<Answer, Error> {
    let all = world.policies();
    let now = if name.is_empty() {
        world.policy(cpu)?
    } else {
        let wanted = all.iter().position(|policy| policy == name).ok_or(Error::NoSuchPolicy)?;
        world.set_policy(cpu, wanted)?;
        Some(wanted)
    };
    let name = now.and_then(|index| all.get(index)).cloned().unwrap_or_default();
    Ok(Answer::Policy { name, all })
}

#[cfg(test)]
mod tests;
