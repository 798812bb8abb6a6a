//! The loop's memory: which news was read, who is blocked until when, what is asked of the kernel next.
//!
//! One round is: read the sequence (the token), read the news up to it, choose, dispatch with the token. News before the
//! first read is in the log; news after it makes the token stale, and the kernel refuses it. So no wake-up is lost. The log names
//! threads, and a context wakes at news of the thread where its chain of calls was found blocked. A log that was overrun means that
//! anything may have happened: all contexts are tried. So is, at any news, a context of which nobody told where it is blocked. News of thread 0 says
//! that a thread became active or another plan came in force: a context that was missing may be there now, and a place may have another one.

use crate::{page::Page, policy::Policy};
use alloc::boxed::Box;
use alloc::{vec, vec::Vec};
use moira_abi::time::NEWS_LOG;
use moira_rt::sys::{Blocked, Dispatched, Error};

/// In the log: news of no thread that was found blocked.
const NOBODY: u32 = 0;

/// What to ask the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The context to dispatch, if one can run.
    pub context: Option<usize>,
    /// Until when (TSC, never 0).
    pub until: u64,
    /// The token.
    pub token: u64,
}

/// Where a context stands, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It may run.
    Awake,
    /// Blocked at the thread with that number (0: unknown), until a deadline (0: none).
    Asleep { at: u32, deadline: u64 },
    /// Its slot cannot be dispatched: not there yet, or dead. Tried again now and then, because a supervisor may put a new one there.
    Missing,
}

/// Slack of one CPU.
pub struct Slack<'a> {
    page: Page<'a>,
    policy: Box<dyn Policy>,
    standing: Vec<Standing>,
    /// Contexts from this number on may be others at any time, without a word.
    changing: usize,
    /// Indices of the contexts on the status page; fewer or none if nobody told.
    indices: Vec<u32>,
    /// News read so far.
    seen: u64,
    /// When missing contexts are tried again.
    retry_at: u64,
    retry_every: u64,
    /// Least time that is worth a dispatch.
    shortest: u64,
    asked: Option<usize>,
}

impl<'a> Slack<'a> {
    /// For `contexts` contexts. `indices`: theirs on the status page, in the same order (fewer or none if unknown). `retry`: ticks
    /// after which missing contexts are looked for. `shortest`: ticks that are worth a dispatch; nobody is given less, so that the ends of
    /// quanta, which pass while the kernel is asked, do not turn into a busy loop.
    pub fn new(
        page: Page<'a>,
        policy: Box<dyn Policy>,
        contexts: usize,
        indices: &[u32],
        retry: u64,
        shortest: u64,
    ) -> Slack<'a> {
        let standing = vec![Standing::Asleep { at: 0, deadline: 0 }; contexts];
        // All news before now counts as missed: the first round tries everybody.
        let seen = page.sequence().wrapping_sub(NEWS_LOG as u64 + 1);
        Slack {
            page,
            policy,
            standing,
            changing: contexts,
            indices: indices.to_vec(),
            seen,
            retry_at: 0,
            retry_every: retry.max(1),
            shortest: shortest.max(1),
            asked: None,
        }
    }

    /// Contexts from number `first` on come and go, and another one may come where one was: they are tried now and then even if they are thought
    /// to be asleep.
    #[must_use]
    pub fn changing_from(mut self, first: usize) -> Slack<'a> {
        self.changing = first;
        self
    }

    /// The token of this moment.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.page.sequence()
    }

    /// The next request, at time `now`.
    pub fn next(&mut self, now: u64) -> Request {
        let token = self.page.sequence();
        self.read_news(token, now);
        let timer = self.run_timers(now);
        let choice = self.policy.choose(now);
        let until = choice.map_or(timer, |choice| choice.until.min(timer)).max(now.saturating_add(self.shortest));
        self.asked = choice.map(|choice| choice.context);
        Request { context: choice.map(|choice| choice.context), until, token }
    }

    fn read_news(&mut self, token: u64, now: u64) {
        let behind = token.wrapping_sub(self.seen);
        if behind > NEWS_LOG as u64 {
            self.wake_where(|_| true, now);
            self.retry_at = now;
        } else {
            for number in 0..behind {
                let thread = self.page.news(self.seen.wrapping_add(number));
                self.wake_where(|at| at == thread || at == 0, now);
                if thread == NOBODY {
                    self.retry_at = now;
                }
            }
        }
        self.seen = token;
    }

    /// Wakes all that are blocked at a thread of which `here` says so.
    fn wake_where(&mut self, here: impl Fn(u32) -> bool, now: u64) {
        for context in 0..self.standing.len() {
            if matches!(self.standing.get(context), Some(Standing::Asleep { at, .. }) if here(*at)) {
                self.put(context, Standing::Awake, now);
            }
        }
    }

    /// Wakes whose deadline came; answers when to look again.
    fn run_timers(&mut self, now: u64) -> u64 {
        let retry = now >= self.retry_at;
        if retry {
            self.retry_at = now.saturating_add(self.retry_every);
        }
        let mut next = self.retry_at;
        for context in 0..self.standing.len() {
            match self.standing.get(context) {
                Some(Standing::Asleep { deadline, .. }) if *deadline != 0 && *deadline <= now => {
                    self.put(context, Standing::Awake, now);
                }
                Some(Standing::Missing) if retry => self.put(context, Standing::Awake, now),
                Some(Standing::Asleep { .. }) if retry && context >= self.changing => {
                    self.put(context, Standing::Awake, now);
                }
                Some(Standing::Asleep { deadline, .. }) if *deadline != 0 => next = next.min(*deadline),
                _ => {}
            }
        }
        next
    }

    fn put(&mut self, context: usize, standing: Standing, now: u64) {
        let Some(place) = self.standing.get_mut(context) else {
            return;
        };
        *place = standing;
        if standing == Standing::Awake { self.policy.wake(context, now) } else { self.policy.block(context, now) }
    }

    /// Goes on with another policy, which is told who is awake.
    pub fn replace_policy(&mut self, mut policy: Box<dyn Policy>, now: u64) {
        for (context, standing) in self.standing.iter().enumerate() {
            if *standing == Standing::Awake {
                policy.wake(context, now);
            }
        }
        self.policy = policy;
    }

    /// What the kernel said to the last request, at time `now`. `used`: ticks of slack that the context was charged. Answers false if the
    /// CPU itself refused: this task is not (or not any more) its scheduler.
    pub fn answered(&mut self, answer: Result<(Dispatched, u64), Error>, now: u64) -> bool {
        let asked = self.asked.take();
        if let (Some(context), Ok((_, used))) = (asked, &answer)
            && *used > 0
        {
            self.policy.ran(context, *used, now);
        }
        match (asked, answer) {
            (Some(context), Ok((Dispatched::Blocked { kind: Blocked::Gone, .. }, _)) | Err(_)) => {
                self.put(context, Standing::Missing, now);
            }
            (Some(context), Ok((Dispatched::Blocked { deadline, at, .. }, _))) => {
                // The kernel wrote the word before it answered, and writes it again only at another dispatch of this context.
                let told = || self.indices.get(context).map_or(0, |index| self.page.blocked_at(*index));
                let at = if at == 0 { told() } else { at };
                self.put(context, Standing::Asleep { at, deadline }, now);
            }
            (None, Err(_)) => return false,
            (_, Ok(_)) => {}
        }
        true
    }
}
