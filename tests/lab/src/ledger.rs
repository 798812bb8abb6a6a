//! With `ledger=trace` on the kernel's command line the laboratory holds the ledger of its CPU against the trace in each experiment:
//! the CPU's sums, its own account, those it was asked to look at, and those of all contexts that it ran and that are still there.

use crate::{
    Check, Lab,
    accounts::{Accounts, Parts},
};
use alloc::{collections::BTreeMap, vec::Vec};
use moira_abi::{
    time::CpuLedger,
    trace::{Event, kind},
};
use moira_sys::{Error, SchedContext};

/// Events that say where time goes.
const KINDS: u64 = kind::ACCOUNTS & !(1 << kind::WINDOW);
/// A look is taken again if an interrupt came meanwhile, at most so often.
const TRIES: u32 = 100;

/// What both say at one moment.
struct Look {
    ledger: CpuLedger,
    /// Accounts by their names in the trace.
    parts: BTreeMap<u64, Parts>,
    sums: BTreeMap<u64, Parts>,
    interrupts: u64,
    /// Ticks that the laboratory ran on while it looked.
    blur: u64,
}

/// One comparison that is under way.
pub(crate) struct Audit {
    own: u64,
    next: u64,
    /// Events were overwritten before they were read.
    lost: bool,
    accounts: Accounts,
    kept: Vec<SchedContext>,
    base: Look,
}

/// How the comparisons of a run ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    /// Both said the same.
    pub agreed: u32,
    /// There were more events than the trace holds.
    pub too_long: u32,
}

/// The name of a context in the trace, and its account.
fn account(context: SchedContext) -> Option<(u64, Parts)> {
    context.consumed().ok().map(|consumed| (consumed.number << 9, Parts::from(&consumed)))
}

/// Takes all events there are from number `next` on. Answers whether none is missing.
fn collect(lab: &Lab, next: &mut u64, accounts: &mut Accounts) -> Result<bool, Error> {
    loop {
        let copy = Lab::PLATFORM.trace(0, *next)?;
        if copy.first != *next {
            return Ok(false);
        }
        for index in 0..(copy.next - copy.first) as usize {
            let word = |at| lab.buffer.word(index * 4 + at);
            accounts.take(&Event { time: word(0), what: word(1), a: word(2), b: word(3) });
        }
        *next = copy.next;
        if *next >= copy.written {
            return Ok(true);
        }
    }
}

/// What both say now; `None`: something happened meanwhile.
fn look(
    lab: &mut Lab,
    next: u64,
    accounts: &mut Accounts,
    contexts: impl Iterator<Item = SchedContext>,
) -> Result<Option<Look>, Error> {
    let before = Lab::CPU.ledger(&mut lab.buffer)?;
    let parts = contexts.filter_map(account).collect();
    let ledger = Lab::CPU.ledger(&mut lab.buffer)?;
    if Lab::PLATFORM.trace(0, next)?.written != next {
        return Ok(None);
    }
    let blur = ledger.elapsed - before.elapsed;
    let sums = accounts.at(ledger.started + ledger.elapsed);
    Ok(Some(Look { ledger, parts, sums, interrupts: accounts.interrupts, blur }))
}

impl Audit {
    /// Begins. `kept`: contexts that are there already and will still be at the end.
    fn begin(lab: &mut Lab, kept: &[SchedContext]) -> Result<Option<Audit>, Error> {
        let own = account(Lab::CONTEXT).map_or(0, |(object, _)| object);
        let kept: Vec<SchedContext> = core::iter::once(Lab::CONTEXT).chain(kept.iter().copied()).collect();
        for _ in 0..TRIES {
            let next = Lab::PLATFORM.set_trace(0, KINDS)?;
            let mut accounts = Accounts::new(own);
            if let Some(base) = look(lab, next, &mut accounts, kept.iter().copied())? {
                return Ok(Some(Audit { own, next, lost: false, accounts, kept, base }));
            }
        }
        Ok(None)
    }

    /// Ends, and says what differs; the answer is whether anything was compared.
    fn end(mut self, lab: &mut Lab, ran: &[SchedContext], check: &mut Check) -> Result<bool, Error> {
        for _ in 0..TRIES {
            self.lost |= !collect(lab, &mut self.next, &mut self.accounts)?;
            if self.lost {
                return Ok(false);
            }
            let contexts = self.kept.iter().chain(ran).copied();
            if let Some(last) = look(lab, self.next, &mut self.accounts, contexts)? {
                self.compare(&last, check);
                return Ok(true);
            }
        }
        check.holds("a moment without a change of account", false);
        Ok(false)
    }

    fn compare(&self, last: &Look, check: &mut Check) {
        let (from, to) = (&self.base.ledger, &last.ledger);
        let booked = [to.contexts - from.contexts, to.idle - from.idle, to.interrupts - from.interrupts];
        check.equal("the ledger adds up", booked.iter().sum::<u64>(), to.elapsed - from.elapsed);
        let of = |look: &Look, object| look.sums.get(&object).copied().unwrap_or_default();
        let since = |object: u64| of(last, object).less(&of(&self.base, object));
        let contexts = last.sums.keys().filter(|object| **object != 0).map(|object| since(*object));
        let traced =
            [contexts.map(|parts| parts.own + parts.lost).sum(), since(0).own, last.interrupts - self.base.interrupts];
        check.equal("contexts, idle and interrupts, by ledger and trace", booked, traced);
        for (object, parts) in &last.parts {
            // What was not there before began with nothing.
            let ledger = parts.less(&self.base.parts.get(object).copied().unwrap_or_default());
            let blur = if *object == self.own { self.base.blur + last.blur } else { 0 };
            if ledger.difference(&since(*object)) > blur {
                check.equal("an account, by ledger and trace", ledger, since(*object));
            }
        }
    }
}

impl Lab {
    /// Begins to hold the ledger against the trace, if that was asked for. `kept`: contexts that are there already and will still be at
    /// the end of it; others are looked at if [`Lab::run`] ran them.
    pub fn begin_audit(&mut self, kept: &[SchedContext], check: &mut Check) {
        if self.option("ledger") == Some("trace") {
            self.ran.borrow_mut().clear();
            let begun = Audit::begin(self, kept);
            self.audit = check.good("the trace", begun).flatten();
            check.holds("a moment without a change of account, to begin with", self.audit.is_some());
        }
    }

    /// Reads the events so far, which the trace would else overwrite. The message buffer is lost.
    pub fn go_on_with_audit(&mut self) {
        if let Some(mut audit) = self.audit.take() {
            audit.lost |= !collect(self, &mut audit.next, &mut audit.accounts).unwrap_or(false);
            self.audit = Some(audit);
        }
    }

    /// Ends it: what differs is a finding. `ran`: whether the contexts that were run are looked at, too.
    pub fn end_audit(&mut self, ran: bool, check: &mut Check) {
        let Some(audit) = self.audit.take() else { return };
        let others = if ran { self.ran.borrow().clone() } else { Vec::new() };
        let ended = audit.end(self, &others, check);
        let off = Lab::PLATFORM.set_trace(0, 0);
        let _ = check.good("the trace off", off);
        match check.good("the trace", ended) {
            Some(true) => self.audits.agreed += 1,
            _ => self.audits.too_long += 1,
        }
    }
}
