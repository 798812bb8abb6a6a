//! What the host asks and the control task answers, as postcard bytes in [`frame`](crate::frame)s. `docs/abi/control.md`.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Asked by the host. Strings and bytes are borrowed: nothing that the host says makes the system allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// What system this is: [`Answer::System`].
    System,
    /// Its tasks from number `from` on: [`Answer::Tasks`].
    Tasks {
        /// First task.
        from: u16,
    },
    /// Accounts of CPUs (if `from` is 0) and of tasks from number `from` on: [`Answer::Ledger`].
    Ledger {
        /// First task.
        from: u16,
    },
    /// To whom a task lost time: [`Answer::Losers`].
    Losers {
        /// Its number.
        task: u16,
    },
    /// The slack policy of a CPU: [`Answer::Policy`].
    Policy {
        /// The CPU.
        cpu: u32,
        /// The policy that is wanted from now on; empty: only ask.
        name: &'a str,
    },
    /// The virtual machines: [`Answer::Machines`].
    Machines,
    /// A command to a virtual machine: [`Answer::Done`] when it was carried out.
    Machine {
        /// Its name: that of its monitor's task.
        name: &'a str,
        /// What it shall do.
        command: Command,
    },
    /// Exits of a virtual machine by reason: [`Answer::Exits`].
    Exits {
        /// Its name.
        name: &'a str,
    },
    /// Opens the guest's debug stream: [`Answer::Bytes`] in parts, until [`Request::Close`].
    Debug {
        /// The machine's name.
        name: &'a str,
    },
    /// Bytes into the stream that this request opened: [`Answer::Done`].
    Write {
        /// Number of the request that opened it.
        stream: u16,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Ends a stream: [`Answer::Done`], also as the last answer to the request that opened it.
    Close {
        /// Number of the request that opened it.
        stream: u16,
    },
}

/// Commands to a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Stops its processors until [`Command::Resume`].
    Pause,
    /// Goes on.
    Resume,
    /// Presses its power button.
    PowerButton,
    /// Resets it.
    Reset,
    /// Ends it: its monitor's task is removed, its memory returned.
    Kill,
    /// Presses its NMI button.
    Nmi,
}

/// Answered by the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::System`].
    System(SystemInfo),
    /// To [`Request::Tasks`].
    Tasks {
        /// Tasks, the first with the number that was asked for.
        tasks: Vec<TaskInfo>,
        /// The number to ask for next, if there are more.
        next: Option<u16>,
    },
    /// To [`Request::Ledger`].
    Ledger {
        /// TSC when it was read.
        now: u64,
        /// CPUs.
        cpus: Vec<CpuAccount>,
        /// Tasks with an account of their own.
        tasks: Vec<Account>,
        /// The number to ask for next, if there are more.
        next: Option<u16>,
    },
    /// To [`Request::Losers`]: number in [`Account::number`] and ticks, those that got most first; 0: nobody who lives.
    Losers(Vec<(u64, u64)>),
    /// To [`Request::Policy`].
    Policy {
        /// The policy in force; empty: the scheduler has not said.
        name: String,
        /// All that there are.
        all: Vec<String>,
    },
    /// To [`Request::Machines`].
    Machines(Vec<MachineInfo>),
    /// It was done.
    Done,
    /// To [`Request::Exits`].
    Exits(Exits),
    /// Bytes of a stream.
    Bytes(Vec<u8>),
    /// It was not done.
    Error(Error),
}

/// The system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Its name.
    pub name: String,
    /// TSC ticks in a second.
    pub tsc_hz: u64,
    /// Processors.
    pub cpus: u32,
    /// Tasks.
    pub tasks: u16,
}

/// A task, as the manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its name.
    pub name: String,
    /// Its CPU.
    pub cpu: u32,
    /// Its level.
    pub level: u8,
    /// Nanoseconds promised in each period; 0: nothing.
    pub slice_ns: u64,
    /// The period in nanoseconds.
    pub period_ns: u64,
    /// Whether it takes slack.
    pub slack: bool,
    /// Whether it has an account of its own.
    pub account: bool,
    /// Whether it is the monitor of a virtual machine.
    pub machine: bool,
}

/// The ledger of a CPU (`docs/abi/time.md`), in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuAccount {
    /// Its number.
    pub cpu: u32,
    /// Ticks since it started.
    pub elapsed: u64,
    /// Charged to contexts.
    pub contexts: u64,
    /// Nobody was chosen.
    pub idle: u64,
    /// Interrupt handlers.
    pub interrupts: u64,
    /// Times the kernel chose: a count.
    pub choices: u64,
}

/// The account of a task (`docs/abi/sched-context.md`), in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The task's number.
    pub task: u16,
    /// Own work.
    pub own: u64,
    /// Lost while it helped others along.
    pub lost: u64,
    /// What others were charged while they worked for it.
    pub delivered: u64,
    /// The part of `own` that was structural.
    pub structural: u64,
    /// Interrupt handlers of its sources.
    pub interrupts: u64,
    /// Its number in others' [`Answer::Losers`].
    pub number: u64,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Virtual processors.
    pub cpus: u32,
    /// How often it reset itself or was reset.
    pub resets: u64,
}

/// How a virtual machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its monitor has not started yet.
    Starting,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It ended.
    Ended,
}

/// Exits of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// For each virtual processor: (number of the reason in `moira_abi::vcpu::Exit`, how many), without those that are 0.
    pub cpus: Vec<Vec<(u8, u64)>>,
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Error {
    /// The request cannot be read: another version, or nonsense.
    BadRequest,
    /// Too much is under way: ask again later.
    Busy,
    /// No task or CPU of this number.
    NoSuchNumber,
    /// No virtual machine of this name.
    NoSuchMachine,
    /// No policy of this name.
    NoSuchPolicy,
    /// The system's description does not let the control task do this.
    NotGranted,
    /// It did not answer in time: it gets no CPU time, or hangs.
    NoAnswer,
    /// The machine has ended.
    Ended,
    /// The machine refused: it is in the wrong state for it.
    Refused,
    /// The kernel refused; its error's number (`docs/abi/errors.md`).
    Kernel(u16),
    /// There is no such stream.
    NoStream,
}

impl Request<'_> {
    /// Reads a request.
    ///
    /// # Errors
    /// `BadRequest`.
    pub fn decode(bytes: &[u8]) -> Result<Request<'_>, Error> {
        match postcard::take_from_bytes(bytes) {
            Ok((request, [])) => Ok(request),
            _ => Err(Error::BadRequest),
        }
    }

    /// As bytes.
    ///
    /// # Errors
    /// None that a caller can do anything about: memory.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// The bytes are no answer of this version.
    pub fn decode(bytes: &[u8]) -> Result<Answer, postcard::Error> {
        postcard::from_bytes(bytes)
    }

    /// As bytes.
    ///
    /// # Errors
    /// None that a caller can do anything about: memory.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_short_enough_for_a_fifo_with_their_frame() {
        for request in [Request::System, Request::Ledger { from: 0 }, Request::Exits { name: "linux" }] {
            let mut bytes = Vec::new();
            crate::frame::encode(crate::frame::Kind::Request, 1, &request.encode().unwrap(), &mut bytes);
            assert!(bytes.len() <= usize::from(crate::frame::WINDOW), "{request:?}: {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn anything_may_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::decode(&bytes) {
                // What was read is the same when written and read again.
                let again = request.encode().unwrap();
                prop_assert_eq!(Request::decode(&again), Ok(request));
            }
            let _ = Answer::decode(&bytes);
        }
    }
}
