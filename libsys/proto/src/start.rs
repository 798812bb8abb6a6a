//! What a task finds when it starts: postcard bytes of [`StartInfo`] at the address in `rdi`, length in `rsi`.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Fixed virtual addresses in every task (chosen by the root task; a task may rely on them).
pub mod layout {
    /// Where images are linked.
    pub const IMAGE: u64 = 0x20_0000;
    /// Top of the main thread's stack; a guard page lies below the stack.
    pub const STACK_TOP: u64 = 0x7f00_0000;
    /// The start-information page(s).
    pub const START: u64 = 0x7f10_0000;
    /// The main thread's message buffer.
    pub const BUFFER: u64 = 0x7f20_0000;
    /// The heap.
    pub const HEAP: u64 = 0x1_0000_0000;
    /// Shared regions, files and device memory are mapped from here upwards by the root task.
    pub const SHARED: u64 = 0x10_0000_0000;
    /// From here upwards a task maps what it likes.
    pub const FREE: u64 = 0x20_0000_0000;
    /// Stacks and message buffers of further threads.
    const THREADS: u64 = 0x8000_0000;
    /// From one thread's to the next one's.
    const THREAD: u64 = 0x100_0000;
    /// Largest stack of a further thread: a guard page stays free below it.
    pub const MOST_STACK: u64 = THREAD - 0x4000;

    /// Top of the stack of thread `number` (0: the main one).
    #[must_use]
    pub const fn stack_top(number: usize) -> u64 {
        if number == 0 { STACK_TOP } else { THREADS + number as u64 * THREAD }
    }

    /// The message buffer of thread `number`: a page behind the top of its stack, but for the main one's.
    #[must_use]
    pub const fn buffer(number: usize) -> u64 {
        if number == 0 { BUFFER } else { stack_top(number) + 0x1000 }
    }
}

/// Slots every task has.
pub mod slot {
    /// Its own capability table.
    pub const TABLE: u32 = 2;
    /// Its own address space.
    pub const SPACE: u32 = 3;
    /// Its main thread.
    pub const THREAD: u32 = 4;
    /// Its notification, bound to the main thread (rights WAIT, SIGNAL; badge: all bits may come).
    pub const NOTIFICATION: u32 = 5;
    /// Four slots that take received capabilities: 8–11.
    pub const RECEIVE: u32 = 8;
    /// First slot for capabilities that the manifest names.
    pub const NAMED: u32 = 16;
}

/// Name of the capabilities to the notifications of a task's further threads, in the order of their numbers: each is bound to its
/// thread, with all rights.
pub const THREADS: &str = "threads";

/// Name of capabilities that signal [`START`] to the same notifications.
pub const THREAD_STARTS: &str = "thread-starts";

/// The bit by which a further thread hears that there is something to do.
pub const START: u64 = 1 << 60;

/// `rsi` of a task's threads at their first instruction: bytes of the start information, and the thread's number.
pub mod second {
    const NUMBER: u32 = 32;

    /// Packs both.
    #[must_use]
    pub const fn pack(bytes: u64, number: usize) -> u64 {
        bytes & (1 << NUMBER) - 1 | (number as u64) << NUMBER
    }

    /// Bytes and number.
    #[must_use]
    pub const fn unpack(word: u64) -> (usize, usize) {
        ((word & (1 << NUMBER) - 1) as usize, (word >> NUMBER) as usize)
    }
}

/// The start information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartInfo {
    /// The task's name in the manifest.
    pub name: String,
    /// Virtual address of the heap.
    pub heap_address: u64,
    /// Bytes of the heap.
    pub heap_length: u64,
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// `moira_abi::boot::virtualization`.
    pub virtualization: u32,
    /// XCR0 bits guests may have.
    pub guest_xcr0: u64,
    /// How often this task was restarted.
    pub restarts: u32,
    /// Slots of the capability table.
    pub slot_count: u32,
    /// First slot that is free.
    pub free_slot: u32,
    /// Capabilities by the name the manifest gives them (see [`crate::system::Grant`]): name, first slot, number of slots.
    pub capabilities: Vec<(String, u32, u32)>,
    /// Mapped memory by name: files of the system image, shared regions, device registers.
    pub regions: Vec<Region>,
    /// The manifest's arguments.
    pub arguments: Vec<String>,
}

/// A mapped region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Name in the manifest (a file: its name in the archive).
    pub name: String,
    /// Virtual address.
    pub address: u64,
    /// Bytes (a file: its exact length).
    pub length: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// Physical address of device memory and of ring memory for drivers; else 0.
    pub physical: u64,
}

impl StartInfo {
    /// Reads start information.
    ///
    /// # Errors
    /// The bytes are not a `StartInfo`.
    pub fn decode(bytes: &[u8]) -> Result<StartInfo, postcard::Error> {
        postcard::from_bytes(bytes)
    }

    /// First slot of a named capability.
    #[must_use]
    pub fn capability(&self, name: &str) -> Option<u32> {
        self.capabilities.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }

    /// A named region.
    #[must_use]
    pub fn region(&self, name: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.name == name)
    }
}
