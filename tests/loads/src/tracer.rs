//! Reads the kernel's trace while everything runs, and holds it against the ledger: the same time, told twice.
//!
//! The kernel books time when the account changes and, apart from that, records each change as an event. From the events alone this task adds up what each
//! context of its CPU had: own work, what it lost by helping, what others were charged for it, interrupts of its sources, structural work. The accounts
//! must say the same.
//!
//! | given | what for |
//! | --- | --- |
//! | `platform` | the trace |
//! | `cpu` | its CPU, any right: the ledger |
//! | `NAME-context` of `watch=NAME,…` | the accounts that are compared |
//! | ports `trace-port`, optional | a serial port: all events go there at the end, for `cargo xtask trace` |
//!
//! Arguments: `from_ms=`, `ms=` (how long), `every_us=` (how often it looks), `cpus=` (how many are traced; accounts are compared on the own one),
//! `far=NAME,…` (who of `watch=` lives on another CPU), `attempts=` (how often it measures at most, where a host may keep it waiting until events are
//! overwritten), `kinds=` (of events, a number whose bits are kinds), `end=1` (end the system afterwards).

mod port;
pub mod watch;

use crate::{moment, time};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use moira_lab::accounts::{Accounts, Parts};
use moira_rt::{
    Env,
    sys::{
        self, Cpu, Deadline, Outcome, Platform, SchedContext,
        abi::{
            time::CpuLedger,
            trace::{Event, kind},
        },
    },
};

/// What is compared, in parts per million of the context's time: 0.01 %.
const MOST_PPM: u64 = 100;
/// A snapshot is taken again if it was interrupted, at most so often.
const PATIENCE: u32 = 1_000;
/// Ticks between two looks at the clock in an undisturbed snapshot.
const UNDISTURBED: u64 = 20_000;

/// Who is watched.
struct Watched {
    name: String,
    context: SchedContext,
    /// Its name in the trace, and that of its thread.
    object: u64,
    thread: u64,
}

struct Tracer<'a> {
    env: &'a mut Env,
    platform: Platform,
    cpu: Cpu,
    watched: Vec<Watched>,
    /// Number of the next event of each CPU.
    next: Vec<u64>,
    accounts: Accounts,
    events: Vec<Event>,
    /// Most events that are kept.
    room: usize,
    lost: u64,
}

/// The accounts at one moment.
struct Snapshot {
    at: u64,
    /// Ticks that it took: the reader's own account was read somewhere in them.
    took: u64,
    parts: BTreeMap<u64, Parts>,
    ledger: CpuLedger,
}

/// Measures, and says what was seen.
pub fn run(env: &mut Env) {
    if let Err(why) = trace(env) {
        log::error!("tracer: {why}");
    }
}

fn trace(env: &mut Env) -> Result<(), String> {
    let platform = env.capability::<Platform>("platform").ok_or("no platform")?;
    let cpu = env.capability::<Cpu>("cpu").ok_or("no CPU")?;
    let (from, length) = (moment(env, "from_ms", 300), time(env, "ms", 1_000));
    let every = time(env, "every_us", 1_000);
    let watched = watched(env)?;
    let cpus = env.number("cpus", 1).clamp(1, 64);
    let kinds = env.number("kinds", kind::ACCOUNTS);
    let ports = port::Port::new(env);
    // Kept only if there is somewhere to send them.
    let room = if ports.is_some() { env.info.heap_length as usize / 2 / size_of::<Event>() } else { 0 };
    crate::sleep_until(env, from);
    let own = watched.iter().find(|one| one.name == env.info.name).map_or(0, |one| one.object);
    let mut tracer = Tracer {
        env,
        platform,
        cpu,
        watched,
        next: Vec::new(),
        accounts: Accounts::new(own),
        events: Vec::with_capacity(room),
        room,
        lost: 0,
    };
    let attempts = tracer.env.number("attempts", 1);
    let mut attempt = 1;
    let (from, to) = loop {
        tracer.start(own, cpus, kinds)?;
        let before = tracer.snapshot()?;
        let sums = tracer.accounts.at(before.at);
        let end = before.at + length;
        while sys::now() < end {
            tracer.collect()?;
            let _ = tracer.env.notification().wait(Deadline::after(every));
        }
        let after = tracer.snapshot()?;
        let totals = tracer.accounts.at(after.at);
        let _ = platform.set_trace(0, 0);
        if tracer.lost > 0 && attempt < attempts {
            attempt += 1;
            continue;
        }
        if let Err(why) = tracer.compare(&before, &after, &sums, &totals, kinds & 1 << kind::STRUCTURAL != 0) {
            log::error!("tracer: {why}");
        }
        break (before.at, after.at);
    };
    if let Some(port) = ports {
        tracer.send(port, from, to)?;
    }
    if tracer.env.number("end", 0) != 0 {
        let _ = platform.end(&mut tracer.env.buffer, Outcome::Success, b"");
    }
    Ok(())
}

