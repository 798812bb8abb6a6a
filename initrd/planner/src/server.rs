//! Answers requests, and keeps the CPUs' plans up to date with the book.

mod slack;

use alloc::vec::Vec;
use moira_planner::{Admission, Contract, Refused};
use moira_rt::{
    memory::Slots,
    proto::planner::{
        ASK, BOUND, DONE, EXTRA, INSTALL, MANY, MOST, MOVE, NO, REFUSAL_WORDS, RELEASE, ROOM, UNKNOWN, YES,
    },
    received,
    sys::{
        CapTable, Capability, Cpu, Deadline, Error, Event, Message, MessageBuffer, Next, ObjectType, Plan, Received,
        SchedContext,
    },
};

pub use slack::Scheduler;

/// One CPU.
pub struct Processor {
    /// With PLAN.
    pub cpu: Cpu,
    /// Without rights: what clients get.
    pub bare: Cpu,
    /// One may be in force, the other waits to be, or can be written.
    pub plans: [Plan; 2],
    /// The plan in force is not what the book says.
    pub stale: bool,
    /// Who hands out its slack; `None`: its plan does.
    pub scheduler: Option<Scheduler>,
}

/// Whose a contract is, and who has its time.
pub struct Holder {
    /// Its name in the book.
    pub id: u32,
    /// The client; `None`: the manifest.
    pub badge: Option<u64>,
    /// What its windows are for; `None`: it did not come yet, or died.
    pub context: Option<SchedContext>,
    /// Which of the slots for newcomers it has in the table of its CPU's scheduler, if it takes slack there.
    pub place: Option<u32>,
}

/// The planner.
pub struct Planner {
    /// The book.
    pub admission: Admission,
    /// By index.
    pub processors: Vec<Processor>,
    /// Of each contract in the book.
    pub holders: Vec<Holder>,
    /// Its own table.
    pub table: CapTable,
    /// Its empty slots.
    pub slots: Slots,
    /// Its message buffer.
    pub buffer: MessageBuffer,
    /// How long it waits for the end of a cycle before it looks again.
    pub retry: u64,
    /// How often it looks whether schedulers that it told of contexts were made anew.
    pub look: u64,
}

impl Planner {
    /// How long to wait for the next request: not for ever while a plan waits for another one's cycle to end, or a scheduler may forget.
    pub fn deadline(&self) -> Deadline {
        if self.processors.iter().any(|one| one.stale) {
            Deadline::after(self.retry)
        } else if self.holders.iter().any(|holder| holder.place.is_some()) {
            Deadline::after(self.look)
        } else {
            Deadline::NEVER
        }
    }

    /// One request, or the time to look again.
    pub fn handle(&mut self, event: Event) -> Next {
        let answer = match &event {
            Event::Call(call) => Some(self.answer(call)),
            Event::Notified(_) | Event::Timeout => None,
        };
        if let Event::Call(call) = &event {
            received::drop_rest(self.table, call);
        }
        // The answer may lie in the message buffer, which filling a plan overwrites.
        let bytes = answer.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        for cpu in 0..self.processors.len() {
            self.install(cpu);
        }
        self.tell_again();
        match answer {
            None => Next::Receive(self.deadline()),
            Some((message, _)) => {
                let length = self.buffer.write(&bytes);
                Next::Reply(message.bytes(length), self.deadline())
            }
        }
    }

    fn answer(&mut self, call: &Received) -> (Message, Vec<u8>) {
        let short = |label| (Message::new(label), Vec::new());
        let mine = |id: u64| {
            let holder = |holder: &Holder| u64::from(holder.id) == id && holder.badge == Some(call.badge);
            self.holders.iter().position(holder)
        };
        match call.label {
            ASK => self.ask(call),
            INSTALL => match mine(call.words[0]) {
                Some(index) => self.give(index, call),
                None => short(UNKNOWN),
            },
            RELEASE => match mine(call.words[0]) {
                Some(index) => {
                    let holder = self.holders.remove(index);
                    if let Some(cpu) = self.admission.leave(holder.id) {
                        self.changed(cpu);
                    }
                    self.forget(holder.context);
                    short(DONE)
                }
                None => short(UNKNOWN),
            },
            MOVE => match mine(call.words[0]) {
                Some(index) => self.shift(index, call.words[1]),
                None => short(UNKNOWN),
            },
            ROOM => {
                let rooms: Vec<u64> = (0..self.admission.cpus()).map(|cpu| self.admission.room_ppm(cpu)).collect();
                let words = [rooms.iter().sum(), rooms.len() as u64];
                (Message::new(DONE).words(words), rooms.iter().flat_map(|room| room.to_le_bytes()).collect())
            }
            _ => short(UNKNOWN),
        }
    }

    fn ask(&mut self, call: &Received) -> (Message, Vec<u8>) {
        let [slice, period, latency, flags, cpu, ..] = call.words;
        if self.holders.iter().filter(|holder| holder.badge == Some(call.badge)).count() >= MOST {
            return (Message::new(MANY), Vec::new());
        }
        let contract = Contract { slice, period, latency, extra: flags & EXTRA != 0 };
        let bound = (flags & BOUND != 0).then(|| usize::try_from(cpu).unwrap_or(usize::MAX));
        match self.admission.enter(contract, bound) {
            Ok(placed) => {
                self.holders.push(Holder { id: placed.id, badge: Some(call.badge), context: None, place: None });
                (self.yes(placed.id, placed.cpu), Vec::new())
            }
            Err(refused) => self.no(&refused),
        }
    }

