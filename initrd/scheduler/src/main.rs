//! The slack scheduler of one CPU.
//!
//! | given | what for |
//! | --- | --- |
//! | capability `cpu` | the CPU, with DISPATCH; this thread is registered as its scheduler |
//! | capabilities `contexts` | the contexts that live on slack, in consecutive slots |
//! | region `status` | the CPU's status page, read-only |
//!
//! Arguments: `indices=3,4,7`: indices of the contexts on the status page, in the order of the slots (needed only with kernels whose
//! `dispatch` does not tell where a context is blocked; without them every piece of news makes the scheduler try all);
//! `quantum_us=1000`.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use log::{error, info};
use moira_rt::{
    Env,
    sys::{self, Caps, Cpu, Deadline, SchedContext},
};
use moira_scheduler::{page::Page, policy::RoundRobin, slack::Slack};

moira_rt::entry!(main);

/// Missing contexts are tried again this often; also how long this task waits until it is registered.
const RETRY_NS: u64 = 100_000_000;

fn main(env: Env) {
    let Some(cpu) = env.capability::<Cpu>("cpu") else {
        error!("no capability `cpu`");
        return;
    };
    let status = env.shared("status");
    let Some(page) = status
        .as_ref()
        .and_then(|region| Page::new(region.words64()))
    else {
        error!("no region `status` of a page");
        return;
    };
    let contexts = env
        .capabilities("contexts")
        .unwrap_or(Caps::<SchedContext>::new(sys::Slot::NONE, 0));
    let indices = match env.argument("indices").map(parse_indices) {
        Some(None) => {
            error!("`indices=` is a list of numbers");
            return;
        }
        Some(Some(indices)) => indices,
        None => Vec::new(),
    };
    let quantum_us: u64 = env
        .argument("quantum_us")
        .and_then(|text| text.parse().ok())
        .unwrap_or(1000);
    let policy = RoundRobin::new(
        contexts.len() as usize,
        env.ticks(quantum_us.saturating_mul(1000)),
    );
    let retry = env.ticks(RETRY_NS);
    let mut slack = Slack::new(page, policy, contexts.len() as usize, &indices, retry);
    info!(
        "round robin over {} contexts, {quantum_us} us each",
        contexts.len()
    );
    run(cpu, contexts, &mut slack, retry);
}

fn parse_indices(text: &str) -> Option<Vec<u32>> {
    text.split(',')
        .map(|part| part.trim().parse().ok())
        .collect()
}

fn run(cpu: Cpu, contexts: Caps<SchedContext>, slack: &mut Slack<'_, RoundRobin>, retry: u64) {
    loop {
        let request = slack.next(sys::now());
        let context = request
            .context
            .and_then(|number| contexts.get(u32::try_from(number).ok()?));
        let answer = cpu.dispatch(context, Deadline(request.until), request.token);
        // Not registered: sleep, since a supervisor may be about to do it.
        if !slack.answered(answer, sys::now())
            && let Err(error) = sys::receive(Deadline::after(retry))
        {
            error!("cannot dispatch ({answer:?}) and cannot wait: {error:?}");
            return;
        }
    }
}
