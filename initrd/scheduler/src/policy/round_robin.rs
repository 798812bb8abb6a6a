//! Round robin: each context that can run gets a quantum in turn.

use super::{Choice, Policy};
use alloc::{collections::VecDeque, vec, vec::Vec};

/// Round robin. What blocks within its quantum goes to the end of the line when it wakes.
#[derive(Debug)]
pub struct RoundRobin {
    line: VecDeque<usize>,
    awake: Vec<bool>,
    quantum: u64,
    /// End of the quantum of the first in line; 0: it has not begun.
    end: u64,
}

impl RoundRobin {
    /// For `contexts` contexts, all blocked, with a quantum in ticks.
    #[must_use]
    pub fn new(contexts: usize, quantum: u64) -> RoundRobin {
        let line = VecDeque::with_capacity(contexts);
        RoundRobin {
            line,
            awake: vec![false; contexts],
            quantum: quantum.max(1),
            end: 0,
        }
    }
}

impl Policy for RoundRobin {
    fn wake(&mut self, context: usize, _now: u64) {
        if let Some(awake) = self.awake.get_mut(context)
            && !*awake
        {
            *awake = true;
            self.line.push_back(context);
        }
    }

    fn block(&mut self, context: usize, _now: u64) {
        if let Some(awake) = self.awake.get_mut(context)
            && *awake
        {
            *awake = false;
            if self.line.front() == Some(&context) {
                self.line.pop_front();
                self.end = 0;
            } else {
                self.line.retain(|other| *other != context);
            }
        }
    }

    fn ran(&mut self, context: usize, _from: u64, now: u64) {
        if now >= self.end && self.line.front() == Some(&context) {
            self.line.rotate_left(1);
            self.end = 0;
        }
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        let context = *self.line.front()?;
        if self.end == 0 {
            self.end = now.saturating_add(self.quantum);
        }
        Some(Choice {
            context,
            until: self.end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_turns_and_keeps_the_rest_of_a_quantum_over_news() {
        let mut policy = RoundRobin::new(3, 100);
        assert_eq!(policy.choose(0), None);
        policy.wake(0, 0);
        policy.wake(2, 0);
        policy.wake(0, 0);
        assert_eq!(
            policy.choose(10),
            Some(Choice {
                context: 0,
                until: 110
            })
        );
        policy.ran(0, 10, 50); // news came
        assert_eq!(
            policy.choose(50),
            Some(Choice {
                context: 0,
                until: 110
            })
        );
        policy.ran(0, 50, 110);
        assert_eq!(
            policy.choose(110),
            Some(Choice {
                context: 2,
                until: 210
            })
        );
        policy.block(2, 120);
        assert_eq!(
            policy.choose(120),
            Some(Choice {
                context: 0,
                until: 220
            })
        );
        policy.wake(9, 0); // no such context
        policy.block(0, 130);
        assert_eq!(policy.choose(130), None);
    }
}
