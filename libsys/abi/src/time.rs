//! Time: plans, the scheduler's status page, the ledger. All times are TSC ticks of the CPU in question.

/// Codes that `dispatch` answers in W0.
pub mod dispatch {
    /// The token was older than the sequence: read the news again.
    pub const STALE: u64 = 0;
    /// The sequence moved while the context was dispatched: something woke up, or died.
    pub const NEWS: u64 = 1;
    /// `until` passed.
    pub const UNTIL: u64 = 2;
    /// The dispatched context is blocked. W1: [`blocked`](super::blocked) kind, W2: its deadline or 0, W3:
    /// number of the thread at which it is blocked, as in the log.
    pub const BLOCKED: u64 = 3;
}

/// Where a context is blocked.
pub mod blocked {
    /// Not blocked.
    pub const RUNNABLE: u32 = 0;
    /// Receiving or waiting.
    pub const WAITING: u32 = 1;
    /// Stopped, inactive or parked.
    pub const STOPPED: u32 = 2;
    /// Its thread is gone.
    pub const GONE: u32 = 3;
}

/// Entries of the news log.
pub const NEWS_LOG: usize = 256;
/// Context words of a status page. Contexts of one CPU beyond this number get no word; `dispatch` still tells of them.
pub const STATUS_CONTEXTS: usize = 92;

/// One context's word on the status page.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ContextStatus {
    /// [`blocked`] kind.
    pub blocked: u32,
    /// Number of the thread at which the chain of calls is blocked: the number that the log will carry.
    pub thread: u32,
    /// Deadline of the wait, or 0.
    pub deadline: u64,
    /// The CPU's sequence when this word was written.
    pub sequence: u64,
    /// Total time charged when this word was written, own and lost.
    pub consumed: u64,
}

/// The page (4 KiB, read-only to the scheduler) on which the kernel writes what the scheduler needs to know.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StatusPage {
    /// Incremented after each piece of news. The token of `dispatch`.
    pub sequence: u64,
    /// TSC at the last piece of news.
    pub stamp: u64,
    /// Numbers of threads that woke, resumed or died: entry `sequence % NEWS_LOG`. Whoever is blocked at that thread may run.
    pub log: [u32; NEWS_LOG],
    /// Words by context index (as `ContextBind` answered it).
    pub context: [ContextStatus; STATUS_CONTEXTS],
}

/// Others that an account keeps by number, of those it lost time to.
pub const LOSERS: usize = 8;

/// To whom a context lost time while it helped them along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Losers {
    /// Numbers of contexts (0: none) and the ticks lost to each: the eight that got most.
    pub to: [[u64; 2]; LOSERS],
    /// Ticks lost to others than these.
    pub others: u64,
    /// Ticks lost to nobody who lives: servers finish the requests of callers that died.
    pub gone: u64,
}

/// The ledger of one CPU. `own + lost` over all contexts plus the parts here sum to `elapsed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuLedger {
    /// Ticks since this CPU's ledger began.
    pub elapsed: u64,
    /// Sum over contexts.
    pub contexts: u64,
    /// No one was chosen.
    pub idle: u64,
    /// Interrupts, by owners' accounts elsewhere; here the sum.
    pub interrupts: u64,
    /// Time of contexts that died.
    pub gone: u64,
    /// Times `choose` ran.
    pub choices: u64,
    /// The tick at which this CPU's ledger began.
    pub started: u64,
}
