//! The slack scheduler of one CPU.
//!
//! | given | what for |
//! | --- | --- |
//! | capability `cpu` | the CPU, with DISPATCH; this thread is registered as its scheduler |
//! | capabilities `contexts` | the contexts that live on slack, in consecutive slots |
//! | slots `newcomers`, optional | empty ones: the planner puts contexts there that came with a contract, and takes them away again |
//! | region `status` | the CPU's status page, read-only |
//! | region `policy`, optional | word N, the CPU's number: number of the policy that is wanted (from 1, in the order of `POLICIES`), 0: no wish; word 64 + N: this task says there which one is in force, if it may write |
//!
//! Arguments: `cpu=0` (the CPU's number), `policy=round-robin` (or another name of `POLICIES`), `quantum_us=1000`, and lists in the order of the contexts: `weights=`,
//! `slices_us=`, `periods_us=`, `warps_us=` (`docs/how-to/add-a-policy.md` says which policy looks at which). `policy_again=`: the policy after a restart. `fail=hang`,
//! `storm`, `crash` or `hostile`, `after_ms=N`: for experiments, the scheduler goes bad after so long.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use log::{error, info};
use moira_rt::{
    Env,
    mapped::Shared,
    proto::planner::NEWCOMERS,
    sys::{self, Capability, Caps, Cpu, Deadline, SchedContext},
};
use moira_scheduler::{
    page::Page,
    policy::{self, POLICIES, Share},
    slack::Slack,
};

moira_rt::entry!(main);

/// Missing contexts, and those that may be others by now, are tried again this often; also how long this task waits until it is registered.
const RETRY_NS: u64 = 100_000_000;

/// First word of region `policy` that tells which policy is in force.
const IN_FORCE: usize = 64;

/// Least time that a context is given.
const SHORTEST_NS: u64 = 5_000;

fn main(env: Env) {
    let Some(cpu) = env.capability::<Cpu>("cpu") else {
        error!("no capability `cpu`");
        return;
    };
    let status = env.shared("status");
    let Some(page) = status.as_ref().and_then(|region| Page::new(region.words64())) else {
        error!("no region `status` of a page");
        return;
    };
    let contexts = env.capabilities("contexts").unwrap_or(Caps::<SchedContext>::new(sys::Slot::NONE, 0));
    let quantum_us = env.number("quantum_us", 1000);
    let newcomers = env.capabilities(NEWCOMERS).unwrap_or(Caps::<SchedContext>::new(sys::Slot::NONE, 0));
    let count = (contexts.len() + newcomers.len()) as usize;
    let Some(shares) = policy::shares(count, |key| env.argument(key), |ns| env.ticks(ns)) else {
        error!("weights, slices, periods and warps are lists of numbers");
        return;
    };
    let again = env.argument("policy_again").filter(|_| env.info.restarts > 0);
    let name = again.or(env.argument("policy")).unwrap_or(policy::round_robin::NAME);
    let quantum = env.ticks(quantum_us.saturating_mul(1000));
    let Some(chosen) = policy::by_name(name, &shares, quantum) else {
        let all: Vec<&str> = POLICIES.iter().map(|policy| policy.0).collect();
        error!("no policy is called `{name}`; there are: {}", all.join(", "));
        return;
    };
    info!("{name} over {} contexts, {quantum_us} us at a time", contexts.len());
    if env.argument("fail").is_some() {
        info!("data: {{\"kind\":\"policy\",\"name\":\"{name}\",\"restarts\":{}}}", env.info.restarts);
    }
    let retry = env.ticks(RETRY_NS);
    let fail = env.argument("fail").filter(|_| env.info.restarts == 0);
    let mut scheduler = Scheduler {
        cpu,
        own: env.capability(&alloc::format!("{}-context", env.info.name)),
        contexts,
        newcomers,
        slack: Slack::new(page, chosen, count, &[], retry, env.ticks(SHORTEST_NS))
            .changing_from(contexts.len() as usize),
        retry,
        wishes: env.shared("policy"),
        number: env.number("cpu", 0) as usize % IN_FORCE,
        wanted: 0,
        shares,
        quantum,
        fail: fail.and_then(Failure::named),
        fail_at: fail.map_or(u64::MAX, |_| {
            sys::now().saturating_add(env.ticks(env.number("after_ms", 0).saturating_mul(1_000_000)))
        }),
    };
    scheduler.tell(POLICIES.iter().position(|policy| policy.0 == name));
    scheduler.run();
}

/// Ways to go bad, for experiments: the guarantees do not stand on this task.
#[derive(Clone, Copy)]
enum Failure {
    /// Never asks the kernel for anything again.
    Hang,
    /// Asks for nonsense as fast as it can: stale tokens, slots that are not there.
    Storm,
    /// Faults.
    Crash,
    /// Tries whatever it may not: itself, what is no context, plans, another scheduler; and gives slack away for ever.
    Hostile,
}

