//! The compiled system manifest: file `system` of the archive, postcard bytes of [`System`]. xtask writes it from
//! `initrd/systems/NAME.toml` after checking; the root task reads it and builds exactly that.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// A whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Its name.
    pub name: String,
    /// Processors it needs at least.
    pub cpus: u32,
    /// Bytes of memory it needs at least.
    pub memory: u64,
    /// The tasks, in the order in which they are made and started.
    pub tasks: Vec<Task>,
    /// Memory shared between tasks, by name: bytes (a multiple of 4096).
    pub regions: Vec<(String, u64)>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its name, unique.
    pub name: String,
    /// File of the archive that holds its ELF image.
    pub image: String,
    /// Index of the processor its thread lives on.
    pub cpu: u32,
    /// Level 0–7: calls and faults go to a higher level only.
    pub level: u8,
    /// Its time.
    pub time: Time,
    /// What it is for the system.
    pub role: Role,
    /// What happens when it dies.
    pub restart: Restart,
    /// How long it is made anew when it dies again and again.
    pub patience: Patience,
    /// Bytes of stack (a multiple of 4096).
    pub stack: u64,
    /// Bytes of heap (a multiple of 4096).
    pub heap: u64,
    /// log2 of the bytes of its capability table (slots = 2^(n-5) - 2).
    pub table_bits: u8,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Capabilities beyond the ones each task has.
    pub grants: Vec<(String, Grant)>,
    /// Whether it serves an endpoint (bound to its main thread).
    pub serves: bool,
    /// Its further threads, from number 1 on; the main thread is number 0. At most [`MOST_THREADS`] with it.
    pub threads: Vec<Thread>,
}

/// Most threads of one task, the main one included.
pub const MOST_THREADS: usize = 16;

/// A further thread of a task: it shares the task's level, memory and capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Index of the processor it lives on.
    pub cpu: u32,
    /// Its time.
    pub time: Time,
}

/// CPU time of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Whether it has a scheduling context at all (a passive server has none).
    pub context: bool,
    /// Nanoseconds promised in each period; 0: slack only.
    pub slice_ns: u64,
    /// The period in nanoseconds.
    pub period_ns: u64,
    /// Largest gap between its windows in nanoseconds; 0: as the period allows.
    pub latency_ns: u64,
    /// Whether it also gets slack.
    pub extra: bool,
}

/// What a task is for the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Nothing special.
    None,
    /// Makes plans from contracts; gets the `Cpu` capabilities with PLAN and all contexts.
    Planner,
    /// The slack scheduler of its CPU; gets `Cpu` with DISPATCH, its status page, and all slack contexts of that CPU.
    Scheduler,
}

/// What happens when a task dies by a fault or a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// It is left dead; its memory is returned.
    Never,
    /// It is made anew, for as long as the system runs: the system's end does not wait for it.
    Always,
    /// It is made anew; the system waits until it has finished.
    OnFailure,
    /// The whole system ends as failed.
    EndSystem,
}

/// With whom dies again and again: the first time it is made anew at once, then after a delay that doubles with each death, up to a
/// second, until it is left dead. Who has lived for two seconds begins from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Deaths in a row after which it is left dead; 0: it is made anew for ever.
    pub limit: u32,
    /// The delay of the second time in nanoseconds; 0: it is made anew at once always.
    pub delay_ns: u64,
}

impl Default for Patience {
    /// Sixteen deaths, from a millisecond on: some six seconds.
    fn default() -> Patience {
        Patience { limit: 16, delay_ns: 1_000_000 }
    }
}

/// A capability granted to a task, under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// May call that task's endpoint; the badge tells the server who calls.
    Call {
        /// The serving task.
        task: String,
        /// Badge, unique among that server's clients.
        badge: u64,
    },
    /// May signal that task's notification with these bits.
    Signal {
        /// The task whose notification it is.
        task: String,
        /// The bits.
        bits: u64,
    },
    /// I/O ports, inclusive.
    Ports {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// An interrupt line, bound to the task's notification with these bits.
    Interrupt {
        /// Global system interrupt.
        gsi: u32,
        /// Level-triggered.
        level: bool,
        /// Active low.
        active_low: bool,
        /// Bits that it signals.
        bits: u64,
    },
    /// Device memory, mapped uncached; the frames are granted too.
    Device {
        /// Physical address (a multiple of 4096).
        physical: u64,
        /// Bytes (a multiple of 4096).
        length: u64,
    },
    /// An untyped of its own: log2 of its bytes. It is zeroed.
    Untyped {
        /// log2 of the bytes.
        size_bits: u8,
    },
    /// Untyped memories of its own that add up to so many bytes, a whole number of MiB: the largest first, each a power of two of 1 MiB
    /// or more, all but the last of 2 MiB or more. They are zeroed.
    Blocks {
        /// Bytes in all.
        bytes: u64,
    },
    /// A file of the archive, mapped read-only.
    File {
        /// Its name.
        file: String,
    },
    /// A shared region, mapped.
    Region {
        /// Its name.
        region: String,
        /// Whether it may be written.
        writable: bool,
    },
    /// A processor.
    Cpu {
        /// Its index.
        cpu: u32,
        /// `moira_abi::Rights` bits.
        rights: u8,
    },
    /// The machine itself: start processors, name interrupts and ports, end the run.
    Platform,
    /// Another task's scheduling context (for planner and scheduler beyond what the role gives).
    Context {
        /// The task.
        task: String,
    },
    /// The right to signal the root task that there is an order in region [`crate::mailbox::ROOT`].
    Supervisor,
    /// Another task's thread and space (for supervisors and debuggers).
    Control {
        /// The task.
        task: String,
    },
}
