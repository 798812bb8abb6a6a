//! Round robin: each context that can run gets a quantum in turn.

use super::{Choice, Policy, Share};
use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};

/// Its name in manifests.
pub const NAME: &str = "round-robin";

/// Makes one; all shares are the same to it.
#[must_use]
pub fn make(shares: &[Share], quantum: u64) -> Box<dyn Policy> {
    Box::new(RoundRobin::new(shares.len(), quantum))
}

/// Round robin. What blocks within its quantum goes to the end of the line when it wakes.
#[derive(Debug)]
pub struct RoundRobin {
    line: VecDeque<usize>,
    awake: Vec<bool>,
    quantum: u64,
    /// What is left of the quantum of the first in line.
    left: u64,
}

impl RoundRobin {
    /// For `contexts` contexts, all blocked, with a quantum in ticks.
    #[must_use]
    pub fn new(contexts: usize, quantum: u64) -> RoundRobin {
        let line = VecDeque::with_capacity(contexts);
        let quantum = quantum.max(1);
        RoundRobin { line, awake: vec![false; contexts], quantum, left: quantum }
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
                self.left = self.quantum;
            } else {
                self.line.retain(|other| *other != context);
            }
        }
    }

    fn ran(&mut self, context: usize, used: u64, _now: u64) {
        if self.line.front() != Some(&context) {
            return;
        }
        self.left = self.left.saturating_sub(used);
        if self.left == 0 {
            self.line.rotate_left(1);
            self.left = self.quantum;
        }
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        let context = *self.line.front()?;
        Some(Choice { context, until: now.saturating_add(self.left) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_turns_and_keeps_the_rest_of_a_quantum_over_news() {
        let choice = |context, until| Some(Choice { context, until });
        let mut policy = RoundRobin::new(3, 100);
        assert_eq!(policy.choose(0), None);
        policy.wake(0, 0);
        policy.wake(2, 0);
        policy.wake(0, 0);
        assert_eq!(policy.choose(10), choice(0, 110));
        policy.ran(0, 40, 50); // news came
        assert_eq!(policy.choose(50), choice(0, 110));
        policy.ran(0, 20, 110); // a window took 40
        assert_eq!(policy.choose(110), choice(0, 150));
        policy.ran(0, 40, 150);
        assert_eq!(policy.choose(150), choice(2, 250));
        policy.ran(2, 10, 160);
        policy.block(2, 160);
        assert_eq!(policy.choose(160), choice(0, 260));
        policy.wake(9, 0); // no such context
        policy.block(0, 170);
        assert_eq!(policy.choose(170), None);
    }
}