impl Failure {
    fn named(name: &str) -> Option<Failure> {
        match name {
            "hang" => Some(Failure::Hang),
            "storm" => Some(Failure::Storm),
            "crash" => Some(Failure::Crash),
            "hostile" => Some(Failure::Hostile),
            _ => None,
        }
    }
}

struct Scheduler<'a> {
    cpu: Cpu,
    /// Its own context, where the manifest lets it name that: it may not dispatch itself.
    own: Option<SchedContext>,
    contexts: Caps<SchedContext>,
    /// Numbered behind those.
    newcomers: Caps<SchedContext>,
    slack: Slack<'a>,
    retry: u64,
    /// Where somebody says which policy is wanted.
    wishes: Option<Shared<'static>>,
    /// The CPU's number.
    number: usize,
    wanted: u64,
    shares: Vec<Share>,
    quantum: u64,
    fail: Option<Failure>,
    fail_at: u64,
}

impl Scheduler<'_> {
    fn run(&mut self) {
        loop {
            let now = sys::now();
            if now >= self.fail_at {
                self.go_bad();
            }
            self.obey(now);
            let request = self.slack.next(now);
            let context = request.context.and_then(|number| self.context(u32::try_from(number).ok()?));
            let answer = self.cpu.dispatch(context, Deadline(request.until), request.token);
            // Not registered: sleep, since a supervisor may be about to do it.
            if !self.slack.answered(answer, sys::now())
                && let Err(error) = sys::receive(Deadline::after(self.retry))
            {
                error!("cannot dispatch ({answer:?}) and cannot wait: {error:?}");
                return;
            }
        }
    }

    /// The context with this number: the manifest's first, then those of the planner's contracts.
    fn context(&self, number: u32) -> Option<SchedContext> {
        self.contexts.get(number).or_else(|| self.newcomers.get(number.checked_sub(self.contexts.len())?))
    }

    /// Takes another policy if one is wanted.
    fn obey(&mut self, now: u64) {
        let Some(wanted) = self.wishes.and_then(|region| region.words64().get(self.number)) else {
            return;
        };
        let wanted = wanted.load(Ordering::Relaxed);
        if wanted == self.wanted {
            return;
        }
        self.wanted = wanted;
        let index = usize::try_from(wanted).unwrap_or(0).wrapping_sub(1);
        if let Some((name, make)) = POLICIES.get(index) {
            self.slack.replace_policy(make(&self.shares, self.quantum), now);
            info!("policy is now {name}");
            self.tell(Some(index));
        }
    }

    /// Says which policy is in force.
    fn tell(&self, index: Option<usize>) {
        let word = self.wishes.filter(Shared::writable).and_then(|region| region.words64().get(IN_FORCE + self.number));
        if let (Some(word), Some(index)) = (word, index) {
            word.store(index as u64 + 1, Ordering::Relaxed);
        }
    }

    fn go_bad(&self) {
        match self.fail {
            None => {}
            Some(Failure::Hang) => loop {
                core::hint::spin_loop();
            },
            Some(Failure::Storm) => loop {
                // Whatever it answers.
                let _ = self.cpu.dispatch(self.contexts.get(0), Deadline(sys::now()), u64::MAX);
                let _ = self.cpu.dispatch(Some(SchedContext::at(sys::Slot(u32::MAX))), Deadline::NEVER, 0);
            },
            Some(Failure::Crash) => moira_rt::end::write_to_null(),
            Some(Failure::Hostile) => loop {
                self.try_everything();
            },
        }
    }

    /// All that the kernel must refuse, and slack for nobody in between.
    fn try_everything(&self) {
        let (cpu, token) = (self.cpu, self.slack.token());
        let slots = [0, 1, 2, 3, 4, 5, 8, 16, 4_000, u32::MAX].map(|slot| SchedContext::at(sys::Slot(slot)));
        for context in self.own.into_iter().chain(slots) {
            for (until, token) in
                [(Deadline::NEVER, token), (Deadline(1), token), (Deadline::after(1_000_000), token + 1)]
            {
                let answer = cpu.dispatch(Some(context), until, token);
                if matches!(answer, Ok((sys::Dispatched::Until | sys::Dispatched::Blocked { .. }, _))) {
                    error!("dispatched what it may not: {context:?} {answer:?}");
                }
            }
            if cpu.install_plan(Some(sys::Plan::at(context.slot()))).is_ok() {
                error!("installed a plan");
            }
            if cpu.set_scheduler(context, sys::Frame::at(sys::Slot(4))).is_ok() {
                error!("made another one the scheduler");
            }
        }
        if cpu.install_plan(None).is_ok() {
            error!("took the plan away");
        }
        let _ = cpu.dispatch(None, Deadline(sys::now() + 50_000), token);
    }
}
