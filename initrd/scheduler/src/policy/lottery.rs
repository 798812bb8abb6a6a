//! Lottery scheduling (Waldspurger and Weihl, OSDI 1994): for each quantum a ticket is drawn; weights are numbers of tickets.
//!
//! The worked example of `docs/how-to/add-a-policy.md`.

use super::{Choice, Policy, Share};
use alloc::{boxed::Box, vec, vec::Vec};

/// Its name in manifests.
pub const NAME: &str = "lottery";

/// Makes one.
#[must_use]
pub fn make(shares: &[Share], quantum: u64) -> Box<dyn Policy> {
    Box::new(Lottery::new(shares, quantum))
}

/// The policy's memory.
#[derive(Debug)]
pub struct Lottery {
    weights: Vec<u64>,
    awake: Vec<bool>,
    quantum: u64,
    /// Who won last, and what is left of its quantum.
    winner: Option<(usize, u64)>,
    /// The draw's state: xorshift, never 0. Not a secret, and the same in each run.
    random: u64,
}

impl Lottery {
    /// For these contexts, all blocked.
    #[must_use]
    pub fn new(shares: &[Share], quantum: u64) -> Lottery {
        Lottery {
            weights: shares.iter().map(|share| share.weight.max(1)).collect(),
            awake: vec![false; shares.len()],
            quantum: quantum.max(1),
            winner: None,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn tickets(&self) -> impl Iterator<Item = (usize, u64)> {
        let both = self.weights.iter().zip(&self.awake).enumerate();
        both.filter(|(_, (_, awake))| **awake).map(|(context, (weight, _))| (context, *weight))
    }

    fn draw(&mut self) -> Option<usize> {
        let all: u64 = self.tickets().map(|(_, weight)| weight).sum();
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut ticket = self.random.checked_rem(all)?;
        for (context, weight) in self.tickets() {
            if ticket < weight {
                return Some(context);
            }
            ticket -= weight;
        }
        None
    }
}

impl Policy for Lottery {
    fn wake(&mut self, context: usize, _now: u64) {
        if let Some(awake) = self.awake.get_mut(context) {
            *awake = true;
        }
    }

    fn block(&mut self, context: usize, _now: u64) {
        if let Some(awake) = self.awake.get_mut(context) {
            *awake = false;
        }
        self.winner = self.winner.filter(|winner| winner.0 != context);
    }

    fn ran(&mut self, context: usize, used: u64, _now: u64) {
        self.winner = self.winner.filter(|winner| winner.0 == context && winner.1 > used).map(|(winner, left)| (winner, left - used));
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        // News does not end a quantum: who makes much of it would draw more often than others.
        let (context, left) = match self.winner {
            Some(winner) => winner,
            None => (self.draw()?, self.quantum),
        };
        self.winner = Some((context, left));
        Some(Choice { context, until: now.saturating_add(left) })
    }
}
