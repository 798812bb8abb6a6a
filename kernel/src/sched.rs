//! Who runs: plans, Walk, Choose, the timer, the news for the scheduler, the ledger. The rules: `docs/architecture/time.md`.
//!
//! There is no run queue and no timeout queue. At each decision the kernel walks from a context along its chain of calls, at most
//! eight steps because calls only go to higher levels, and takes the first of: the current window's context, the scheduler, what
//! the scheduler dispatched, idle.

use crate::{
    arch, checks, ipc,
    memory::Obj,
    object::{
        life,
        sched_context::SchedContext,
        thread::{State, Thread},
        vcpu,
    },
    percpu::Cpu,
    smp, switch, trace, wait,
};
use core::sync::atomic::Ordering::*;
use moira_abi::{
    Error,
    time::{NEWS_LOG, StatusPage, blocked, dispatch},
    vcpu::Exit,
};
use moira_kernel_core::plan;

/// Where a walk ends.
pub enum Walked {
    /// This thread runs (or its guest).
    Run(Obj<Thread>),
    /// Blocked at a thread until a deadline (0: none).
    Blocked(Obj<Thread>, u64),
    /// The context has no thread.
    Gone,
}

/// Books the time since the last change of account.
#[inline(always)]
pub fn charge(cpu: &Cpu) -> u64 {
    let now = arch::now();
    let ticks = now.wrapping_sub(cpu.account_since.replace(now));
    match cpu.chosen.get() {
        Some(context) => {
            cpu.charged.set(cpu.charged.get() + ticks);
            if cpu.in_dispatch.get() {
                cpu.dispatched.set(cpu.dispatched.get() + ticks);
            }
            let whom = cpu.beneficiary.get();
            context.charge(ticks, if cfg!(feature = "mischarge-help") { Some(context) } else { whom });
        }
        None => cpu.idle.set(cpu.idle.get() + ticks),
    }
    now
}

/// Books the time since the last change of account as interrupt handling, for the context that is its owner, if it lives here.
pub fn charge_interrupt(cpu: &Cpu, owner: Option<Obj<SchedContext>>) {
    let now = arch::now();
    let ticks = now.wrapping_sub(cpu.account_since.replace(now));
    cpu.interrupt_time.set(cpu.interrupt_time.get() + ticks);
    if let Some(owner) = if cfg!(feature = "mischarge-interrupt") { cpu.chosen.get() } else { owner } {
        owner.interrupts.set(owner.interrupts.get() + ticks);
    }
}

/// Number of a thread in the news: its address in units of its size.
fn number(thread: Obj<Thread>) -> u32 {
    (thread.physical() >> 10) as u32
}

/// Tells the scheduler that a watched thread woke, resumed or died.
#[inline(always)]
pub fn news(cpu: &Cpu, thread: Obj<Thread>) {
    if thread.watched.get() {
        publish(cpu, Some(thread));
    }
}

/// News of a thread; of none, number 0: another one became active, or another plan came in force.
#[cold]
fn publish(cpu: &Cpu, thread: Option<Obj<Thread>>) {
    let number = thread.map_or(0, |thread| {
        thread.watched.set(false);
        number(thread)
    });
    let Some(page) = cpu.status_page() else { return };
    let sequence = cpu.sequence.get();
    // The log entry first, the sequence last: a scheduler that sees the sequence sees the entry.
    smp::store_u32(page.0 + 16 + 4 * (sequence % NEWS_LOG as u64), number);
    page.write(8, cpu.account_since.get());
    cpu.sequence.set(sequence + 1);
    page.write(0, sequence + 1);
}

/// Registers the scheduler that was named for this CPU. It knows nothing yet: everything is news.
pub fn register(cpu: &Cpu) {
    let context = cpu.next_scheduler.swap(0, AcqRel);
    if context == 0 {
        return;
    }
    // SAFETY: a context that dies is taken out of `next_scheduler` first.
    cpu.scheduler.set(Some(unsafe { Obj::at(context) }));
    cpu.must_choose.set(true);
    cpu.sequence.set(cpu.sequence.get() + NEWS_LOG as u64 + 1);
    if let Some(page) = cpu.status_page() {
        page.write(0, cpu.sequence.get());
    }
}

