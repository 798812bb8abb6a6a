//! How long a task that dies again and again is made anew.

use moira_proto::system::Patience;

/// Who has lived so long has not died in a row, in nanoseconds.
const LIVED_NS: u64 = 2_000_000_000;
/// The longest delay, in nanoseconds.
const MOST_NS: u64 = 1_000_000_000;

/// What becomes of a task that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is made anew after so many nanoseconds; 0: at once.
    Restart(u64),
    /// It is left dead: it has died so often in a row.
    Dead(u32),
}

/// Deaths of one task in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deaths(u32);

impl Deaths {
    /// It died after `lived` nanoseconds.
    pub fn died(&mut self, lived: u64, patience: &Patience) -> Next {
        let before = if lived >= LIVED_NS { 0 } else { self.0 };
        self.0 = before.saturating_add(1);
        if patience.limit != 0 && self.0 >= patience.limit {
            return Next::Dead(self.0);
        }
        let delay = match before {
            0 => 0,
            // Thirty doublings of a nanosecond are a second.
            before => u128::from(patience.delay_ns) << (before - 1).min(30),
        };
        Next::Restart(u64::try_from(delay).unwrap_or(MOST_NS).min(MOST_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn row(patience: Patience, count: usize) -> Vec<Next> {
        let mut deaths = Deaths::default();
        (0..count).map(|_| deaths.died(0, &patience)).collect()
    }

    #[test]
    fn delays_double_until_it_is_left_dead() {
        use Next::*;
        let patience = Patience { limit: 5, delay_ns: 400_000_000 };
        assert_eq!(
            row(patience, 5),
            [Restart(0), Restart(400_000_000), Restart(800_000_000), Restart(MOST_NS), Dead(5)]
        );
        assert_eq!(row(Patience { limit: 1, delay_ns: 0 }, 1), [Dead(1)]);
        assert_eq!(row(Patience { limit: 0, delay_ns: 0 }, 100), [Restart(0); 100]);
    }

    #[test]
    fn who_lived_begins_from_the_start() {
        let (mut deaths, patience) = (Deaths::default(), Patience { limit: 3, delay_ns: 7 });
        assert_eq!(deaths.died(0, &patience), Next::Restart(0));
        assert_eq!(deaths.died(LIVED_NS - 1, &patience), Next::Restart(7));
        assert_eq!(deaths.died(LIVED_NS, &patience), Next::Restart(0));
        assert_eq!(deaths.died(0, &patience), Next::Restart(7));
        assert_eq!(deaths.died(0, &patience), Next::Dead(3));
    }

    proptest! {
        #[test]
        fn no_delay_is_longer_than_a_second_and_none_is_shorter_than_the_one_before(limit in 0u32..50, delay_ns: u64, count in 1usize..60) {
            let mut last = 0;
            for next in row(Patience { limit, delay_ns }, count) {
                match next {
                    Next::Restart(delay) => {
                        prop_assert!((last..=MOST_NS).contains(&delay));
                        last = delay;
                    }
                    Next::Dead(deaths) => prop_assert!(limit != 0 && deaths >= limit),
                }
            }
        }
    }
}
