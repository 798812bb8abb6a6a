//! The storm: attackers on all other processors, and on the boot processor a client and its server that call, signal and are dispatched.
//! The trace of the boot processor must show that none of that ever waited for another processor.

use crate::{
    attack,
    bench::{self, Place},
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::Error;
use moira_lab::{Check, Lab};
use moira_sys::{
    Blocked, Deadline, Dispatched, Endpoint, Event, Notification, SchedContext, Slot, receive, reply_receive_short,
};

/// Batches that are looked at, and calls and signals in each: all of a batch's events fit into the trace.
const BATCHES: u64 = 60;
/// See [`BATCHES`].
const CALLS: u64 = 60;

/// Kinds of trace events (`docs/abi/trace.md`).
mod kind {
    pub const SWITCH: u64 = 2;
    pub const INTERRUPT: u64 = 4;
    pub const STRUCTURAL: u64 = 5;
    pub const WAIT: u64 = 8;
    pub const RESTART: u64 = 9;
    pub const FLUSH: u64 = 10;
    /// Kinds that are counted.
    pub const MOST: usize = 16;
}

/// Batches that the client has done, and calls that went wrong.
static DONE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

extern "C" fn server(_: u64, _: u64) -> ! {
    let mut event = receive(Deadline::NEVER);
    loop {
        event = match event {
            Ok(Event::Call(_)) => reply_receive_short(0, &[], Deadline::NEVER),
            _ => receive(Deadline::NEVER),
        };
    }
}

/// Calls, signals, and waits until the next batch: endpoint; the notification to wait on, then the one to signal.
extern "C" fn client(endpoint: u64, notes: u64) -> ! {
    let endpoint = Endpoint::new(Slot(endpoint as u32));
    let (go, other) = (Notification::new(Slot(notes as u32)), Notification::new(Slot(notes as u32 + 1)));
    loop {
        for _ in 0..CALLS {
            let good = endpoint.call_short(0, &[]).is_ok() && other.signal().is_ok();
            DONE[1].fetch_add(u64::from(!good), Relaxed);
        }
        DONE[0].fetch_add(1, Relaxed);
        let _ = go.wait(Deadline::NEVER);
    }
}

struct Hot {
    context: SchedContext,
    go: Notification,
}

fn hot(lab: &mut Lab, stacks: [u64; 2]) -> Result<Hot, Error> {
    let (home, slot) = (lab.home, lab.slots(3));
    let endpoint = home.retype_endpoints(1, slot)?.get(0).ok_or(Error::NoSlot)?;
    let notes = home.retype_notifications(2, slot.plus(1))?;
    // A bit of its own: the notifications as they are made have no badge, and signal nothing.
    let minted = lab.slots(2);
    for index in 0..2 {
        let note = notes.get(index).ok_or(Error::NoSlot)?;
        Lab::TABLE.mint(note, minted.plus(index), moira_sys::Rights::ALL, 1)?;
    }
    let (serving, account) = lab.spawn(home, Lab::CPU, 4, server, [0, 0], stacks[0])?;
    endpoint.bind(serving)?;
    // It runs until it receives.
    lab.run(account, 10_000)?;
    let arguments = [u64::from(slot.0), u64::from(minted.0)];
    let (_, context) = lab.spawn(home, Lab::CPU, 2, client, arguments, stacks[1])?;
    Ok(Hot { context, go: Notification::new(minted) })
}

/// Events of the boot processor by kind since event `first`; none if some were lost.
fn events(lab: &mut Lab, mut first: u64) -> Result<Option<[u64; kind::MOST]>, Error> {
    let mut counts = [0; kind::MOST];
    let end = Lab::PLATFORM.trace(0, first)?.written;
    while first < end {
        let copy = Lab::PLATFORM.trace(0, first)?;
        if copy.first != first {
            return Ok(None);
        }
        let mut bytes = [0; 32 * 32];
        lab.buffer.read(&mut bytes);
        for event in bytes.chunks_exact(32).take((copy.next - first) as usize) {
            if let Some(count) = event.get(8).and_then(|kind| counts.get_mut(usize::from(*kind))) {
                *count += 1;
            }
        }
        first = copy.next;
    }
    Ok(Some(counts))
}

/// One batch under the trace. Answers its events.
fn batch(lab: &mut Lab, check: &mut Check, hot: &Hot) -> Option<[u64; kind::MOST]> {
    let before = DONE[0].load(Relaxed);
    let first = check.good("trace", Lab::PLATFORM.set_trace(0, 1))?;
    check.good("go", hot.go.signal());
    let mut ended = None;
    // A busy host may take its time.
    for _ in 0..500 {
        ended = check.good("dispatch", lab.run(hot.context, 2000));
        if matches!(ended, Some(Dispatched::Blocked { kind: Blocked::Waiting, .. })) {
            break;
        }
    }
    check.holds("the batch ended", matches!(ended, Some(Dispatched::Blocked { .. })));
    let counts = events(lab, first);
    check.equal("one batch", DONE[0].load(Relaxed) - before, 1);
    check.good("its events", counts)?
}

/// The experiment: `seed`, and the attackers' places on the other processors.
pub fn run(lab: &mut Lab, seed: u64) -> Result<(), Error> {
    let places: Vec<Place> = bench::places(lab, seed, u64::MAX / 8)?.into_iter().skip(1).collect();
    let (stacks, _) = lab.memory(16)?;
    let hot = hot(lab, [stacks + 8 * 4096, stacks + 16 * 4096])?;
    // Its first batch, before there is a storm.
    lab.run(hot.context, 100_000)?;
    lab.keep();
    log::info!("storm: {} attackers", places.len());
    lab.experiment_of_its_own("storm", |lab, check| {
        let (mut sum, mut batches, mut lost, mut worlds) = ([0; kind::MOST], 0, 0, 0u64);
        while batches < BATCHES && worlds < 100 * BATCHES && check.found.is_empty() {
            worlds += 1;
            let built = bench::clean(lab).and_then(|()| bench::build_all(lab, &places));
            let Some(_) = check.good("new worlds", built) else { return };
            for _ in 0..20 {
                let before = attack::made();
                let Some(counts) = batch(lab, check, &hot) else {
                    lost += 1;
                    continue;
                };
                // Counted only if the others did something meanwhile.
                if attack::made() - before < 10 {
                    break;
                }
                batches += 1;
                for (all, one) in sum.iter_mut().zip(counts) {
                    *all += one;
                }
            }
        }
        let of = |kind: u64| sum.get(kind as usize).copied().unwrap_or(0);
        log::info!(
            "storm: {batches} batches of {CALLS} calls and signals beside {} invocations in {worlds} worlds",
            attack::made()
        );
        log::info!(
            "storm: {} switches, {} interrupts, {} flushes, {} waits, {} restarts, {lost} traces too long",
            of(kind::SWITCH),
            of(kind::INTERRUPT),
            of(kind::FLUSH),
            of(kind::WAIT),
            of(kind::RESTART)
        );
        check.equal("batches", batches >= BATCHES, true);
        check.equal("calls and signals that failed", DONE[1].load(Relaxed), 0);
        check.equal("waits for the structural lock", of(kind::WAIT), 0);
        check.equal("calls that ran again", of(kind::RESTART), 0);
        check.equal("structural operations", of(kind::STRUCTURAL), 0);
        // Each call and each answer is a direct switch, or a choice found it where an interrupt came between.
        check.holds("calls switched", of(kind::SWITCH) > batches * CALLS);
        check.good("trace off", Lab::PLATFORM.set_trace(0, 0));
    });
    Ok(())
}
