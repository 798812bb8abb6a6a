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

/// Round robin. What blocks within its turn has the rest of it at once when it wakes: who answers a message need not wait for whoever
/// sent it. A turn is one quantum however often it is broken off, so nobody waits longer than a quantum of each of the others.
#[derive(Debug)]
pub struct RoundRobin {
    line: VecDeque<usize>,
    contexts: Vec<Context>,
    quantum: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Context {
    awake: bool,
    /// What is left of its turn; 0: it has not begun.
    left: u64,
}

impl RoundRobin {
    /// For `contexts` contexts, all blocked, with a quantum in ticks.
    #[must_use]
    pub fn new(contexts: usize, quantum: u64) -> RoundRobin {
        let line = VecDeque::with_capacity(contexts);
        RoundRobin { line, contexts: vec![Context::default(); contexts], quantum: quantum.max(1) }
    }
}

impl Policy for RoundRobin {
    fn wake(&mut self, context: usize, _now: u64) {
        if let Some(known) = self.contexts.get_mut(context)
            && !known.awake
        {
            known.awake = true;
            if known.left > 0 { self.line.push_front(context) } else { self.line.push_back(context) }
        }
    }

    fn block(&mut self, context: usize, _now: u64) {
        if let Some(known) = self.contexts.get_mut(context)
            && known.awake
        {
            known.awake = false;
            if self.line.front() == Some(&context) {
                self.line.pop_front();
            } else {
                self.line.retain(|other| *other != context);
            }
        }
    }

    fn ran(&mut self, context: usize, used: u64, _now: u64) {
        if self.line.front() != Some(&context) {
            return;
        }
        if let Some(known) = self.contexts.get_mut(context) {
            known.left = known.left.saturating_sub(used);
            if known.left == 0 {
                self.line.rotate_left(1);
            }
        }
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        let context = *self.line.front()?;
        let known = self.contexts.get_mut(context)?;
        if known.left == 0 {
            known.left = self.quantum;
        }
        Some(Choice { context, until: now.saturating_add(known.left) })
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

    #[test]
    fn who_wakes_within_its_turn_goes_on_at_once_and_no_turn_is_longer_than_a_quantum() {
        let choice = |context, until| Some(Choice { context, until });
        let mut policy = RoundRobin::new(2, 100);
        policy.wake(0, 0);
        policy.choose(0);
        policy.ran(0, 30, 30);
        policy.block(0, 30);
        policy.wake(1, 30);
        assert_eq!(policy.choose(30), choice(1, 130));
        policy.ran(1, 20, 50);
        policy.wake(0, 50);
        assert_eq!(policy.choose(50), choice(0, 120), "the rest of its turn");
        policy.ran(0, 40, 90);
        policy.block(0, 90);
        policy.wake(0, 95);
        assert_eq!(policy.choose(95), choice(0, 125));
        policy.ran(0, 30, 125);
        assert_eq!(policy.choose(125), choice(1, 205), "the turn that was broken off");
        policy.block(0, 130);
        policy.wake(0, 131);
        assert_eq!(policy.choose(131), choice(1, 211), "a new turn has to wait");
    }
}
