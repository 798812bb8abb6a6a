//! The scheduler against a model of the kernel's side: tokens, news, deadlines, contexts that come and go at any moment.

use crate::{
    page::Page,
    policy::{POLICIES, RoundRobin, Share, by_name},
    slack::Slack,
};
use core::sync::atomic::{AtomicU64, Ordering};
use moira_abi::time::blocked;
use moira_rt::sys::{Blocked, Dispatched, Error};
use proptest::prelude::*;
use std::{boxed::Box, vec, vec::Vec};

/// A context as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Runnable,
    /// Blocked until a deadline (0: none); watched once a walk ended there.
    Waiting(u64, bool),
    Missing,
}

struct Kernel {
    page: &'static [AtomicU64],
    states: Vec<State>,
    ran: Vec<u64>,
    now: u64,
    /// Whether `dispatch` answers where a context is blocked.
    tells: bool,
}

impl Kernel {
    fn new(contexts: usize, tells: bool) -> Kernel {
        Kernel {
            page: Vec::leak((0..512).map(|_| AtomicU64::new(0)).collect()),
            states: vec![State::Runnable; contexts],
            ran: vec![0; contexts],
            now: 1000,
            tells,
        }
    }

    fn sequence(&self) -> u64 {
        self.page[0].load(Ordering::Relaxed)
    }

    /// Status-page index of a context: any injective rule.
    fn index(context: usize) -> u32 {
        context as u32 * 3 + 2
    }

    /// Number of the thread at which a context blocks. Contexts 3 and 4 block at one server.
    fn thread(context: usize) -> u32 {
        0x8000 + context.min(3) as u32
    }

    /// News about a context that a walk found blocked.
    fn news(&self, context: usize) {
        self.publish(Self::thread(context));
    }

    fn publish(&self, thread: u32) {
        let sequence = self.sequence();
        let entry = (sequence % 256) as usize;
        let word = &self.page[2 + entry / 2];
        let shift = entry % 2 * 32;
        let value = word.load(Ordering::Relaxed) & !(0xffff_ffff << shift) | u64::from(thread) << shift;
        word.store(value, Ordering::Relaxed);
        self.page[0].store(sequence + 1, Ordering::Release);
    }

    /// A walk found the context blocked: watches it and says where on the page.
    fn watch(&mut self, context: usize, deadline: u64) -> Dispatched {
        self.states[context] = State::Waiting(deadline, true);
        let word = u64::from(blocked::WAITING) | u64::from(Self::thread(context)) << 32;
        self.page[2 + 128 + Self::index(context) as usize * 4].store(word, Ordering::Relaxed);
        let at = if self.tells { Self::thread(context) } else { 0 };
        Dispatched::Blocked { kind: Blocked::Waiting, deadline, at }
    }

    fn signal(&mut self, context: usize) {
        if let State::Waiting(_, watched) = self.states[context] {
            self.states[context] = State::Runnable;
            if watched {
                self.news(context);
            }
        }
    }

    /// The context dies, and its slot is empty.
    fn remove(&mut self, context: usize) {
        if let State::Waiting(_, true) = self.states[context] {
            self.news(context);
        }
        self.states[context] = State::Missing;
    }

    /// Another context comes to the slot; nobody says so.
    fn restore(&mut self, context: usize) {
        if self.states[context] == State::Missing {
            self.states[context] = State::Runnable;
        }
    }