/// Records that a context is blocked, for the scheduler. Answers how: `blocked`.
fn watch(cpu: &Cpu, context: Obj<SchedContext>, at: Obj<Thread>, deadline: u64) -> u64 {
    at.watched.set(true);
    let stopped = matches!(at.state.get(), State::Stopped | State::Inactive);
    let kind = if stopped { blocked::STOPPED } else { blocked::WAITING } as u64;
    if let Some(page) = cpu.status_page()
        && context.index.get() != u32::MAX
    {
        let words = core::mem::offset_of!(StatusPage, context) as u64 + context.index.get() as u64 * 32;
        page.write(words, kind | (number(at) as u64) << 32);
        page.write(words + 8, deadline);
        page.write(words + 16, cpu.sequence.get());
        page.write(words + 24, context.own.get() + context.lost.get());
    }
    kind
}

/// Follows a context's chain of calls to whoever has to run for it to go on.
#[inline(always)]
pub fn walk(cpu: &Cpu, context: Obj<SchedContext>, now: u64) -> Walked {
    let Some(thread) = context.thread.get() else { return Walked::Gone };
    // The usual ends of a chain that is no chain.
    match thread.state.get() {
        State::Ready => Walked::Run(thread),
        State::Receiving | State::Waiting if wait::wakes(thread, now) => Walked::Run(thread),
        State::Receiving | State::Waiting => Walked::Blocked(thread, thread.deadline.get()),
        _ => walk_on(cpu, thread, now),
    }
}

fn walk_on(cpu: &Cpu, first: Obj<Thread>, now: u64) -> Walked {
    let mut thread = first;
    // Levels rise along the chain; an endless one cannot be built, but the bound does not rest on that.
    for _ in 0..16 {
        match thread.state.get() {
            State::Ready => return Walked::Run(thread),
            State::AwaitReply => match thread.server.get() {
                Some(server) => thread = server,
                // The next look finds it ready.
                None => thread.finish(Err(Error::PeerGone)),
            },
            State::Calling | State::Faulting => match ipc::retry(cpu, thread, false) {
                ipc::Attempt::Ready(ready) => return Walked::Run(ready),
                ipc::Attempt::Busy(server) => thread = server,
            },
            State::Receiving | State::Waiting if wait::wakes(thread, now) => return Walked::Run(thread),
            State::Receiving | State::Waiting => return Walked::Blocked(thread, thread.deadline.get()),
            State::InGuest => {
                vcpu::check(thread, now);
                return Walked::Run(thread);
            }
            State::InDispatch if stays(cpu, thread, now) => {
                return Walked::Blocked(thread, thread.dispatch.get().until);
            }
            State::InDispatch => {
                let news = thread.dispatch.get().token != cpu.sequence.get();
                end_dispatch(cpu, thread, if news { dispatch::NEWS } else { dispatch::UNTIL }, 0, 0, 0);
                return Walked::Run(thread);
            }
            State::Inactive | State::Stopped => return Walked::Blocked(thread, 0),
        }
    }
    Walked::Gone
}

fn end_dispatch(cpu: &Cpu, thread: Obj<Thread>, code: u64, w1: u64, w2: u64, w3: u64) {
    thread.answer4(code, w1, w2, w3);
    thread.set_word(4, cpu.dispatched.take());
    thread.finish(Ok(()));
}

/// Chooses who runs, sets the timer, and answers the thread (its state says whether as itself or as its guest); `None`: idle.
pub fn choose(cpu: &Cpu) -> Option<Obj<Thread>> {
    let now = charge(cpu);
    cpu.choices.set(cpu.choices.get() + 1);
    cpu.must_choose.set(false);
    let stretch = stretch(cpu, now);
    let mut deadline = stretch.1;
    let mut choice = None;
    cpu.in_window.set(false);
    cpu.in_dispatch.set(false);
    // The scheduler's own window: its chain is not walked twice.
    let scheduler = cpu.scheduler.get();
    let at_dispatch = if stretch.0 == scheduler { scheduler.and_then(|own| in_dispatch(cpu, own, now)) } else { None };
    if let Some(context) = stretch.0
        && at_dispatch.is_none()
    {
        match walk(cpu, context, now) {
            Walked::Run(thread) => {
                cpu.in_window.set(true);
                choice = Some((context, thread));
            }
            Walked::Blocked(_, until) => earlier(&mut deadline, until),
            Walked::Gone => {}
        }
    }
    if choice.is_none()
        && let Some(scheduler) = scheduler
    {
        choice = choose_slack(cpu, scheduler, at_dispatch, now, &mut deadline);
    }
    // Before the mailbox is looked at once more (`run_next`).
    cpu.accept.store(!cpu.in_window.get(), SeqCst);
    cpu.chosen.set(choice.map(|(context, _)| context));
    let thread = choice.map(|(_, thread)| thread);
    if let Some(thread) = thread {
        if thread.state.get() == State::InGuest {
            earlier(&mut deadline, thread.guest_until.get());
        }
        // Until the next choice: calls and replies on one context's time do not change whom they are for.
        cpu.beneficiary.set(thread.beneficiary.get());
    }
    arch::apic::set_timer(cpu, deadline, now);
    trace::account(cpu, thread);
    thread
}

