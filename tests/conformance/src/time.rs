//! `Plan`, `Cpu`: windows, dispatch, news, the ledger.

use moira_abi::{Error, Method, Rights, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, code_of, invoke};
use moira_sys::{Blocked, Capability, Cpu, Deadline, Dispatched, Frame, FrameSize, Plan, SchedContext, Slot};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("dispatch-answers", answers);
    lab.experiment("dispatch-errors", errors);
    lab.experiment("dispatch-nobody", nobody);
    lab.experiment("news-log-and-status-page", news);
    lab.experiment("news-in-between-is-never-lost", in_between);
    lab.experiment("scheduler-errors", scheduler);
    lab.experiment("status-page-ends-with-its-frame", status_frame);
    lab.experiment("plan-arguments", plan_arguments);
    lab.experiment("plan-of-a-dead-context", plan_of_the_dead);
    lab.experiment("cpu-install-errors", install_errors);
    lab.experiment("ledger-adds-up", ledger);
    // The last one: from here on there is a plan.
    lab.experiment("plan-windows-hold", windows);
}

fn raw(method: Method, slot: u64, words: [u64; 3]) -> Result<[u64; 8], Error> {
    let [a, b, c] = words;
    invoke(code_of(method), slot, [a, b, c, 0, 0, 0, 0, 0], 0).check()
}

fn context(puppet: &Puppet) -> SchedContext {
    puppet.context.unwrap_or(SchedContext::new(Slot::NONE))
}

fn answers(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let subject = context(&puppet);
    let token = lab.sequence();
    check.equal(
        "an old token",
        Lab::dispatch(Some(subject), Deadline::NEVER, token.wrapping_sub(1)),
        Ok(Dispatched::Stale),
    );
    check.equal("a token to come", Lab::dispatch(Some(subject), Deadline::NEVER, token + 1), Ok(Dispatched::Stale));
    let stopped = |outcome| matches!(outcome, Ok(Dispatched::Blocked { kind: Blocked::Stopped, deadline: 0, .. }));
    check.holds("stopped", stopped(Lab::dispatch(Some(subject), Deadline::NEVER, token)));
    check.good("count", puppet.set(lab, Stub::Count, Registers::default()));
    check.holds("that is news", lab.sequence() == token + 1);
    let until = Deadline::after(lab.micros(500));
    check.equal("until", Lab::dispatch(Some(subject), until, lab.sequence()), Ok(Dispatched::Until));
    check.holds("not before", moira_sys::now() >= until.0);
    check.equal("a time that passed", Lab::dispatch(Some(subject), Deadline(1), lab.sequence()), Ok(Dispatched::Until));
}

fn errors(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let slot = lab.slots(3);
    let subject = u64::from(context(&puppet).slot().0);
    let token = lab.sequence();
    let dispatch = |cpu: u64, context: u64| raw(Method::Dispatch, cpu, [context, 0, token]).err();
    check.equal("itself", dispatch(6, 5), Some(Error::BadArgument));
    check.equal("no context", dispatch(6, 4), Some(Error::WrongType));
    check.equal("empty", dispatch(6, slot.0.into()), Some(Error::Empty));
    check.equal("outside", dispatch(6, u64::MAX), Some(Error::NoSlot));
    check.good("weak", Lab::TABLE.copy(Lab::CPU, slot, Rights::PLAN));
    check.equal("without DISPATCH", dispatch(slot.0.into(), subject), Some(Error::NoRight));
    check.good("context", lab.arena.retype_contexts(1, slot.plus(1)));
    check.equal("inactive", dispatch(6, slot.plus(1).0.into()), Some(Error::Inactive));
    let by_puppet = puppet.invoke(lab, code_of(Method::Dispatch), 6, &[0, 0, token]);
    check.equal("not the scheduler", crate::thread::answered(by_puppet), Some(Err(Error::NoRight)));
}