    fn yes(&self, id: u32, cpu: usize) -> Message {
        let Some((table, processor)) = self.admission.table(cpu).zip(self.processors.get(cpu)) else {
            return Message::new(UNKNOWN);
        };
        let owner = self.admission.members(cpu).position(|member| member.0 == id).unwrap_or(usize::MAX);
        let share = u128::from(table.given(owner)) * 1_000_000 / u128::from(table.cycle.max(1));
        let words = [u64::from(id), cpu as u64, share as u64, table.cycle];
        Message::new(YES).words(words).capability(processor.bare.slot())
    }

    fn no(&self, refused: &Refused) -> (Message, Vec<u8>) {
        let (cpu, refusal) = refused.first();
        let (code, with) = refusal.reason.code();
        let count = refused.cpus.len() as u64;
        let words = [count, cpu as u64, code, with, self.admission.room_ppm(cpu), refused.room_ppm];
        let each = refused.cpus.iter().take(MessageBuffer::BYTES / 8 / REFUSAL_WORDS).flat_map(|(cpu, refusal)| {
            let (code, with) = refusal.reason.code();
            [*cpu as u64, code, with, self.admission.room_ppm(*cpu)]
        });
        (Message::new(NO).words(words), each.flat_map(u64::to_le_bytes).collect())
    }

    /// A context came for a contract.
    fn give(&mut self, index: usize, call: &Received) -> (Message, Vec<u8>) {
        let unknown = (Message::new(UNKNOWN), Vec::new());
        let Some(context) = received::keep::<SchedContext>(self.table, &mut self.slots, call, 0) else {
            return unknown;
        };
        let Some(holder) = self.holders.get_mut(index) else {
            return unknown;
        };
        let (id, old) = (holder.id, holder.context.replace(context));
        holder.place = None;
        self.forget(old);
        if let Some(cpu) = self.cpu_of(id) {
            self.changed(cpu);
        }
        (Message::new(DONE).words([u64::from(self.takes_slack(index))]), Vec::new())
    }

    fn shift(&mut self, index: usize, to: u64) -> (Message, Vec<u8>) {
        let Some(id) = self.holders.get(index).map(|holder| holder.id) else {
            return (Message::new(UNKNOWN), Vec::new());
        };
        let to = usize::try_from(to).unwrap_or(usize::MAX);
        match self.admission.shift(id, to) {
            None => (Message::new(UNKNOWN), Vec::new()),
            Some(Err(refused)) => self.no(&refused),
            Some(Ok(from)) => {
                if from != to {
                    // Its context lives on the other CPU.
                    let holder = self.holders.get_mut(index);
                    let old = holder.and_then(|holder| {
                        holder.place = None;
                        holder.context.take()
                    });
                    self.forget(old);
                    self.changed(from);
                }
                (self.yes(id, to), Vec::new())
            }
        }
    }

    fn cpu_of(&self, id: u32) -> Option<usize> {
        (0..self.admission.cpus()).find(|cpu| self.admission.members(*cpu).any(|member| member.0 == id))
    }

    fn changed(&mut self, cpu: usize) {
        if let Some(processor) = self.processors.get_mut(cpu) {
            processor.stale = true;
        }
    }

    /// Lets go of a context's capability, and with it of what a scheduler has of it.
    fn forget(&mut self, context: Option<SchedContext>) {
        if let Some(context) = context {
            received::let_go(self.table, &mut self.slots, context);
        }
    }

    /// Contexts that died have no windows any more.
    fn bury(&mut self) {
        let gone = |context: SchedContext| {
            self.table.inspect(context.slot()).is_ok_and(|found| found.kind != Some(ObjectType::SchedContext))
        };
        for holder in &mut self.holders {
            if let Some(context) = holder.context.filter(|context| gone(*context)) {
                (holder.context, holder.place) = (None, None);
                self.slots.give(context.slot(), 1);
            }
        }
    }

    /// Writes what the book says into the plan that is not in force and asks for it. If the other one still waits for its turn, later.
    fn install(&mut self, index: usize) {
        if !self.processors.get(index).is_some_and(|one| one.stale) {
            return;
        }
        match self.try_install(index) {
            Ok(()) => {
                if let Some(one) = self.processors.get_mut(index) {
                    one.stale = false;
                }
            }
            // The cycle of the old plan has not ended.
            Err(Error::Again | Error::Active | Error::Retiring) => {}
            Err(error) => {
                log::debug!("the plan of CPU {index}: {error:?}");
                self.bury();
            }
        }
    }

    fn try_install(&mut self, index: usize) -> Result<(), Error> {
        let Some((table, processor)) = self.admission.table(index).zip(self.processors.get(index)) else {
            return Ok(());
        };
        let contexts: Vec<Option<SchedContext>> = self
            .admission
            .members(index)
            .map(|(id, _)| self.holders.iter().find(|holder| holder.id == id).and_then(|holder| holder.context))
            .collect();
        let windows: Vec<(SchedContext, u64, u64)> = table
            .windows
            .iter()
            .filter_map(|window| Some((contexts.get(window.owner).copied()??, window.start, window.end)))
            .collect();
        if windows.is_empty() {
            return processor.cpu.install_plan(None);
        }
        let mut last = Error::Active;
        for plan in processor.plans {
            match plan.clear(table.cycle) {
                Ok(()) => {
                    plan.append_all(&mut self.buffer, &windows)?;
                    return processor.cpu.install_plan(Some(plan));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
