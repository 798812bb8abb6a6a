//! Holds the ledgers of all CPUs against the trace for as long as a system runs, beside whatever it does.
//!
//! What the ledger and the trace say of a CPU is compared from a first look on, again and again. A look counts if nothing on the CPU changed while it was
//! taken: of a CPU that runs on meanwhile the ledger is read before and after the accounts. Even so it may fall between the two places at
//! which the kernel writes one thing down; what is wrong for good is wrong in the next look, too. If events were overwritten before they were read,
//! because a host kept this task waiting, the comparison begins anew.
//!
//! | given | what for |
//! | --- | --- |
//! | `platform` | the trace |
//! | `cpu-N` | the CPUs, any right: their ledgers |
//! | `NAME-context` | the accounts of `watch=NAME:CPU,…`: one entry for each thread of a task, in their order |
//!
//! Arguments: `cpus=`, `watch=`, `every_ms=` (how often it looks).

use crate::time;
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use moira_lab::accounts::{Accounts, Parts};
use moira_rt::{
    Env,
    sys::{
        Cpu, Deadline, MessageBuffer, Platform, SchedContext,
        abi::{
            time::CpuLedger,
            trace::{Event, kind},
        },
    },
};

/// Looks that must agree before it says so, once.
const GOOD: u32 = 2;
/// Looks in a row that must disagree.
const BAD: u32 = 3;
/// A look is tried so often at a time.
const TRIES: u32 = 20;

/// An account that is compared.
struct One {
    name: String,
    context: SchedContext,
    object: u64,
}

/// One CPU.
struct Side {
    number: u32,
    cpu: Cpu,
    ones: Vec<One>,
    /// Number of the next event.
    next: u64,
    accounts: Accounts,
    base: Option<Look>,
    good: u32,
    bad: u32,
    given_up: bool,
}

/// What both say at one moment.
struct Look {
    ledger: CpuLedger,
    parts: Vec<Parts>,
    sums: BTreeMap<u64, Parts>,
    interrupts: u64,
    /// Ticks that the reader ran on while it looked at its own CPU.
    blur: u64,
}

struct Watch {
    own: u64,
    sides: Vec<Side>,
}

/// Watches for ever.
pub fn run(env: &mut Env) {
    if let Err(why) = watch(env) {
        log::error!("ledger: {why}");
    }
}

fn watch(env: &mut Env) -> Result<(), String> {
    let platform = env.capability::<Platform>("platform").ok_or("no platform")?;
    let every = time(env, "every_ms", 1);
    let mut watch = Watch { own: 0, sides: Vec::new() };
    for number in 0..env.number("cpus", 1).clamp(1, 64) as u32 {
        let cpu = env.capability::<Cpu>(&format!("cpu-{number}")).ok_or("no CPU")?;
        watch.sides.push(Side::new(number, cpu));
    }
    watch.take_accounts(env)?;
    let kinds = kind::ACCOUNTS & !(1 << kind::WINDOW);
    for side in &mut watch.sides {
        side.begin(platform, kinds, if side.number == 0 { watch.own } else { 0 })?;
    }
    loop {
        for at in 0..watch.sides.len() {
            let own = watch.own;
            if let Some(side) = watch.sides.get_mut(at) {
                side.look(platform, kinds, own, &mut env.buffer)?;
            }
        }
        // Bits that come are of no interest here.
        let _ = env.notification().wait(Deadline::after(every));
    }
}

impl Watch {
    fn take_accounts(&mut self, env: &Env) -> Result<(), String> {
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        for entry in env.argument("watch").unwrap_or_default().split(',').filter(|entry| !entry.is_empty()) {
            let (name, cpu) = entry.split_once(':').ok_or("an entry of `watch` names no CPU")?;
            let number = seen.entry(name).or_default();
            let contexts = env.capabilities::<SchedContext>(&format!("{name}-context"));
            let context =
                contexts.and_then(|contexts| contexts.get(*number)).ok_or_else(|| format!("no context of {name}"))?;
            *number += 1;
            let consumed = context.consumed().map_err(|error| format!("the account of {name}: {error:?}"))?;
            let object = consumed.number << 9;
            if name == env.info.name {
                self.own = object;
            }
            let cpu: usize = cpu.parse().map_err(|_| "an entry of `watch` has no CPU's number")?;
            let side = self.sides.get_mut(cpu).ok_or("an entry of `watch` is on no CPU")?;
            side.ones.push(One { name: name.into(), context, object });
        }
        Ok(())
    }
}

impl Side {
    fn new(number: u32, cpu: Cpu) -> Side {
        let (ones, accounts) = (Vec::new(), Accounts::unknown());
        Side { number, cpu, ones, next: 0, accounts, base: None, good: 0, bad: 0, given_up: false }
    }