fn nobody(lab: &mut Lab, check: &mut Check) {
    let counted = lab.option("clock") == Some("counted");
    let least = if counted { lab.micros(400) } else { 1 };
    let mut idle = 0;
    // A busy host may take the processor away until the time is over.
    for _ in 0..if counted { 1 } else { 1_000 } {
        let until = Deadline::after(lab.micros(500));
        let before = Lab::CPU.ledger(&mut lab.buffer).map_or(0, |ledger| ledger.idle);
        check.equal("idle until", Lab::dispatch(None, until, lab.sequence()), Ok(Dispatched::Until));
        check.holds("not before", moira_sys::now() >= until.0);
        idle = Lab::CPU.ledger(&mut lab.buffer).map_or(0, |ledger| ledger.idle) - before;
        if idle >= least {
            break;
        }
    }
    check.holds("idle time", idle >= least);
}

fn news(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    let deadline = Deadline::after(lab.micros(10_000_000));
    check.good("prepare", puppet.prepare(lab, code_of(Method::Wait), whole.slot().0.into(), &[], deadline.0));
    check.equal("waits", puppet.run(lab), Ok(Outcome::Waits(deadline.0)));
    let word = lab.context_word(puppet.index, 0);
    check.equal("kind", word & 0xffff_ffff, 1);
    check.equal("deadline", lab.context_word(puppet.index, 1), deadline.0);
    check.equal("sequence", lab.context_word(puppet.index, 2), lab.sequence());
    let consumed = context(&puppet).consumed().map(|used| used.own + used.lost);
    check.equal("consumed", Ok(lab.context_word(puppet.index, 3)), consumed);
    let before = lab.sequence();
    check.good("signal", one.signal());
    check.equal("one piece of news", lab.sequence(), before + 1);
    check.equal("about the thread on the page", u64::from(lab.news(before)), word >> 32);
    check.good("stop", puppet.thread.stop());
    check.equal("nobody watched any more", lab.sequence(), before + 1);
}

/// Whatever happens after the scheduler read its token makes it stale.
fn in_between(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    for _ in 0..50 {
        check.equal(
            "waits",
            puppet.invoke(lab, code_of(Method::Wait), whole.slot().0.into(), &[]),
            Ok(Outcome::Waits(0)),
        );
        let token = lab.sequence();
        check.good("signal", one.signal());
        check.equal("stale", Lab::dispatch(Some(context(&puppet)), Deadline::NEVER, token), Ok(Dispatched::Stale));
        check.holds("then it runs", matches!(puppet.run(lab), Ok(Outcome::Answered(_))));
    }
}