#[inline(always)]
fn earlier(deadline: &mut u64, other: u64) {
    if other != 0 && other < *deadline {
        *deadline = other;
    }
}

/// The thread of a context whose dispatch is in force, and stays so: what a walk would find, found sooner.
#[inline(always)]
fn in_dispatch(cpu: &Cpu, context: Obj<SchedContext>, now: u64) -> Option<Obj<Thread>> {
    context.thread.get().filter(|thread| thread.state.get() == State::InDispatch && stays(cpu, *thread, now))
}

/// Whether a dispatch stays in force.
#[inline(always)]
fn stays(cpu: &Cpu, thread: Obj<Thread>, now: u64) -> bool {
    let d = &thread.dispatch;
    d.get().token == cpu.sequence.get() && (d.get().until == 0 || d.get().until > now)
}

/// The slack's part of Choose: the scheduler if it can run, else what it dispatched. `at`: where its chain is known to be blocked.
#[inline(always)]
fn choose_slack(
    cpu: &Cpu,
    scheduler: Obj<SchedContext>,
    at: Option<Obj<Thread>>,
    now: u64,
    deadline: &mut u64,
) -> Option<(Obj<SchedContext>, Obj<Thread>)> {
    let thread = match at.or_else(|| in_dispatch(cpu, scheduler, now)) {
        Some(at) => {
            earlier(deadline, at.dispatch.get().until);
            at
        }
        None => match walk(cpu, scheduler, now) {
            Walked::Run(thread) => return Some((scheduler, thread)),
            Walked::Blocked(thread, until) => {
                earlier(deadline, until);
                thread
            }
            Walked::Gone => return None,
        },
    };
    if thread.state.get() != State::InDispatch {
        return None;
    }
    let context = thread.dispatch.get().context?;
    let (w1, w2, w3) = match walk(cpu, context, now) {
        Walked::Run(runner) => {
            cpu.in_dispatch.set(true);
            return Some((context, runner));
        }
        Walked::Blocked(at, until) => (watch(cpu, context, at, until), until, number(at) as u64),
        Walked::Gone => (blocked::GONE as u64, 0, 0),
    };
    end_dispatch(cpu, thread, dispatch::BLOCKED, w1, w2, w3);
    Some((scheduler, thread))
}

/// The current stretch of the plan: whose window, and until when.
#[inline(always)]
fn stretch(cpu: &Cpu, now: u64) -> (Option<Obj<SchedContext>>, u64) {
    let (owner, until) = cpu.stretch.get();
    if now < until && cpu.next_plan.load(Relaxed) == 0 {
        return (cpu.window_owner(owner), until);
    }
    next_stretch(cpu, now)
}

fn next_stretch(cpu: &Cpu, now: u64) -> (Option<Obj<SchedContext>>, u64) {
    if cpu.next_plan.load(Relaxed) != 0 {
        swap_plan(cpu, now);
    }
    let Some(plan) = cpu.plan.get() else {
        return (cpu.boot_context.get(), u64::MAX);
    };
    let mut position = cpu.position.get();
    let stretch = plan::advance(&mut position, plan.length.get(), plan.windows(), now);
    cpu.position.set(position);
    let owner = stretch.owner.unwrap_or(0);
    cpu.stretch.set((owner, stretch.until));
    let context = cpu.window_owner(owner);
    trace::event_at(cpu, now, trace::WINDOW, context.map_or(0, |context| context.physical()), stretch.until);
    (context, stretch.until)
}

