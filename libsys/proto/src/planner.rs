//! The planner: contracts of time in a running system (`docs/abi/planner.md`). All times are TSC ticks.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Label: asks for a contract. W0 slice, W1 period, W2 latency bound (0: none), W3 [`EXTRA`], [`BOUND`], W4 the CPU if bound to one.
/// Answer: [`YES`] or [`NO`].
pub const ASK: u32 = 1;
/// Label: W0 contract, one capability: the `SchedContext` that gets its windows, at home on the contract's CPU. Answer: [`DONE`] (W0: 1 if it takes
/// slack, else 0) or [`UNKNOWN`].
pub const INSTALL: u32 = 2;
/// Label: W0 contract. Ends it. Answer: [`DONE`] or [`UNKNOWN`].
pub const RELEASE: u32 = 3;
/// Label: W0 contract, W1 CPU. Moves it there, if that CPU takes it; it has no windows until a context of that CPU is installed. Answer:
/// [`YES`], [`NO`] (nothing changed) or [`UNKNOWN`].
pub const MOVE: u32 = 4;
/// Label: what is not promised yet. Answer: [`DONE`]: W0 parts per million of a CPU over all CPUs, W1 number of CPUs; the message buffer has the
/// parts per million of each CPU, eight bytes each.
pub const ROOM: u32 = 5;

/// Answer: W0 contract, W1 CPU, W2 parts per million that its windows have of the CPU, W3 length of the cycle; one capability: the `Cpu`, without
/// rights, to name it as a home.
pub const YES: u32 = 0;
/// Answer: no CPU takes it. W0 how many say so (0: no such CPU), W1 the CPU with the most room, W2 its reason, W3 what goes with the
/// reason, W4 parts per million that CPU has left, W5 the same over all CPUs. The message buffer says it of each: [`REFUSAL_WORDS`] words.
pub const NO: u32 = 1;
/// Answer: done.
pub const DONE: u32 = 2;
/// Answer: the caller has no such contract; of [`INSTALL`] also: no capability to a context came with it.
pub const UNKNOWN: u32 = 3;
/// Answer: the caller has as many contracts as one may have ([`MOST`]).
pub const MANY: u32 = 4;

/// Flag: takes slack too.
pub const EXTRA: u64 = 1;
/// Flag: on the CPU of W4 only.
pub const BOUND: u64 = 2;

/// Contracts that one client may have at a time.
pub const MOST: usize = 32;
/// Words of each refusal in the message buffer: CPU, reason, what goes with it, parts per million left.
pub const REFUSAL_WORDS: usize = 4;

/// Name of the region in which the planner finds the [`Book`].
pub const BOOK: &str = "book";
/// Bytes of that region at most.
pub const BOOK_BYTES: u64 = 16 << 10;
/// Name of the planner's capabilities to the capability tables of the slack schedulers, in the order of their CPUs.
pub const SCHEDULERS: &str = "schedulers";
/// Name of the empty slots of a scheduler's table where the planner puts contexts that came with a contract. There are
/// [`MOST_NEWCOMERS`] in a system with a planner.
pub const NEWCOMERS: &str = "newcomers";
/// Contexts with contracts of the planner's that take slack on one CPU at a time.
pub const MOST_NEWCOMERS: u32 = 32;

/// What was promised when the planner starts: postcard bytes behind a word that has their length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Longest window of slack of each CPU; 0: its scheduler hands slack out.
    pub quanta: Vec<u64>,
    /// First of the slots [`NEWCOMERS`] in the table of each CPU's scheduler; 0: there is no scheduler.
    pub newcomers: Vec<u32>,
    /// The contracts, in the order of the capabilities `contexts`.
    pub contracts: Vec<Booked>,
}

/// A contract of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booked {
    /// Whose.
    pub name: String,
    /// Its CPU.
    pub cpu: u32,
    /// Time in each period; 0: nothing but slack.
    pub slice: u64,
    /// The period.
    pub period: u64,
    /// Longest wait between two windows; 0: as the period allows.
    pub latency: u64,
    /// Whether it takes slack.
    pub extra: bool,
}
