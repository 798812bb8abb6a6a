//! The trace: a ring of events of each CPU (`docs/abi/trace.md`). Objects are named by physical address.

/// One event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// TSC.
    pub time: u64,
    /// [`kind`] in the low half, the CPU's index in the upper.
    pub what: u64,
    /// First argument.
    pub a: u64,
    /// Second argument.
    pub b: u64,
}

impl Event {
    /// Its [`kind`].
    #[must_use]
    pub const fn kind(&self) -> u32 {
        self.what as u32
    }

    /// Index of its CPU.
    #[must_use]
    pub const fn cpu(&self) -> u32 {
        (self.what >> 32) as u32
    }
}

/// Kinds of events.
pub mod kind {
    /// The account changed: context (0: idle), thread that runs for it. From here on time is the context's own, unless [`FOR`] follows.
    pub const CHOOSE: u32 = 1;
    /// A switch without a choice: thread.
    pub const SWITCH: u32 = 2;
    /// A thread faulted: thread, vector.
    pub const FAULT: u32 = 3;
    /// An interrupt begins: vector.
    pub const INTERRUPT: u32 = 4;
    /// A structural operation begins: thread, method.
    pub const STRUCTURAL: u32 = 5;
    /// A guest's exit: thread, reason.
    pub const EXIT: u32 = 6;
    /// A system call: thread, method.
    pub const SYSCALL: u32 = 7;
    /// The structural lock was taken, and this CPU waits for its turn.
    pub const WAIT: u32 = 8;
    /// A system call runs again from its start: thread, method.
    pub const RESTART: u32 = 9;
    /// Translations were dropped: reason (`moira_kernel_core::flush::Reason`), space or page.
    pub const FLUSH: u32 = 10;
    /// The time of the context chosen at this moment is lost to another: context, the other (0: nobody who lives).
    pub const FOR: u32 = 11;
    /// The handler of a source's interrupt ends: vector, context whose source it is (0: nobody's).
    pub const INTERRUPT_END: u32 = 12;
    /// A structural operation ends: thread, method.
    pub const STRUCTURAL_END: u32 = 13;
    /// A stretch of the plan begins: its context (0: slack), TSC at which it ends.
    pub const WINDOW: u32 = 14;

    /// Not the kernel's: in a stream of events that a task sends (`tests/loads/src/tracer.rs`). Names a context: number in the list of those that are watched (as
    /// the time), context, its thread.
    pub const NAME: u32 = 64;
    /// Not the kernel's: what was traced: TSC frequency (as the time), from, to.
    pub const STRETCH: u32 = 65;

    /// Those that say where time goes.
    pub const ACCOUNTS: u64 = 1 << CHOOSE
        | 1 << FOR
        | 1 << INTERRUPT
        | 1 << INTERRUPT_END
        | 1 << STRUCTURAL
        | 1 << STRUCTURAL_END
        | 1 << WINDOW;
}

/// Events of a CPU's ring.
pub const EVENTS: usize = 4096;
/// Events that one call copies at most.
pub const COPIED: u64 = 64;
/// Vectors below this one and above [`LAST_SOURCE`] are the kernel's own: their handling is charged to whoever is chosen.
pub const FIRST_SOURCE: u64 = 48;
/// Last vector of a source.
pub const LAST_SOURCE: u64 = 239;
