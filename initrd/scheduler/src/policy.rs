//! Who gets the slack: one policy a file.

pub mod round_robin;

pub use round_robin::RoundRobin;

/// A choice: this context, until then at most (TSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Number of the context among those granted.
    pub context: usize,
    /// When the policy wants to be asked again.
    pub until: u64,
}

/// A slack policy. Contexts are numbered from 0 in the order in which they are granted; times are TSC ticks.
///
/// What it is told may be late or too optimistic (a context said to be awake may block at once), never wrong for good.
pub trait Policy {
    /// The context may be able to run. Told again while it is awake, nothing changes.
    fn wake(&mut self, context: usize, now: u64);

    /// The context cannot run until it is woken.
    fn block(&mut self, context: usize, now: u64);

    /// The context ran from `from` to `now` (windows and interrupts in between included) and still can.
    fn ran(&mut self, context: usize, from: u64, now: u64);

    /// Who runs next; `None` if all are blocked.
    fn choose(&mut self, now: u64) -> Option<Choice>;
}
