//! Borrowed virtual time (Duda and Cheriton, SOSP 1999).
//!
//! Each context's virtual time moves on as it runs, the slower the larger its weight; the one with the least runs. A context that
//! wakes up may borrow from its own future: for as long as its *warp* lasts it counts as that much earlier, so it runs at once; what
//! it used then is missing later. The long-run shares are the weights'.

use super::{Choice, Policy, Share, real_time, virtual_time};
use alloc::{boxed::Box, vec::Vec};

/// Its name in manifests.
pub const NAME: &str = "bvt";

/// Makes one.
#[must_use]
pub fn make(shares: &[Share], quantum: u64) -> Box<dyn Policy> {
    Box::new(Bvt::new(shares, quantum))
}

#[derive(Clone, Copy, Debug)]
struct Client {
    share: Share,
    awake: bool,
    /// Actual virtual time.
    actual: u128,
    /// Ticks of warp that are left since it woke up: who runs longer than that is not what warp is for.
    warp_left: u64,
}

impl Client {
    fn effective(&self) -> u128 {
        let warp = if self.warp_left > 0 { virtual_time(self.share.warp, 1) } else { 0 };
        self.actual.saturating_sub(warp)
    }
}

/// The policy's memory.
#[derive(Debug)]
pub struct Bvt {
    clients: Vec<Client>,
    /// The context switch allowance: how far ahead of the others the running one may get.
    allowance: u64,
    /// Who ran last.
    running: Option<usize>,
}

impl Bvt {
    /// For these contexts, all blocked; `allowance`: ticks that the running one may get ahead before it is switched away from.
    #[must_use]
    pub fn new(shares: &[Share], allowance: u64) -> Bvt {
        // A start above the largest warp, so that the effective time is never cut off at zero.
        let start = shares.iter().map(|share| virtual_time(share.warp, 1)).max().unwrap_or(0);
        let client = |share: &Share| Client { share: *share, awake: false, actual: start, warp_left: 0 };
        Bvt { clients: shares.iter().map(client).collect(), allowance: allowance.max(1), running: None }
    }

    fn awake(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.clients.iter().enumerate().filter(|(_, client)| client.awake)
    }
}

impl Policy for Bvt {
    fn wake(&mut self, context: usize, _now: u64) {
        // Who slept starts with those who did not: sleeping saves nothing up.
        let least = self.awake().map(|(_, client)| client.actual).min();
        if let Some(client) = self.clients.get_mut(context)
            && !client.awake
        {
            client.awake = true;
            client.actual = client.actual.max(least.unwrap_or(client.actual));
            client.warp_left = client.share.warp;
        }
    }

    fn block(&mut self, context: usize, _now: u64) {
        if let Some(client) = self.clients.get_mut(context) {
            client.awake = false;
        }
        if self.running == Some(context) {
            self.running = None;
        }
    }

    fn ran(&mut self, context: usize, used: u64, _now: u64) {
        if let Some(client) = self.clients.get_mut(context) {
            client.actual += virtual_time(used, client.share.weight);
            client.warp_left = client.warp_left.saturating_sub(used);
        }
    }

    fn choose(&mut self, now: u64) -> Option<Choice> {
        let (first, least) = self.awake().map(|(context, client)| (context, client.effective())).min_by_key(|entry| entry.1)?;
        // The one that ran goes on until it is ahead by the allowance.
        let ahead = |client: &Client| client.effective() < least + virtual_time(self.allowance, client.share.weight);
        let goes_on = self.running.filter(|running| {
            let warped = self.clients.get(first).is_some_and(|client| client.warp_left > 0);
            !warped && self.clients.get(*running).is_some_and(ahead)
        });
        let context = goes_on.unwrap_or(first);
        self.running = Some(context);
        let client = self.clients.get(context)?;
        let rival = self.awake().filter(|(other, _)| *other != context).map(|(_, client)| client.effective()).min();
        let lead = rival.map_or(0, |rival| rival.saturating_sub(client.effective()));
        let mut length = match rival {
            None => self.allowance.saturating_mul(8),
            Some(_) => real_time(lead, client.share.weight).saturating_add(self.allowance),
        };
        if client.warp_left > 0 {
            length = length.min(client.warp_left);
        }
        Some(Choice { context, until: now.saturating_add(length.max(1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wakes_with_warp_runs_at_once_and_pays_later() {
        let share = |weight, warp| Share { weight, slice: 0, period: 0, warp };
        let mut policy = Bvt::new(&[share(1, 0), share(1, 500)], 100);
        policy.wake(0, 0);
        let first = policy.choose(0).unwrap();
        assert_eq!(first.context, 0);
        policy.ran(0, 50, 50);
        policy.wake(1, 50);
        assert_eq!(policy.choose(50).unwrap().context, 1);
        policy.ran(1, 500, 550); // all its warp
        let debt = policy.choose(550).unwrap();
        assert_eq!(debt.context, 0);
        assert!(debt.until >= 550 + 450);
    }
}