fn watched(env: &Env) -> Result<Vec<Watched>, String> {
    let mut list = Vec::new();
    for name in env.argument("watch").unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
        let context: SchedContext =
            env.capability(&format!("{name}-context")).ok_or_else(|| format!("no context of {name}"))?;
        let consumed = context.consumed().map_err(|error| format!("the account of {name}: {error:?}"))?;
        let (object, thread) = (consumed.number << 9, consumed.thread);
        list.push(Watched { name: name.into(), context, object, thread });
    }
    Ok(list)
}

impl Tracer<'_> {
    /// Switches the trace on; what came before does not count.
    fn start(&mut self, own: u64, cpus: u64, kinds: u64) -> Result<(), String> {
        self.accounts = Accounts::new(own);
        self.events.clear();
        self.next.clear();
        self.lost = 0;
        for cpu in 0..cpus {
            let started = self.platform.set_trace(cpu as u32, kinds);
            self.next.push(started.map_err(|error| format!("the trace of CPU {cpu}: {error:?}"))?);
        }
        Ok(())
    }

    /// Takes all events there are.
    fn collect(&mut self) -> Result<(), String> {
        for cpu in 0..self.next.len() {
            let Some(mut next) = self.next.get(cpu).copied() else { break };
            loop {
                let copy = self.platform.trace(cpu as u32, next).map_err(|error| format!("the trace: {error:?}"))?;
                self.lost += copy.first - next;
                for index in 0..(copy.next - copy.first) as usize {
                    let word = |at| self.env.buffer.word(index * 4 + at);
                    let event = Event { time: word(0), what: word(1), a: word(2), b: word(3) };
                    if cpu == 0 {
                        self.accounts.take(&event);
                    }
                    if self.events.len() < self.room {
                        self.events.push(event);
                    }
                }
                next = copy.next;
                if next >= copy.written {
                    break;
                }
            }
            if let Some(place) = self.next.get_mut(cpu) {
                *place = next;
            }
        }
        Ok(())
    }

    /// The accounts and the events up to one moment, in which nobody else ran.
    fn snapshot(&mut self) -> Result<Snapshot, String> {
        for _ in 0..PATIENCE {
            self.collect()?;
            let begin = sys::now();
            let mut parts = BTreeMap::new();
            for one in &self.watched {
                let consumed = one.context.consumed().map_err(|error| format!("an account: {error:?}"))?;
                parts.insert(one.object, Parts::from(&consumed));
            }
            let ledger = self.cpu.ledger(&mut self.env.buffer).map_err(|error| format!("the ledger: {error:?}"))?;
            let at = sys::now();
            let copy = self.platform.trace(0, self.next.first().copied().unwrap_or(0));
            let quiet = copy.is_ok_and(|copy| copy.written == copy.first);
            if quiet && at - begin < UNDISTURBED {
                return Ok(Snapshot { at, took: at - begin, parts, ledger });
            }
        }
        Err("no moment without a change of account".into())
    }

    /// Holds both against each other.
    fn compare(
        &self,
        before: &Snapshot,
        after: &Snapshot,
        sums: &BTreeMap<u64, Parts>,
        totals: &BTreeMap<u64, Parts>,
        structural: bool,
    ) -> Result<(), String> {
        if self.lost > 0 {
            return Err(format!("{} events were overwritten before they were read", self.lost));
        }
        let (first, last) = (&before.ledger, &after.ledger);
        let elapsed = last.elapsed - first.elapsed;
        let parts = (last.contexts - first.contexts) + (last.idle - first.idle) + (last.interrupts - first.interrupts);
        if elapsed != parts {
            return Err(format!("the ledger does not add up: {elapsed} is not {parts}"));
        }
        let (mut worst, mut who) = (0, "nobody");
        let far = self.env.argument("far").unwrap_or_default();
        for one in self.watched.iter().filter(|one| !far.split(',').any(|name| name == one.name)) {
            let of = |map: &BTreeMap<u64, Parts>| map.get(&one.object).copied().unwrap_or_default();
            let mut ledger = of(&after.parts).less(&of(&before.parts));
            if !structural {
                ledger.structural = 0;
            }
            let trace = of(totals).less(&of(sums));
            // Nobody who hardly ran is held to a part of hardly anything.
            let whole = (ledger.own + ledger.lost).max(elapsed / 1_000);
            let blur = if one.name == self.env.info.name { before.took + after.took } else { 0 };
            let error = ledger.difference(&trace).saturating_sub(blur) * 1_000_000 / whole.max(1);
            log::info!(
                "data: {{\"kind\":\"ledger-trace\",\"task\":\"{}\",\"object\":{},\"thread\":{},\"own\":{},\"lost\":{},\"helped\":{},\"structural\":{},\"interrupts\":{},\"difference\":{}}}",
                one.name,
                one.object,
                one.thread,
                ledger.own,
                ledger.lost,
                ledger.helped,
                ledger.structural,
                ledger.interrupts,
                ledger.difference(&trace)
            );
            if error > MOST_PPM {
                log::error!("tracer: the ledger differs from the trace about {}: {ledger:?}, {trace:?}", one.name);
            }
            if error >= worst {
                (worst, who) = (error, &one.name);
            }
        }
        let idle =
            (last.idle - first.idle).abs_diff(totals.get(&0).map_or(0, |p| p.own) - sums.get(&0).map_or(0, |p| p.own));
        worst = worst.max(idle * 1_000_000 / elapsed.max(1));
        log::info!(
            "tracer: data: {{\"kind\":\"ledger-error\",\"ppm\":{worst},\"task\":\"{who}\",\"contexts\":{},\"elapsed\":{elapsed},\"events\":{},\"idle_difference\":{idle}}}",
            self.watched.len(),
            self.accounts.taken
        );
        if worst > MOST_PPM {
            return Err(format!("the ledger and the trace differ by {worst} ppm"));
        }
        log::info!("tracer: the ledger and the trace agree");
        Ok(())
    }

    fn send(&mut self, mut port: port::Port, from: u64, to: u64) -> Result<(), String> {
        if self.events.len() == self.room {
            return Err(format!("more than {} events: trace for a shorter time", self.room));
        }
        log::info!(
            "tracer: data: {{\"kind\":\"trace\",\"events\":{},\"from\":{from},\"to\":{to},\"tsc_hz\":{}}}",
            self.events.len(),
            self.env.info.tsc_hz
        );
        let stretch = Event { time: self.env.info.tsc_hz, what: kind::STRETCH.into(), a: from, b: to };
        let named = self.watched.iter().zip(0u64..).map(|(one, number)| Event {
            time: number,
            what: kind::NAME.into(),
            a: one.object,
            b: one.thread,
        });
        for event in core::iter::once(stretch).chain(named).chain(self.events.iter().copied()) {
            for word in [event.time, event.what, event.a, event.b] {
                port.send(&word.to_le_bytes()).map_err(|error| format!("the port: {error:?}"))?;
            }
        }
        Ok(())
    }
}