fn scheduler(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(4);
    let Some(frame) =
        check.good("frame", lab.arena.retype_frames(FrameSize::Small, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    check.good("context", lab.arena.retype_contexts(1, slot.plus(1)));
    check.good("weak frame", Lab::TABLE.copy(frame, slot.plus(2), Rights::READ));
    check.good("weak CPU", Lab::TABLE.copy(Lab::CPU, slot.plus(3), Rights::DISPATCH));
    let s = |index: u32| u64::from(slot.plus(index).0);
    for (name, cpu, words, error) in [
        ("no right", s(3), [5, s(0), 0], Error::NoRight),
        ("no context", 6, [4, s(0), 0], Error::WrongType),
        ("no frame", 6, [5, 4, 0], Error::WrongType),
        ("frame outside", 6, [5, 0, 0], Error::NoSlot),
        ("read-only frame", 6, [5, s(2), 0], Error::NoRight),
        ("inactive context", 6, [s(1), s(0), 0], Error::Inactive),
    ] {
        check.equal(name, raw(Method::CpuSetScheduler, cpu, words).err(), Some(error));
    }
}

/// The kernel must not write to a status page whose memory is something else by now.
fn status_frame(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let address = lab.address(1);
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(frame) =
        check.good("frame", memory.retype_frames(FrameSize::Small, 1, slot.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    check.equal("waits", puppet.invoke(lab, code_of(Method::Wait), whole.slot().0.into(), &[]), Ok(Outcome::Waits(0)));
    check.good("another page", Lab::CPU.set_scheduler(Lab::CONTEXT, frame));
    check.good("revoke", memory.revoke_fully());
    let frame = memory
        .retype_frames(FrameSize::Small, 1, slot.plus(1))
        .ok()
        .and_then(|made| made.get(0))
        .unwrap_or(Frame::new(Slot::NONE));
    check.good("map", {
        use moira_sys::Space;
        Lab::SPACE.map(frame, address, moira_sys::MapFlags::READ)
    });
    check.good("news", one.signal());
    check.holds("nothing was written", (0..512).all(|word| moira_lab::stored(address + word * 8) == 0));
    check.good("the old page again", lab.register());
    check.holds("works", matches!(puppet.run(lab), Ok(Outcome::Answered(_))));
}

fn plan(lab: &mut Lab, check: &mut Check) -> Option<Plan> {
    let slot = lab.slots(1);
    check.good("plan", lab.arena.retype_plan(9, slot))
}

fn plan_arguments(lab: &mut Lab, check: &mut Check) {
    let Some(plan) = plan(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let subject = context(&puppet);
    check.equal("not cleared", plan.append(subject, 0, 1000), Err(Error::BadPlan));
    for length in [0, 1, 999, (1 << 44) + 1, u64::MAX] {
        check.equal("length", plan.clear(length), Err(Error::BadArgument));
    }
    check.good("clear", plan.clear(100_000));
    for (start, end) in [
        (0, 0),
        (0, 999),
        (1000, 500),
        (0, 100_001),
        (u64::MAX, 10),
        (u64::MAX - 5000, u64::MAX),
        (99_500, 100_000),
        (1 << 63, 1 << 63),
    ] {
        check.equal("window", plan.append(subject, start, end), Err(Error::BadPlan));
    }
    check.good("window", plan.append(subject, 0, 1000));
    check.equal("overlap", plan.append(subject, 999, 5000), Err(Error::BadPlan));
    check.good("next to it", plan.append(subject, 1000, 2000));
    let word = u64::from(plan.slot().0);
    check.equal("no context", raw(Method::PlanAppend, word, [4, 2000, 3000]).err(), Some(Error::WrongType));
    check.equal("outside", raw(Method::PlanAppend, word, [0, 2000, 3000]).err(), Some(Error::NoSlot));
    let slot = lab.slots(1);
    check.good("context", lab.arena.retype_contexts(1, slot));
    check.equal("no home", plan.append(SchedContext::new(slot), 2000, 3000), Err(Error::Inactive));
    // 512 bytes: fourteen windows.
    for window in 2..14u64 {
        check.good("window", plan.append(subject, window * 1000, window * 1000 + 1000));
    }
    check.equal("full", plan.append(subject, 50_000, 60_000), Err(Error::NoMemory));
    check.good("clear", plan.clear(1000));
    check.good("the whole cycle", plan.append(subject, 0, 1000));
}

fn plan_of_the_dead(lab: &mut Lab, check: &mut Check) {
    let Some(plan) = plan(lab, check) else { return };
    let slot = lab.slots(2);
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(doomed) = check.good("context", memory.retype_contexts(1, slot.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    check.good("home", doomed.set_home(Lab::CPU));
    check.good("clear", plan.clear(1_000_000));
    check.good("append", plan.append(doomed, 0, 500_000));
    check.good("revoke", memory.revoke_fully());
    // A window is believed only while its context lives here: it is slack.
    check.good("install", Lab::CPU.install_plan(Some(plan)));
    check.equal("clear", plan.clear(1_000_000), Err(Error::Active));
    check.good("leave", moira_sys::fully(|| Lab::CPU.install_plan(None)));
}

fn install_errors(lab: &mut Lab, check: &mut Check) {
    let Some(plan) = plan(lab, check) else { return };
    let slot = lab.slots(1);
    check.equal("empty", Lab::CPU.install_plan(Some(plan)), Err(Error::BadPlan));
    check.good("clear", plan.clear(100_000));
    check.equal("without windows", Lab::CPU.install_plan(Some(plan)), Err(Error::BadPlan));
    check.equal("no plan", raw(Method::CpuInstallPlan, 6, [4, 0, 0]).err(), Some(Error::WrongType));
    check.equal("outside", raw(Method::CpuInstallPlan, 6, [1, 0, 0]).err(), Some(Error::NoSlot));
    let Some(weak) = check.good("weak", Lab::TABLE.copy(Lab::CPU, slot, Rights::DISPATCH)) else { return };
    check.equal("without PLAN", Cpu::install_plan(weak, Some(plan)), Err(Error::NoRight));
    check.equal("none, without PLAN", Cpu::install_plan(weak, None), Err(Error::NoRight));
}

fn ledger(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.good("count", puppet.set(lab, Stub::Count, Registers::default()));
    check.good("run", lab.run(context(&puppet), 2_000));
    check.good("idle", Lab::dispatch(None, Deadline::after(lab.micros(300)), lab.sequence()));
    for _ in 0..10 {
        let Some(ledger) = check.good("ledger", Lab::CPU.ledger(&mut lab.buffer)) else { return };
        check.equal("all parts make the whole", ledger.contexts + ledger.idle + ledger.interrupts, ledger.elapsed);
        check.holds("contexts include the dead", ledger.gone <= ledger.contexts);
    }
    check.good("stop", puppet.thread.stop());
    let read = puppet.invoke(lab, code_of(Method::CpuLedger), 6, &[]);
    check.equal("without a buffer", crate::thread::answered(read), Some(Err(Error::NotMapped)));
}

/// A plan with a window for this thread and one for a puppet that never stops: both get theirs.
fn windows(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let home = lab.home;
    let Some(plan) = check.good("plan", home.retype_plan(9, slot)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let cycle = lab.micros(20_000);
    check.good("clear", plan.clear(cycle));
    check.good("mine", plan.append(Lab::CONTEXT, 0, cycle / 2));
    check.good("its", plan.append(context(&puppet), cycle / 2, cycle / 4 * 3));
    check.good("count", puppet.set(lab, Stub::Count, Registers::default()));
    check.good("install", Lab::CPU.install_plan(Some(plan)));
    check.equal("installed", plan.clear(cycle), Err(Error::Active));
    check.equal("installed", plan.append(Lab::CONTEXT, cycle / 4 * 3, cycle), Err(Error::Active));
    check.equal("installed", Lab::CPU.install_plan(Some(plan)), Err(Error::Active));
    let begin = moira_sys::now();
    while moira_sys::now() - begin < cycle * 10 {
        lab.go_on_with_audit();
    }
    let got = || context(&puppet).consumed().map_or(0, |used| used.own);
    if lab.option("clock") == Some("counted") {
        let got = got();
        let a_quarter = got > cycle * 2 && got < cycle * 3;
        check.holds(&alloc::format!("a quarter of ten cycles: {got} of {}", cycle * 10), a_quarter);
    } else {
        // Where the TSC counts the host's other work too, nothing but that its windows come means anything.
        check.holds("its windows come", within(lab, cycle * 1_000, || got() > cycle / 2));
    }
    // The puppet dies: its window is slack, and the plan goes on.
    check.good("revoke", lab.arena.revoke_fully());
    let begin = moira_sys::now();
    while moira_sys::now() - begin < cycle * 2 {
        lab.go_on_with_audit();
    }
    check.equal("still installed", plan.clear(cycle), Err(Error::Active));
    // Another plan takes over at the end of a cycle; two at once do not wait.
    let Some(second) = check.good("plan", home.retype_plan(9, slot.plus(1))) else { return };
    check.good("clear", second.clear(cycle));
    check.good("all of it", second.append(Lab::CONTEXT, 0, cycle));
    check.good("install", Lab::CPU.install_plan(Some(second)));
    check.holds("one at a time", matches!(Lab::CPU.install_plan(None), Err(Error::Again) | Ok(())));
    check.holds("the first is free", within(lab, cycle * 1_000, || plan.clear(cycle) != Err(Error::Active)));
}

/// Whether something comes to be so before so many ticks have passed.
fn within(lab: &mut Lab, ticks: u64, mut so: impl FnMut() -> bool) -> bool {
    let begin = moira_sys::now();
    while !so() {
        lab.go_on_with_audit();
        if moira_sys::now() - begin > ticks {
            return false;
        }
    }
    true
}
