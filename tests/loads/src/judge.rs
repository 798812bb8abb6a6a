//! Reads the accounts. It sleeps in between and has a window of its own, so it is on nobody's time.

use crate::{moment, stretch, time};
use alloc::{format, string::String, vec::Vec};
use moira_rt::{
    Env,
    sys::{self, Consumed, Cpu, MessageBuffer, SchedContext, Thread, abi::fault::Registers, abi::time::CpuLedger},
};

struct Watched {
    name: String,
    context: SchedContext,
    samples: Vec<Consumed>,
}

/// Whose accounts are read.
fn watched(env: &Env) -> Option<Vec<Watched>> {
    let mut watched: Vec<Watched> = Vec::new();
    for name in env.argument("watch").unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
        let Some(context) = env.capability::<SchedContext>(&format!("{name}-context")) else {
            log::error!("judge: no context of {name}");
            return None;
        };
        watched.push(Watched { name: name.into(), context, samples: Vec::with_capacity(64) });
    }
    Some(watched)
}

/// Times that somebody must have been seen running.
const OFTEN: u32 = 5;

/// Waits until everybody has run [`OFTEN`] times, however busy the host is. The stretch counts from now.
pub fn watch(env: &Env) {
    let (from, to) = stretch(env);
    let (from, to) = (sys::now() + from, sys::now() + to);
    let every = time(env, "every_ms", 50).max(1);
    let Some(watched) = watched(env) else { return };
    crate::sleep_until(env, from);
    let own = |one: &Watched| one.context.consumed().map_or(0, |consumed| consumed.own);
    let mut seen: Vec<(u64, u32)> = watched.iter().map(|one| (own(one), 0)).collect();
    while sys::now() < to {
        crate::sleep_until(env, sys::now() + every);
        for (one, (last, times)) in watched.iter().zip(&mut seen) {
            let now = own(one);
            *times += u32::from(now > *last);
            *last = now;
        }
        if seen.iter().all(|(_, times)| *times >= OFTEN) {
            log::info!("watcher: everybody runs");
            return;
        }
    }
    for (one, (own, times)) in watched.iter().zip(&seen) {
        log::error!("watcher: {} ran {times} times, {own} ticks in all", one.name);
    }
}

/// Measures, and says what was seen.
pub fn run(env: &mut Env) {
    let (from, to) = stretch(env);
    let every = time(env, "every_ms", 1_000).max(1);
    let cpu = env.capability::<Cpu>("cpu");
    let Some(mut watched) = watched(env) else { return };
    let mut guard = Guard::new(env);
    let (mut times, mut ledgers) = (Vec::with_capacity(64), Vec::with_capacity(64));
    // A machine that took long to start is past the beginning.
    let mut at = from.max(sys::now());
    while at <= to {
        crate::sleep_until(env, at);
        if let Some(ledger) = cpu.and_then(|cpu| cpu.ledger(&mut env.buffer).ok()) {
            ledgers.push(ledger);
        }
        times.push(sys::now());
        for one in &mut watched {
            one.samples.push(one.context.consumed().unwrap_or_default());
        }
        guard.look(&watched, at, &mut env.buffer);
        at += every;
        if at < sys::now() {
            // The host stood still: looks one after another would show nobody running.
            at = sys::now() + every;
        }
    }
    crate::sleep_until(env, to + time(env, "print_ms", 0));
    report(&watched, &times);
    if let Some(bounds) = env.argument("bounds").filter(|bounds| !bounds.is_empty()) {
        bound(env, bounds, &watched, &times);
    }
    guard.report();
    ledger(&ledgers);
}

fn report(watched: &[Watched], times: &[u64]) {
    for one in watched {
        for (index, pair) in one.samples.windows(2).enumerate() {
            let [before, after] = pair else { continue };
            let length = times.get(index + 1).zip(times.get(index)).map_or(0, |(end, begin)| end - begin);
            log::info!(
                "data: {{\"kind\":\"account\",\"task\":\"{}\",\"interval\":{index},\"length\":{length},\"own\":{},\"lost\":{},\"helped\":{},\"structural\":{}}}",
                one.name,
                after.own - before.own,
                after.lost - before.lost,
                after.delivered - before.delivered,
                after.structural - before.structural
            );
        }
    }
}

