//! Atropos (Nemesis): slices by deadline, then extra time.
//!
//! Each context has a slice in each period. Among those with some of their slice left, the one whose period ends first runs. When all
//! who can run have had their slices, the rest is extra time, divided by weight in the same way: each has a virtual deadline,
//! which moves on as it uses extra time, and the earliest one is served. Extra time is not taken from later slices.

use super::{Choice, Policy, Share, virtual_time};
use alloc::{boxed::Box, vec::Vec};

/// Its name in manifests.
pub const NAME: &str = "atropos";

/// Makes one.
#[must_use]
pub fn make(shares: &[Share], quantum: u64) -> Box<dyn Policy> {
    Box::new(Atropos::new(shares, quantum))
}

#[derive(Clone, Copy, Debug)]
struct Client {
    share: Share,
    awake: bool,
    /// End of the current period.
    deadline: u64,
    /// What is left of its slice.
    left: u64,
    /// Virtual deadline of its extra time.
    turn: u128,
}

impl Client {
    /// Begins a period if one is due. After a pause, the new one begins now.
    fn renew(&mut self, now: u64) {
        if self.share.slice == 0 || self.share.period == 0 || now < self.deadline {
            return;
        }
        let next = self.deadline.saturating_add(self.share.period);
        self.deadline = if next > now { next } else { now.saturating_add(self.share.period) };
        self.left = self.share.slice;
    }
}

/// The policy's memory.
#[derive(Debug)]
pub struct Atropos {
    clients: Vec<Client>,
    quantum: u64,
    /// Whether the last choice was for extra time.
    extra: bool,
}

impl Atropos {
    /// For these contexts, all blocked; extra time is given `quantum` ticks at a time.
    #[must_use]
    pub fn new(shares: &[Share], quantum: u64) -> Atropos {
        let client = |share: &Share| Client { share: *share, awake: false, deadline: 0, left: 0, turn: 0 };
        Atropos { clients: shares.iter().map(client).collect(), quantum: quantum.max(1), extra: false }
    }

    fn awake(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.clients.iter().enumerate().filter(|(_, client)| client.awake)
    }
}

impl Policy for Atropos {
    fn wake(&mut self, context: usize, now: u64) {
        // Who slept gets no extra time for it.
        let earliest = self.awake().map(|(_, client)| client.turn).min();
        if let Some(client) = self.clients.get_mut(context)
            && !client.awake
        {
            client.awake = true;
            client.turn = client.turn.max(earliest.unwrap_or(client.turn));
            client.renew(now);
        }
    }

    fn block(&mut self, context: usize, _now: u64) {
        if let Some(client) = self.clients.get_mut(context) {
            client.awake = false;
        }
    }

    fn ran(&mut self, context: usize, used: u64, _now: u64) {
        let Some(client) = self.clients.get_mut(context) else { return };
        if self.extra {
            client.turn += virtual_time(used, client.share.weight);
        } else {
            client.left = client.left.saturating_sub(used);
        }
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        for client in self.clients.iter_mut().filter(|client| client.awake) {
            client.renew(now);
        }
        // When the next slice comes, whose deadline may be earlier.
        let renewal = self.awake().filter(|(_, client)| client.share.slice > 0 && client.share.period > 0).map(|(_, client)| client.deadline).min();
        let renewal = renewal.unwrap_or(u64::MAX);
        let promised = self.awake().filter(|(_, client)| client.left > 0).min_by_key(|(_, client)| client.deadline);
        let promised = promised.map(|(context, client)| (context, client.left));
        self.extra = promised.is_none();
        let (context, length) = match promised {
            Some(promised) => promised,
            None => (self.awake().min_by_key(|(_, client)| client.turn)?.0, self.quantum),
        };
        Some(Choice { context, until: now.saturating_add(length).min(renewal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_come_by_deadline_and_extra_time_by_weight() {
        let promised = |slice, period, weight| Share { weight, slice, period, warp: 0 };
        let mut policy = Atropos::new(&[promised(20, 100, 1), promised(10, 50, 2)], 10);
        policy.wake(0, 0);
        policy.wake(1, 0);
        assert_eq!(policy.choose(0), Some(Choice { context: 1, until: 10 }));
        policy.ran(1, 10, 10);
        assert_eq!(policy.choose(10), Some(Choice { context: 0, until: 30 }));
        policy.ran(0, 20, 30);
        // Extra time until the period of 1 ends.
        let first = policy.choose(30).unwrap();
        assert_eq!(first.until, 40);
        policy.ran(first.context, 10, 40);
        let second = policy.choose(40).unwrap();
        assert_ne!(first.context, second.context);
        policy.ran(second.context, 10, 50);
        assert_eq!(policy.choose(50), Some(Choice { context: 1, until: 60 }));
        policy.block(1, 50);
        policy.block(0, 50);
        assert_eq!(policy.choose(50), None);
    }
}
