//! Windows, dispatch, plans, the scheduler's own share. Each role is a task of `bench-time` or `bench-scheduler`.

use crate::{Report, time};
use alloc::{format, string::ToString, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};
use moira_rt::Env;
use moira_sys::{Caps, Cpu, Deadline, Dispatched, Notification, Outcome, Plan, Platform, SchedContext, Untyped, now};

/// A step of the TSC that is longer than this is somebody else's window.
const WINDOW: u64 = 5_000;
/// Installations that are measured: each takes a whole cycle.
const PLANS: usize = 100;

/// What the marker and the reader share: the last mark, and whether the reader has all it wants.
fn marks(env: &Env) -> Option<(&AtomicU64, &AtomicU64)> {
    let words = env.shared("marks").map(|region| region.words64());
    let found = words.and_then(|words| Some((words.first()?, words.get(1)?)));
    if found.is_none() {
        log::error!("bench: no region `marks`");
    }
    found
}

/// Writes the time to the shared page: the last value before its window ends is all but the end itself.
pub fn mark(env: &Env) {
    let Some((word, done)) = marks(env) else { return };
    while done.load(Ordering::Relaxed) == 0 {
        // Not `store(now())` alone: after the end there must be no more marks.
        word.store(now(), Ordering::Relaxed);
    }
}

/// Runs in the window after the marker's: the first time that it reads there, less the last mark.
pub fn window_switch(env: &Env, report: &mut Report) {
    let Some((word, done)) = marks(env) else { return };
    let mut samples = Vec::with_capacity(crate::SAMPLES);
    let mut last = now();
    while samples.len() < crate::SAMPLES {
        let at = now();
        if at - last > WINDOW {
            samples.push(at - word.load(Ordering::Relaxed));
        }
        last = at;
    }
    // Nobody needs these windows any more: who measures after this finds them empty.
    done.store(1, Ordering::Relaxed);
    report.samples("time.window_switch", samples);
}

/// The other side of a dispatch: blocks again as soon as it was woken.
pub fn dispatched() {
    loop {
        let _ = moira_sys::receive(Deadline::NEVER);
    }
}

/// As the CPU's scheduler: dispatches a context that blocks at once.
pub fn dispatch(env: &Env, report: &mut Report) {
    let (Some(cpu), Some(contexts), Some(page), Some(wake)) = (
        env.capability::<Cpu>("cpu"),
        env.capabilities::<SchedContext>("contexts"),
        env.shared("status").and_then(|region| region.words64().first()),
        env.capability::<Notification>("dispatched-signal"),
    ) else {
        log::error!("bench: not a scheduler");
        return;
    };
    let context = Caps::get(&contexts, 0);
    // The marker and the reader are done by then. A dispatch around the end of this window would be told with their two windows, which is
    // 100,000 instructions.
    moira_sys::receive(Deadline(env.ticks(1_500_000_000))).ok();
    let mut bad = 0;
    report.figure("time.dispatch_round_trip", || {
        loop {
            let _ = wake.signal();
            let token = page.load(Ordering::Acquire);
            let mut answer = None;
            let ticks = time(|| answer = Some(cpu.dispatch(context, Deadline::NEVER, token)));
            match answer {
                Some(Ok((Dispatched::Blocked { .. }, used))) if used > 0 => return ticks,
                Some(Ok((Dispatched::Stale | Dispatched::News, _))) => {}
                _ => {
                    bad += 1;
                    if bad > 100 {
                        return u64::MAX;
                    }
                }
            }
        }
    });
    if bad > 0 {
        log::error!("bench: {bad} dispatches did not end as they should");
    }
}

/// Fills and installs plans of 512 windows, all its own; then ends the system, for nobody else has a window any more.
pub fn install(env: &mut Env, report: &mut Report) {
    moira_sys::receive(Deadline(env.ticks(2_500_000_000))).ok();
    if let Err(why) = plans(env, report) {
        log::error!("bench: plans: {why:?}");
    }
    log::info!("bench: done");
    if let Some(platform) = env.capability::<Platform>("platform") {
        let _ = platform.end(&mut env.buffer, Outcome::Success, b"");
    }
}

fn plans(env: &mut Env, report: &mut Report) -> Result<(), moira_sys::Error> {
    use moira_sys::Error;
    const COUNT: u64 = 512;
    // Long ones: their ends would interrupt what is measured.
    const LENGTH: u64 = 20_000;
    let cpu: Cpu = env.capability("cpu").ok_or(Error::Empty)?;
    let own: SchedContext = env.capability("installer-context").ok_or(Error::Empty)?;
    let untyped: Untyped = env.capability("objects").ok_or(Error::Empty)?;
    let mut slots = env.slots();
    let plans: Vec<Plan> =
        (0..2).map(|_| untyped.retype_plan(15, slots.take(1).ok_or(Error::NoSlot)?)).collect::<Result<_, _>>()?;
    let windows: Vec<(SchedContext, u64, u64)> =
        (0..COUNT).map(|index| (own, index * LENGTH, (index + 1) * LENGTH)).collect();
    let mut samples = Vec::with_capacity(PLANS);
    for turn in 0..PLANS {
        let plan = plans.get(turn % 2).copied().ok_or(Error::Empty)?;
        let begin = now();
        plan.clear(COUNT * LENGTH)?;
        plan.append_all(&mut env.buffer, &windows)?;
        cpu.install_plan(Some(plan))?;
        samples.push((now() - begin).saturating_sub(report.overhead));
        // The old one's cycle ends, and the new one is in force: only then the other can be filled again.
        let cycle = if turn == 0 { env.ticks(120_000_000) } else { 0 };
        let until = now() + cycle + COUNT * LENGTH;
        while now() < until {
            core::hint::black_box(turn);
        }
    }
    report.samples("time.install_plan_512", samples);
    Ok(())
}

/// The share that a scheduler takes for itself, in one second of a CPU that is full of contracts which take slack too.
pub fn share(env: &mut Env) {
    let (Some(context), Some(cpu)) =
        (env.capability::<SchedContext>("scheduler-context"), env.capability::<Cpu>("cpu"))
    else {
        log::error!("bench: no scheduler to look at");
        return;
    };
    let mut shares = Vec::new();
    let mut last = None;
    for turn in 0..6 {
        let at = env.ticks(400_000_000 + turn * 200_000_000);
        let _ = moira_sys::receive(Deadline(at));
        let (Ok(used), Ok(ledger)) = (context.consumed(), cpu.ledger(&mut env.buffer)) else {
            log::error!("bench: accounts cannot be read");
            return;
        };
        if let Some((used_before, elapsed_before)) = last.replace((used.own + used.lost, ledger.elapsed)) {
            shares.push((used.own + used.lost - used_before) * 1_000_000 / (ledger.elapsed - elapsed_before).max(1));
        }
    }
    shares.sort_unstable();
    let show = |index: usize| {
        shares.get(index).map_or_else(|| "0".to_string(), |ppm| format!("{}.{:04}", ppm / 10_000, ppm % 10_000))
    };
    log::info!(
        "bench: {{\"name\":\"time.scheduler_share\",\"unit\":\"%\",\"minimum\":{},\"median\":{},\"maximum\":{},\"samples\":{}}}",
        show(0),
        show(shares.len() / 2),
        show(shares.len().saturating_sub(1)),
        shares.len()
    );
}