/// `NAME,THOUSANDTHS,MICROSECONDS`: in each interval the task had that share of time, and lost none to others, but for so much.
fn bound(env: &Env, bounds: &str, watched: &[Watched], times: &[u64]) {
    let mut parts = bounds.split(',');
    let name = parts.next().unwrap_or_default();
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (share, slack) = (number(), number());
    let slack = env.ticks(slack.saturating_mul(1_000));
    let Some(one) = watched.iter().find(|one| one.name == name) else {
        log::error!("judge: {name} is not watched");
        return;
    };
    let mut good = 0;
    for (samples, times) in one.samples.windows(2).zip(times.windows(2)) {
        let ([before, after], [begin, end]) = (samples, times) else { continue };
        let (own, lost, promised) = (after.own - before.own, after.lost - before.lost, (end - begin) / 1000 * share);
        if own + slack < promised || own > promised + slack || lost > slack {
            log::error!("judge: {name} had {own} of {promised} ticks and lost {lost}, {slack} are allowed");
        } else {
            good += 1;
        }
    }
    log::info!("judge: {name} had its time in {good} intervals");
}

fn ledger(ledgers: &[CpuLedger]) {
    for (index, pair) in ledgers.windows(2).enumerate() {
        let [before, after] = pair else { continue };
        let (elapsed, contexts) = (after.elapsed - before.elapsed, after.contexts - before.contexts);
        let (idle, interrupts) = (after.idle - before.idle, after.interrupts - before.interrupts);
        // The parts sum to the whole, to the tick.
        if elapsed != contexts + idle + interrupts {
            log::error!("judge: the ledger does not add up: {elapsed} is not {contexts} + {idle} + {interrupts}");
        }
        log::info!(
            "data: {{\"kind\":\"ledger\",\"interval\":{index},\"elapsed\":{elapsed},\"contexts\":{contexts},\"idle\":{idle},\"interrupts\":{interrupts},\"gone\":{},\"choices\":{}}}",
            after.gone - before.gone,
            after.choices - before.choices
        );
    }
}

/// Sees to a scheduler that hands out no slack any more: makes it fault, so that its supervisor makes it anew.
struct Guard {
    thread: Option<Thread>,
    canary: String,
    acted: Option<u64>,
    /// When it ends the scheduler although it does what it should.
    end_at: u64,
}

impl Guard {
    fn new(env: &Env) -> Guard {
        Guard {
            thread: env.capability(&format!("{}-control", env.argument("guard").unwrap_or("scheduler"))),
            canary: String::from(env.argument("canary").unwrap_or_default()),
            acted: None,
            end_at: if env.argument("end") == Some("kill") { moment(env, "end_ms", 0) } else { u64::MAX },
        }
    }

    /// The canary lives on slack and always wants some: three samples in a row without any mean a scheduler that does nothing.
    fn look(&mut self, watched: &[Watched], at: u64, buffer: &mut MessageBuffer) {
        let (None, Some(thread)) = (self.acted, self.thread) else {
            return;
        };
        if at >= self.end_at {
            self.act(thread, at, buffer);
            return;
        }
        let Some(canary) = watched.iter().find(|one| one.name == self.canary) else {
            return;
        };
        let [.., a, b, c, d] = canary.samples.as_slice() else {
            return;
        };
        if a.own == b.own && b.own == c.own && c.own == d.own && d.own > 0 {
            self.act(thread, at, buffer);
        }
    }

    fn act(&mut self, thread: Thread, at: u64, buffer: &mut MessageBuffer) {
        self.acted = Some(at);
        // Stopped, sent to where no code is, let go: it faults.
        let stopped = thread.stop().and_then(|()| thread.read_registers(buffer));
        let broken = stopped.and_then(|snapshot| {
            let registers = Registers { rip: 0, ..snapshot.registers };
            thread.write_registers(buffer, &registers)
        });
        if let Err(error) = broken.and_then(|()| thread.resume()) {
            log::error!("judge: the scheduler cannot be ended: {error:?}");
        }
    }

    fn report(&self) {
        if let Some(at) = self.acted {
            log::info!("data: {{\"kind\":\"restart\",\"at\":{at}}}");
        }
    }
}
