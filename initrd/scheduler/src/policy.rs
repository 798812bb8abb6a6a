//! Who gets the slack: one policy a file. How to add one: `docs/how-to/add-a-policy.md`.

use alloc::{boxed::Box, vec::Vec};

/// Registers policies: each is a module with a `NAME` and a function `make`.
macro_rules! policies {
    ($($(#[$doc:meta])* $module:ident,)*) => {
        $($(#[$doc])* pub mod $module;)*

        /// Every policy: its name in manifests and the function that makes one.
        pub const POLICIES: &[(&str, fn(&[Share], u64) -> Box<dyn Policy>)] = &[$(($module::NAME, $module::make),)*];
    };
}

policies! {
    round_robin,
    atropos,
    bvt,
    lottery,
}

pub use round_robin::RoundRobin;

/// A choice: this context, until then at most (TSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Number of the context among those granted.
    pub context: usize,
    /// When the policy wants to be asked again; later than now.
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

    /// The context that was chosen last was charged `used` ticks of slack (its windows and interrupts in between not included). Told
    /// before `block` if it blocked.
    fn ran(&mut self, context: usize, used: u64, now: u64);

    /// Who runs next; `None` if all are blocked.
    fn choose(&mut self, now: u64) -> Option<Choice>;
}

/// What a context is to have of the slack. Each policy looks at what it understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Relative to the others'; at least 1.
    pub weight: u64,
    /// Slack that it is to have in each period if there is so much; 0: none.
    pub slice: u64,
    /// The period.
    pub period: u64,
    /// Virtual time that it may borrow when it wakes up.
    pub warp: u64,
}

impl Share {
    /// One like all others.
    pub const EQUAL: Share = Share { weight: 1, slice: 0, period: 0, warp: 0 };
}

/// Makes the policy with this name.
#[must_use]
pub fn by_name(name: &str, shares: &[Share], quantum: u64) -> Option<Box<dyn Policy>> {
    POLICIES.iter().find(|policy| policy.0 == name).map(|policy| (policy.1)(shares, quantum))
}

/// Reads the shares of `count` contexts from the manifest's arguments: `weights=1,2`, `slices_us=…`, `periods_us=…`, `warps_us=…`, each
/// in the order of the contexts; what is missing is as in [`Share::EQUAL`]. `None`: not a list of numbers.
#[must_use]
pub fn shares<'a>(
    count: usize,
    argument: impl Fn(&str) -> Option<&'a str>,
    ticks: impl Fn(u64) -> u64,
) -> Option<Vec<Share>> {
    let list = |key| -> Option<Vec<u64>> {
        let Some(text) = argument(key) else {
            return Some(Vec::new());
        };
        text.split(',').map(|part| part.trim().parse().ok()).collect()
    };
    let (weights, slices, periods, warps) =
        (list("weights")?, list("slices_us")?, list("periods_us")?, list("warps_us")?);
    let at = |list: &[u64], index: usize| list.get(index).copied().unwrap_or(0);
    let time = |list: &[u64], index| ticks(at(list, index).saturating_mul(1_000));
    let share = |index| Share {
        weight: at(&weights, index).clamp(1, 1 << 20),
        slice: time(&slices, index),
        period: time(&periods, index),
        warp: time(&warps, index),
    };
    Some((0..count).map(share).collect())
}

/// Virtual time: ticks divided by weights, in units fine enough for any weight.
#[must_use]
pub(crate) fn virtual_time(ticks: u64, weight: u64) -> u128 {
    (u128::from(ticks) << 24) / u128::from(weight.max(1))
}

/// The ticks in which a context of this weight gets so much virtual time, at least one.
#[must_use]
pub(crate) fn real_time(time: u128, weight: u64) -> u64 {
    let ticks = time.saturating_mul(u128::from(weight.max(1))) >> 24;
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}
