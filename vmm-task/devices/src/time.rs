//! Conversion between nanoseconds and the ticks of a clock, without division on the way.

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Multiplies by a fixed ratio of two frequencies: one multiplication and one shift; saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ratio {
    mult: u64,
    shift: u32,
}

impl Ratio {
    /// `to / from`, exact to 63 significant bits or so.
    const fn new(from: u64, to: u64) -> Self {
        let from = if from == 0 { 1 } else { from } as u128;
        let mut shift = 63;
        while shift > 0 && ((to as u128) << shift) / from > u64::MAX as u128 {
            shift -= 1;
        }
        // Rounded up, so that a whole number of periods is never seen as one too few.
        let mult = ((to as u128) << shift).div_ceil(from);
        Self { mult: if mult > u64::MAX as u128 { u64::MAX } else { mult as u64 }, shift }
    }

    #[inline]
    const fn apply(self, x: u64) -> u64 {
        let y = (x as u128 * self.mult as u128) >> self.shift;
        if y > u64::MAX as u128 { u64::MAX } else { y as u64 }
    }
}

/// A clock that started at 0 ns and runs at a fixed frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    hz: u64,
    to_ticks: Ratio,
    to_ns: Ratio,
}

impl Rate {
    /// A clock of `hz` ticks a second (0 is taken as 1).
    #[must_use]
    pub const fn new(hz: u64) -> Self {
        let hz = if hz == 0 { 1 } else { hz };
        Self { hz, to_ticks: Ratio::new(NS_PER_S, hz), to_ns: Ratio::new(hz, NS_PER_S) }
    }

    /// The frequency in Hz.
    #[must_use]
    pub const fn hz(&self) -> u64 {
        self.hz
    }

    /// Ticks completed within `ns` nanoseconds. Never decreases as `ns` grows.
    #[must_use]
    #[inline]
    pub const fn ticks(&self, ns: u64) -> u64 {
        self.to_ticks.apply(ns)
    }

    /// Nanoseconds completed within `ticks` ticks, rounded down.
    #[must_use]
    #[inline]
    pub const fn ns(&self, ticks: u64) -> u64 {
        self.to_ns.apply(ticks)
    }

    /// A time, at most a few nanoseconds or one tick late, at which at least `ticks` ticks have completed: whoever
    /// waits until then and asks [`Self::ticks`] sees `ticks` or more.
    #[must_use]
    pub const fn ns_at(&self, ticks: u64) -> u64 {
        let mut ns = self.to_ns.apply(ticks);
        let mut tries = 0;
        while self.ticks(ns) < ticks && tries < 4 {
            ns = ns.saturating_add(1);
            tries += 1;
        }
        ns
    }
}

/// The earlier of two optional deadlines.
#[must_use]
pub fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waiting_until_ns_at_is_long_enough_and_not_much_too_long(hz in 1_000u64..8_000_000_000, ticks in 0u64..1 << 44) {
            let r = Rate::new(hz);
            let exact = u128::from(ticks) * 1_000_000_000 / u128::from(hz);
            prop_assume!(exact < 1 << 62);
            let at = r.ns_at(ticks);
            prop_assert!(u128::from(at) <= exact + 4);
            prop_assert!(r.ticks(at) >= ticks || r.ticks(at + 1) >= ticks);
        }

        #[test]
        fn an_hour_is_an_hour(hz in 1_000_000u64..5_000_000_000) {
            let r = Rate::new(hz);
            let t = r.ticks(3600 * NS_PER_S);
            prop_assert!(t.abs_diff(hz * 3600) <= 1);
        }
    }
}