    /// `dispatch`; `news_after`: what is signalled after so many ticks of running.
    fn dispatch(
        &mut self,
        context: Option<usize>,
        until: u64,
        token: u64,
        signal: Option<(u64, usize)>,
    ) -> Result<(Dispatched, u64), Error> {
        if token != self.sequence() {
            return Ok((Dispatched::Stale, 0));
        }
        if let Some(context) = context {
            if let State::Waiting(deadline, _) = self.states[context] {
                if deadline == 0 || deadline > self.now {
                    return Ok((self.watch(context, deadline), 0));
                }
                self.states[context] = State::Runnable;
            }
            if self.states[context] == State::Missing {
                return Err(Error::Empty);
            }
        }
        let start = self.now;
        let end = match signal {
            Some((after, whom)) if start + after < until => {
                self.now = start + after;
                self.signal(whom);
                self.now
            }
            _ => until.max(start),
        };
        self.now = end.max(start + 1);
        let used = if context.is_some() { self.now - start } else { 0 };
        if let Some(context) = context {
            self.ran[context] += used;
        }
        if token != self.sequence() {
            return Ok((Dispatched::News, used));
        }
        if self.now >= until {
            return Ok((Dispatched::Until, used));
        }
        // The signal was no news: the context blocks for want of something else to do.
        match context {
            Some(context) => Ok((self.watch(context, 0), used)),
            None => Ok((Dispatched::Until, 0)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// One round; before the dispatch (after the token was read) a signal, and one while it runs.
    Round {
        between: Option<usize>,
        during: Option<(u64, usize)>,
    },
    Block(usize, u64),
    Remove(usize),
    Restore(usize),
    /// A burst that overruns the log.
    Burst(usize),
}

fn steps(contexts: usize) -> impl Strategy<Value = Vec<Step>> {
    let one = 0..contexts;
    let step = prop_oneof![
        4 => (prop::option::of(one.clone()), prop::option::of((1u64..60, one.clone())))
            .prop_map(|(between, during)| Step::Round { between, during }),
        3 => (one.clone(), prop_oneof![Just(0), 1u64..500]).prop_map(|(context, ticks)| Step::Block(context, ticks)),
        1 => one.clone().prop_map(Step::Remove),
        1 => one.clone().prop_map(Step::Restore),
        1 => one.prop_map(Step::Burst),
    ];
    prop::collection::vec(step, 0..60)
}

const CONTEXTS: usize = 5;
const RETRY: u64 = 1000;

proptest! {
    /// No wake-up is lost: whatever happened before, whoever can run gets its turn within a few quanta. With and without the
    /// indices, with a part of them, and with a kernel that tells itself.
    #[test]
    fn whoever_can_run_does(steps in steps(CONTEXTS), told in 0usize..=CONTEXTS, tells: bool, policy in 0..POLICIES.len()) {
        let mut kernel = Kernel::new(CONTEXTS, tells);
        let indices: Vec<u32> = (0..told).map(Kernel::index).collect();
        let mut slack = Slack::new(Page::new(kernel.page).unwrap(), (POLICIES[policy].1)(&[Share::EQUAL; CONTEXTS], 100), CONTEXTS, &indices, RETRY, 3);
        for step in steps {
            kernel.step(step, &mut slack);
        }
        let runnable: Vec<usize> = (0..CONTEXTS).filter(|context| kernel.states[*context] == State::Runnable).collect();
        let before = kernel.ran.clone();
        // A policy may owe one context what another had before: all of the past once more.
        let owed = kernel.ran.iter().sum::<u64>();
        // A draw may take a while.
        let end = kernel.now + RETRY + 100 * 40 * (CONTEXTS as u64 + 2) + 500 + owed;
        let mut rounds = 0;
        while kernel.now < end {
            kernel.step(Step::Round { between: None, during: None }, &mut slack);
            rounds += 1;
            prop_assert!(rounds < 1000, "spins");
        }
        for context in runnable {
            prop_assert!(kernel.ran[context] > before[context], "{context} never ran");
        }
    }
}

impl Kernel {
    fn step(&mut self, step: Step, slack: &mut Slack<'_>) {
        match step {
            Step::Round { between, during } => {
                let request = slack.next(self.now);
                assert!(request.until > 0);
                if let Some(context) = between {
                    self.signal(context);
                }
                let answer = self.dispatch(request.context, request.until, request.token, during);
                self.now += 1;
                assert!(slack.answered(answer, self.now));
            }
            Step::Block(context, ticks) => {
                if self.states[context] == State::Runnable {
                    let deadline = if ticks == 0 { 0 } else { self.now + ticks };
                    self.states[context] = State::Waiting(deadline, false);
                }
            }
            Step::Remove(context) => self.remove(context),
            Step::Restore(context) => self.restore(context),
            Step::Burst(context) => {
                for _ in 0..300 {
                    // Blocked and watched again in between, by another's chain.
                    if self.states[context] != State::Missing {
                        self.states[context] = State::Waiting(0, true);
                        self.signal(context);
                    }
                }
            }
        }
    }
}

/// A place whose context fell asleep for good gets another one, without a word: it runs, if the place is known to change.
#[test]
fn who_comes_in_anothers_place_runs() {
    for changing in [true, false] {
        let mut kernel = Kernel::new(2, true);
        let slack = Slack::new(Page::new(kernel.page).unwrap(), Box::new(RoundRobin::new(2, 100)), 2, &[], RETRY, 3);
        let mut slack = slack.changing_from(if changing { 1 } else { 2 });
        let round = Step::Round { between: None, during: None };
        kernel.step(Step::Block(1, 0), &mut slack);
        (0..10).for_each(|_| kernel.step(round.clone(), &mut slack));
        kernel.states[1] = State::Runnable;
        let end = kernel.now + 2 * RETRY;
        while kernel.now < end {
            kernel.step(round.clone(), &mut slack);
        }
        assert_eq!(kernel.ran[1] > 0, changing);
        // Those that are thought to be awake are not asked for more often than a quantum says.
        assert!(kernel.ran[0] > RETRY / 2);
    }
}

/// One that was missing is tried at once when the kernel says that a thread became active.
#[test]
fn who_comes_back_is_tried_at_news_of_nobody() {
    for told in [true, false] {
        let mut kernel = Kernel::new(2, true);
        let page = Page::new(kernel.page).unwrap();
        let mut slack = Slack::new(page, Box::new(RoundRobin::new(2, 100)), 2, &[], RETRY, 3);
        let round = Step::Round { between: None, during: None };
        kernel.step(Step::Remove(1), &mut slack);
        (0..3).for_each(|_| kernel.step(round.clone(), &mut slack));
        kernel.restore(1);
        if told {
            kernel.publish(0);
        }
        (0..4).for_each(|_| kernel.step(round.clone(), &mut slack));
        assert_eq!(kernel.ran[1] > 0, told);
    }
}

#[test]
fn a_refused_cpu_is_told_apart_from_a_missing_context() {
    let words: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
    let mut slack = Slack::new(Page::new(&words).unwrap(), Box::new(RoundRobin::new(1, 100)), 1, &[], RETRY, 3);
    assert_eq!(slack.next(5).context, Some(0));
    assert!(slack.answered(Err(Error::Empty), 6));
    assert_eq!(slack.next(7).context, None);
    assert!(!slack.answered(Err(Error::NoRight), 8));
    assert!(Page::new(&words[..300]).is_none());
}

mod fairness;
