//! Threads that do what they are told, one instruction at a time.

use crate::{Lab, Stub, lab::one, raw::Answer};
use moira_abi::{Tag, fault::Registers};
use moira_sys::{
    AddressSpace, Blocked, CapTable, Capability, Configuration, Deadline, Dispatched, Endpoint, Error, Frame,
    FrameSize, MapFlags, Notification, SchedContext, Snapshot, Space, Thread,
};

/// How an experiment with a puppet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came back: the system call answered this.
    Answered(Answer),
    /// The instruction faulted: vector, error code, address.
    Fault(u64, u64, u64),
    /// It waits, until this deadline (0: none).
    Waits(u64),
    /// It did not end in time.
    Runs,
    /// It is gone.
    Gone,
    /// It waits for a thread that is stopped.
    Behind,
}

/// A thread with (or without) an account.
#[derive(Clone, Copy, Debug)]
pub struct Puppet {
    /// The thread.
    pub thread: Thread,
    /// Its account, unless it is a passive server.
    pub context: Option<SchedContext>,
    /// Index of its account on the status page.
    pub index: u32,
    /// Its message buffer.
    pub buffer: Option<Frame>,
    /// Where the laboratory sees that buffer; 0: nowhere.
    pub buffer_at: u64,
}

/// What a puppet is made with.
#[derive(Clone, Copy, Debug)]
pub struct With {
    /// Level.
    pub level: u8,
    /// Whether it has an account.
    pub paid: bool,
    /// Its table.
    pub table: CapTable,
    /// Its space.
    pub space: AddressSpace,
    /// Where its faults go; none: it stops, and the laboratory's notification is signalled.
    pub fault_endpoint: Option<Endpoint>,
    /// Whether it has a message buffer.
    pub buffer: bool,
}

impl With {
    /// What most puppets are: the laboratory's space and table, an account, no buffer.
    #[must_use]
    pub const fn level(level: u8) -> With {
        With { level, paid: true, table: Lab::TABLE, space: Lab::SPACE, fault_endpoint: None, buffer: false }
    }

    /// Without an account.
    #[must_use]
    pub const fn passive(mut self) -> With {
        self.paid = false;
        self
    }

    /// With a message buffer.
    #[must_use]
    pub const fn buffer(mut self) -> With {
        self.buffer = true;
        self
    }
}

impl Puppet {
    /// A puppet like [`With::level`].
    ///
    /// # Errors
    /// Of retype and configure.
    pub fn new(lab: &mut Lab, level: u8) -> Result<Puppet, Error> {
        Puppet::with(lab, With::level(level))
    }

    /// Makes one and lets it come to its first stop.
    ///
    /// # Errors
    /// Of retype and configure.
    pub fn with(lab: &mut Lab, with: With) -> Result<Puppet, Error> {
        let puppet = Puppet::made(lab, with)?;
        puppet.thread.activate(Lab::CPU, [0, 0])?;
        puppet.thread.stop()?;
        Ok(puppet)
    }

    /// Makes one without activating it.
    ///
    /// # Errors
    /// Of retype and configure.
    pub fn made(lab: &mut Lab, with: With) -> Result<Puppet, Error> {
        let slot = lab.slots(1);
        let thread = one(lab.arena.retype_threads(1, slot)?)?;
        let mut puppet = Puppet { thread, context: None, index: u32::MAX, buffer: None, buffer_at: 0 };
        if with.buffer {
            let slot = lab.slots(1);
            let frame = one(lab.arena.retype_frames(FrameSize::Small, 1, slot)?)?;
            puppet.buffer_at = lab.address(1);
            Lab::SPACE.map(frame, puppet.buffer_at, MapFlags::READ_WRITE)?;
            puppet.buffer = Some(frame);
        }
        thread.configure(&Configuration {
            space: with.space,
            table: with.table,
            buffer: puppet.buffer,
            level: with.level,
            fault_endpoint: with.fault_endpoint,
            fault_notification: with.fault_endpoint.is_none().then_some(lab.faults),
            entry: Stub::Stop.address(),
            stack: 0x1000,
        })?;
        if with.paid {
            let slot = lab.slots(1);
            let context = one(lab.arena.retype_contexts(1, slot)?)?;
            puppet.index = context.bind(thread, Lab::CPU)?.unwrap_or(u32::MAX);
            puppet.context = Some(context);
        }
        Ok(puppet)
    }