/// Puts the next plan in force at the boundary of a cycle; at once if there is none yet.
fn swap_plan(cpu: &Cpu, now: u64) {
    let next = cpu.next_plan();
    let mut start = now;
    if let Some(old) = cpu.plan.get() {
        let end = cpu.position.get().cycle_start + old.length.get();
        if now < end {
            return;
        }
        start = now - (now - end) % old.length.get();
        old.header.life.store(life::INACTIVE, Release);
    }
    cpu.next_plan.store(0, Release);
    cpu.boot_context.set(None);
    cpu.plan.set(next);
    cpu.position.set(plan::Position { index: 0, cycle_start: start });
    publish(cpu, None);
}

/// A thread on this CPU got something to wake up for. Answers whether to choose.
#[inline(always)]
pub fn wake(cpu: &Cpu, thread: Obj<Thread>) -> bool {
    if !matches!(thread.state.get(), State::Waiting | State::Receiving | State::InGuest) {
        return false;
    }
    news(cpu, thread);
    !cpu.in_window.get()
}

/// A thread becomes ready to run at its registers.
pub fn make_ready(cpu: &Cpu, thread: Obj<Thread>) {
    thread.state.set(State::Ready);
    thread.beneficiary.set(thread.context.get());
    news(cpu, thread);
    if !cpu.in_window.get() {
        cpu.must_choose.set(true);
    }
}

/// A thread becomes active here. The scheduler may know its context, and found nobody behind it.
pub fn begin(cpu: &Cpu, thread: Obj<Thread>) {
    make_ready(cpu, thread);
    if thread.context.get().is_some() {
        publish(cpu, None);
    }
}

/// A chain of calls is cut above `first`, or the account it works for dies: whoever served that account works for its own
/// from now on. No thread may name an account that can die unseen.
pub fn disown(first: Obj<Thread>, account: Option<Obj<SchedContext>>) {
    let mut at = Some(first);
    // Levels rise along a chain.
    for _ in 0..8 {
        let Some(thread) = at else { return };
        if thread.beneficiary.get() == account {
            thread.beneficiary.set(None);
        }
        at = thread.server.get();
    }
}

/// Stops a thread wherever it is. What it waits for is let go of; what it serves stays.
pub fn halt(cpu: &Cpu, thread: Obj<Thread>) {
    match thread.state.get() {
        State::Waiting => {
            if let Some(waits) = thread.waits.take() {
                waits.detach();
            }
            thread.set_status(Err(Error::Timeout));
        }
        State::Receiving => thread.set_status(Err(Error::Timeout)),
        State::AwaitReply => {
            if let Some(server) = thread.server.take() {
                server.caller.set(None);
                server.caller_gone.set(true);
                disown(server, thread.beneficiary.get());
            }
            if !thread.fault_call.replace(false) {
                thread.set_status(Err(Error::PeerGone));
            }
        }
        State::Calling => thread.restart_call(),
        State::InGuest => vcpu::leave(thread, Exit::Kicked),
        State::InDispatch => end_dispatch(cpu, thread, dispatch::STALE, 0, 0, 0),
        _ => {}
    }
    thread.state.set(State::Stopped);
    news(cpu, thread);
}

/// Goes on until there is a thread to return to: chooses, idles, runs guests.
pub fn run_next(cpu: &'static Cpu) -> Obj<Thread> {
    loop {
        smp::drain(cpu);
        let chosen = choose(cpu);
        if cpu.accept.load(Relaxed) && smp::has_mail(cpu) {
            // However much there is, interrupts are not kept out longer than one go takes.
            let_in(cpu, arch::take_interrupts);
            continue;
        }
        let Some(thread) = chosen else {
            idle(cpu);
            continue;
        };
        if switch::to(cpu, thread) && (thread.state.get() != State::InGuest || vcpu::enter(cpu, thread)) {
            return thread;
        }
    }
}

/// Waits for an interrupt. Even epoch: nothing is held here.
fn idle(cpu: &Cpu) {
    smp::leave_kernel(cpu);
    if smp::has_mail(cpu) {
        smp::enter_kernel(cpu);
        return;
    }
    let_in(cpu, arch::halt);
    smp::enter_kernel(cpu);
}

/// Lets interrupts in.
#[inline(always)]
pub fn let_in(cpu: &Cpu, how: fn()) {
    checks::left(cpu);
    how();
    checks::again(cpu);
}

/// After a system call or trap: the same thread goes on, unless something asks for a choice.
#[inline(always)]
pub fn resume(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    if cpu.must_choose.get() || thread.state.get() != State::Ready { run_next(cpu) } else { thread }
}
