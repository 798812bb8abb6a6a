//! Notifications as threads use them: signal, wait, poll, and what ends a wait or a receive.

use crate::{
    memory::Obj,
    object::{
        notification::Notification,
        thread::{State, Thread, reg},
    },
    percpu::Cpu,
    sched,
};
use moira_abi::{Error, Rights};

/// Whether a receiving or waiting thread has something to wake up for; then it is made ready with it.
#[inline(always)]
pub fn wakes(thread: Obj<Thread>, now: u64) -> bool {
    let waiting = thread.state.get() == State::Waiting;
    let source = if waiting { thread.waits.get() } else { thread.bound.get() };
    if let Some(notification) = source
        && notification.pending()
    {
        let bits = notification.take();
        if waiting {
            notification.detach();
            thread.waits.set(None);
        }
        thread.answer1(bits);
        thread.finish(if waiting { Ok(()) } else { Err(Error::Notified) });
        return true;
    }
    let deadline = thread.deadline.get();
    if deadline != 0 && deadline <= now {
        if let Some(notification) = thread.waits.take() {
            notification.detach();
        }
        thread.finish(Err(Error::Timeout));
        return true;
    }
    false
}

#[inline(always)]
fn notification(thread: Obj<Thread>, rights: Rights) -> Result<(Obj<Notification>, u64), Error> {
    let cap = thread.table()?.read(thread.regs[reg::RDI].get())?;
    Ok((cap.object(rights)?, cap.badge))
}

/// `signal`.
#[inline(always)]
pub fn signal(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    match notification(thread, Rights::SIGNAL) {
        Ok((target, bits)) => {
            thread.set_status(Ok(()));
            target.set(bits);
            if target.waiter().is_some() { tell(cpu, thread, target) } else { thread }
        }
        Err(error) => thread.done(Err(error)),
    }
}

/// Wakes the waiter of a notification; answers who runs next.
#[inline(never)]
fn tell(cpu: &'static Cpu, thread: Obj<Thread>, target: Obj<Notification>) -> Obj<Thread> {
    if target.wake(cpu) { sched::run_next(cpu) } else { thread }
}

/// `wait`.
#[inline(always)]
pub fn wait(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    let target = match notification(thread, Rights::WAIT) {
        Ok((target, _)) => target,
        Err(error) => return thread.done(Err(error)),
    };
    if target.pending() {
        thread.answer1(target.take());
        return thread.done(Ok(()));
    }
    if let Err(error) = target.attach(thread, false) {
        return thread.done(Err(error));
    }
    thread.waits.set(Some(target));
    thread.state.set(State::Waiting);
    thread.deadline.set(thread.regs[reg::R15].get());
    sched::run_next(cpu)
}

/// `poll`.
pub fn poll(thread: Obj<Thread>) -> Obj<Thread> {
    thread.done(notification(thread, Rights::WAIT).map(|(target, _)| thread.answer1(target.take())))
}