    /// Registers and last fault. The puppet must be stopped.
    ///
    /// # Errors
    /// Of `read registers`.
    pub fn look(&self, lab: &mut Lab) -> Result<Snapshot, Error> {
        self.thread.read_registers(&mut lab.buffer)
    }

    /// Lets a stopped puppet execute a stub with these registers when it next runs.
    ///
    /// # Errors
    /// Of `write registers` and `resume`.
    pub fn set(&self, lab: &mut Lab, stub: Stub, mut registers: Registers) -> Result<(), Error> {
        registers.rip = stub.address();
        self.thread.write_registers(&mut lab.buffer, &registers)?;
        self.thread.resume()
    }

    /// Prepares a system call.
    ///
    /// # Errors
    /// Of [`Puppet::set`].
    pub fn prepare(&self, lab: &mut Lab, tag: u64, capability: u64, words: &[u64], deadline: u64) -> Result<(), Error> {
        let mut registers = Registers { rflags: 2, ..Registers::default() };
        registers.gpr[0] = tag;
        registers.gpr[7] = capability;
        registers.gpr[15] = deadline;
        for (index, word) in WORDS.iter().zip(words) {
            registers.gpr[*index] = *word;
        }
        self.set(lab, Stub::Syscall, registers)
    }

    /// Runs it, on its own account, until it comes to an end.
    ///
    /// # Errors
    /// Of dispatch and `read registers`.
    pub fn run(&self, lab: &mut Lab) -> Result<Outcome, Error> {
        let context = self.context.ok_or(Error::NotMapped)?;
        Ok(match lab.run(context, 100_000)? {
            Dispatched::Blocked { kind: Blocked::Stopped, .. } => self.outcome(lab)?,
            Dispatched::Blocked { kind: Blocked::Waiting, deadline, .. } => Outcome::Waits(deadline),
            Dispatched::Blocked { kind: Blocked::Gone, .. } => Outcome::Gone,
            _ => Outcome::Runs,
        })
    }

    /// What a stopped puppet came to.
    ///
    /// # Errors
    /// Of `read registers`.
    pub fn outcome(&self, lab: &mut Lab) -> Result<Outcome, Error> {
        let snapshot = match self.look(lab) {
            Err(Error::Active) => return Ok(Outcome::Behind),
            other => other?,
        };
        let after = Stub::Syscall.address() + 2;
        Ok(match snapshot.fault {
            Some(fault) if fault.vector == 6 && snapshot.registers.rip == after => {
                Outcome::Answered(answer(&snapshot.registers))
            }
            Some(fault) => Outcome::Fault(fault.vector, fault.error_code, fault.cr2),
            None => Outcome::Runs,
        })
    }

    /// One system call by the puppet, to its end.
    ///
    /// # Errors
    /// Of the steps above.
    pub fn invoke(&self, lab: &mut Lab, tag: u64, capability: u64, words: &[u64]) -> Result<Outcome, Error> {
        self.prepare(lab, tag, capability, words, 0)?;
        self.run(lab)
    }

    /// One stub by the puppet, to its end.
    ///
    /// # Errors
    /// Of the steps above.
    pub fn execute(&self, lab: &mut Lab, stub: Stub, registers: Registers) -> Result<Outcome, Error> {
        self.set(lab, stub, registers)?;
        self.run(lab)
    }

    /// Makes it a server of an endpoint that waits for calls: receives when it first runs.
    ///
    /// # Errors
    /// Of the steps above.
    pub fn receive(&self, lab: &mut Lab, deadline: Deadline) -> Result<(), Error> {
        self.prepare(lab, moira_abi::Method::Receive as u64, 0, &[], deadline.0)
    }

    /// Slot of its thread as a word.
    #[must_use]
    pub fn word(&self) -> u64 {
        u64::from(self.thread.slot().0)
    }
}

/// Where W0–W7 are in the instruction encoding's order.
const WORDS: [usize; 8] = [6, 2, 8, 9, 10, 12, 13, 14];

/// The answer in a thread's registers.
pub(crate) fn answer(registers: &Registers) -> Answer {
    Answer { tag: Tag(registers.gpr[0]), badge: registers.gpr[7], words: WORDS.map(|index| registers.gpr[index]) }
}

/// Whether a notification has bits, and which; taken.
#[must_use]
pub fn taken(notification: Notification) -> u64 {
    notification.poll().unwrap_or(u64::MAX)
}