    /// Takes events from now on. `own`: who runs; 0: nobody knows.
    fn begin(&mut self, platform: Platform, kinds: u64, own: u64) -> Result<(), String> {
        let started = platform.set_trace(self.number, kinds);
        self.next = started.map_err(|error| format!("the trace of CPU {}: {error:?}", self.number))?;
        self.accounts = if own == 0 { Accounts::unknown() } else { Accounts::new(own) };
        (self.base, self.bad) = (None, 0);
        Ok(())
    }

    /// Takes all events there are; answers whether none is missing.
    fn collect(&mut self, platform: Platform, buffer: &MessageBuffer) -> Result<bool, String> {
        loop {
            let copy = platform.trace(self.number, self.next).map_err(|error| format!("the trace: {error:?}"))?;
            if copy.first != self.next {
                return Ok(false);
            }
            for index in 0..(copy.next - copy.first) as usize {
                let word = |at| buffer.word(index * 4 + at);
                self.accounts.take(&Event { time: word(0), what: word(1), a: word(2), b: word(3) });
            }
            self.next = copy.next;
            if self.next >= copy.written {
                return Ok(true);
            }
        }
    }

    fn look(&mut self, platform: Platform, kinds: u64, own: u64, buffer: &mut MessageBuffer) -> Result<(), String> {
        if self.given_up {
            return Ok(());
        }
        for _ in 0..TRIES {
            if !self.collect(platform, buffer)? {
                return self.begin(platform, kinds, if self.number == 0 { own } else { 0 });
            }
            if !self.accounts.known() {
                return Ok(());
            }
            if let Some(look) = self.read(platform, buffer)? {
                self.judge(look, own);
                return Ok(());
            }
        }
        Ok(())
    }

    /// What both say now; nothing if something changed meanwhile.
    fn read(&mut self, platform: Platform, buffer: &mut MessageBuffer) -> Result<Option<Look>, String> {
        let ledger =
            |buffer: &mut MessageBuffer| self.cpu.ledger(buffer).map_err(|error| format!("the ledger: {error:?}"));
        let before = ledger(buffer)?;
        let mut parts = Vec::with_capacity(self.ones.len());
        for one in &self.ones {
            let consumed = one.context.consumed().map_err(|error| format!("an account: {error:?}"))?;
            parts.push(Parts::from(&consumed));
        }
        let after = ledger(buffer)?;
        let copy = platform.trace(self.number, self.next).map_err(|error| format!("the trace: {error:?}"))?;
        // The account of this task itself moves on while it looks.
        let blur = after.elapsed - before.elapsed;
        if copy.written != self.next || blur > 0 && self.number != 0 {
            return Ok(None);
        }
        let sums = self.accounts.at(after.started + after.elapsed);
        Ok(Some(Look { ledger: after, parts, sums, interrupts: self.accounts.interrupts, blur }))
    }

    fn judge(&mut self, look: Look, own: u64) {
        let Some(base) = &self.base else {
            self.base = Some(look);
            return;
        };
        match self.difference(base, &look, own) {
            None => {
                self.bad = 0;
                self.good += 1;
                if self.good == GOOD && self.number == 0 {
                    log::info!("ledger: agrees with the trace");
                }
            }
            Some(_) if self.bad + 1 < BAD => self.bad += 1,
            Some(why) => {
                log::error!("ledger: CPU {}: {why}", self.number);
                self.given_up = true;
            }
        }
    }

    /// In what ledger and trace differ.
    fn difference(&self, base: &Look, look: &Look, own: u64) -> Option<String> {
        let (first, last) = (&base.ledger, &look.ledger);
        let (elapsed, contexts) = (last.elapsed - first.elapsed, last.contexts - first.contexts);
        let (idle, interrupts) = (last.idle - first.idle, last.interrupts - first.interrupts);
        if elapsed != contexts + idle + interrupts {
            return Some(format!("{elapsed} ticks passed, {contexts} + {idle} + {interrupts} were booked"));
        }
        let of = |look: &Look, object: u64| look.sums.get(&object).copied().unwrap_or_default();
        let since = |object: u64| of(look, object).less(&of(base, object));
        let traced: u64 = look
            .sums
            .keys()
            .filter(|object| **object != 0)
            .map(|object| since(*object))
            .map(|parts| parts.own + parts.lost)
            .sum();
        let (traced_idle, traced_interrupts) = (since(0).own, look.interrupts - base.interrupts);
        if (traced, traced_idle, traced_interrupts) != (contexts, idle, interrupts) {
            return Some(format!(
                "contexts {contexts}, idle {idle}, interrupts {interrupts}; by the trace {traced}, {traced_idle}, {traced_interrupts}"
            ));
        }
        self.ones.iter().zip(base.parts.iter().zip(&look.parts)).find_map(|(one, (before, after))| {
            let (ledger, trace) = (after.less(before), since(one.object));
            let blur = if one.object == own { base.blur + look.blur } else { 0 };
            (ledger.difference(&trace) > blur).then(|| format!("{}: {ledger:?}, by the trace {trace:?}", one.name))
        })
    }
}
