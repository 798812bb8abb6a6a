//! Calls, replies, receives, waits, faults.
//!
//! Callers are not queued. A blocked caller keeps its registers, and its call is decoded again whenever its context is chosen
//! ([`retry`]). Between two threads of one CPU a call and its reply switch directly, on the caller's time.

use crate::{
    cap,
    memory::{self, Obj},
    object::{
        cap_table::CapTable,
        endpoint::Endpoint,
        notification::Notification,
        sched_context::SchedContext,
        thread::{self, Dispatch, State, Thread, reg},
    },
    panic,
    percpu::Cpu,
    sched, smp, switch, trace, wait,
};
use moira_abi::{Error, FrameSize, MESSAGE_CAPS, ObjectType, Rights, Tag, fault, time};

/// What became of an attempt to hand a call over.
pub enum Attempt {
    /// This thread runs next: the server with the request, or the caller with an error.
    Ready(Obj<Thread>),
    /// The server serves somebody else: whoever wants this call done helps it.
    Busy(Obj<Thread>),
}

/// The server that a call through an endpoint would reach, if it may.
#[inline(always)]
fn server_of(cpu: &Cpu, caller: Obj<Thread>, endpoint: Obj<Endpoint>) -> Result<Obj<Thread>, Error> {
    let server = endpoint.server.embedded::<Thread>().ok_or(Error::PeerGone)?;
    if server.header.home() != cpu.index {
        return Err(Error::WrongCpu);
    }
    if server.level.get() <= caller.level.get() {
        return Err(Error::WrongLevel);
    }
    Ok(server)
}

/// `call`. The common case is tested as a whole; whatever is not it is decoded again, with a reason, by [`retry`].
#[inline(always)]
pub fn call(cpu: &'static Cpu, caller: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    if let Some((server, badge)) = waiting_server(cpu, caller) {
        if tag.is_long() {
            return call_long(cpu, caller, server, tag, badge);
        }
        deliver(caller, server, tag, badge);
        return go(cpu, server);
    }
    call_slow(cpu, caller)
}

/// The server that a call reaches, if everything about the call is in order and the server waits for one here.
fn waiting_server(cpu: &Cpu, caller: Obj<Thread>) -> Option<(Obj<Thread>, u64)> {
    let table = caller.table.embedded::<CapTable>()?;
    let cap = cap::slot_of(table, caller.regs[reg::RDI].get()).ok()?.read_quiet()?;
    if !cap.word.is(ObjectType::Endpoint, Rights::CALL) {
        return None;
    }
    let server = Obj::<Endpoint>::from_word(cap.word)?.server.embedded::<Thread>()?;
    let ready = server.header.home() == cpu.index
        && server.level.get() > caller.level.get()
        && server.state.get() == State::Receiving
        && !server.watched.get();
    ready.then_some((server, cap.badge))
}

#[inline(never)]
fn call_slow(cpu: &'static Cpu, caller: Obj<Thread>) -> Obj<Thread> {
    caller.state.set(State::Calling);
    go_on(cpu, retry(cpu, caller, true))
}

/// A call with a buffer or capabilities to a server that waits for it.
#[inline(never)]
fn call_long(cpu: &'static Cpu, caller: Obj<Thread>, server: Obj<Thread>, tag: Tag, badge: u64) -> Obj<Thread> {
    go_on(cpu, deliver_long(cpu, caller, server, tag, badge, true))
}

#[inline(always)]
fn go_on(cpu: &'static Cpu, attempt: Attempt) -> Obj<Thread> {
    match attempt {
        Attempt::Ready(thread) if !cpu.must_choose.get() => go(cpu, thread),
        _ => sched::run_next(cpu),
    }
}

/// Hands a short message over: words, badge, states. Cannot fail.
#[inline(always)]
fn deliver(caller: Obj<Thread>, server: Obj<Thread>, tag: Tag, badge: u64) {
    words(caller, server);
    server.regs[reg::RAX].set(tag.with_low(0).0);
    server.regs[reg::RDI].set(badge);
    link(caller, server);
}

#[inline(always)]
fn link(caller: Obj<Thread>, server: Obj<Thread>) {
    server.state.set(State::Ready);
    server.caller.set(Some(caller));
    server.beneficiary.set(caller.beneficiary.get());
    caller.state.set(State::AwaitReply);
    caller.server.set(Some(server));
}

/// The opposite: from here on the server works for itself.
#[inline(always)]
fn unlink(caller: Obj<Thread>, server: Obj<Thread>, state: State) {
    caller.state.set(state);
    caller.server.set(None);
    server.caller.set(None);
    server.beneficiary.set(server.context.get());
}

/// Copies the message words. One by one: the kernel is built small, with loops as they stand.
#[inline(always)]
fn words(from: Obj<Thread>, to: Obj<Thread>) {
    let copy = |index: usize| to.regs[index].set(from.regs[index].get());
    let [w0, w1, w2, w3, w4, w5, w6, w7] = reg::WORDS;
    copy(w0);
    copy(w1);
    copy(w2);
    copy(w3);
    copy(w4);
    copy(w5);
    copy(w6);
    copy(w7);
}

/// Runs a thread that is ready, on the time of whoever is charged now.
#[inline(always)]
fn go(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    if switch::quickly(cpu, thread) { thread } else { go_slowly(cpu, thread) }
}

#[inline(never)]
fn go_slowly(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    trace::of(cpu, trace::SWITCH, thread, 0);
    if switch::to(cpu, thread) { thread } else { sched::run_next(cpu) }
}

/// Decodes a blocked call (or fault) again and hands it over if the server is free. `patient`: it may wait for the structural
/// lock, which Choose may not.
pub fn retry(cpu: &Cpu, caller: Obj<Thread>, patient: bool) -> Attempt {
    if caller.state.get() == State::Faulting {
        return retry_fault(cpu, caller);
    }
    let tag = caller.tag();
    let found = caller
        .table()
        .and_then(|table| table.read(caller.regs[reg::RDI].get()))
        .and_then(|cap| Ok((server_of(cpu, caller, cap.object::<Endpoint>(Rights::CALL)?)?, cap.badge)));
    match found {
        Ok((server, _)) if server.state.get() != State::Receiving => Attempt::Busy(server),
        Ok((server, badge)) => {
            sched::news(cpu, server);
            if tag.is_long() {
                return deliver_long(cpu, caller, server, tag, badge, patient);
            }
            deliver(caller, server, tag, badge);
            Attempt::Ready(server)
        }
        Err(error) => {
            caller.finish(Err(error));
            Attempt::Ready(caller)
        }
    }
}

/// Hands a message with a buffer or capabilities over, if nothing is wrong with it.
fn deliver_long(cpu: &Cpu, caller: Obj<Thread>, server: Obj<Thread>, tag: Tag, badge: u64, patient: bool) -> Attempt {
    match long(cpu, caller, server, tag, patient) {
        Ok(()) => {
            deliver(caller, server, tag, badge);
            received_caps(server, tag);
            return Attempt::Ready(server);
        }
        Err(Error::Again) => {
            // The structural lock is taken: the whole call runs again.
            restart(cpu, caller);
            caller.state.set(State::Ready);
        }
        Err(error) => caller.finish(Err(error)),
    }
    Attempt::Ready(caller)
}

/// The call runs again when the thread does.
#[cold]
pub fn restart(cpu: &Cpu, thread: Obj<Thread>) {
    trace::of(cpu, trace::RESTART, thread, thread.tag().low() as u64);
    thread.restart_call();
}

/// The buffer and the capabilities of a message: everything is checked before anything is done.
fn long(cpu: &Cpu, from: Obj<Thread>, to: Obj<Thread>, tag: Tag, patient: bool) -> Result<(), Error> {
    let (bytes, caps) = (tag.bytes(), tag.caps());
    if bytes > FrameSize::Small.bytes() as usize || caps > MESSAGE_CAPS {
        return Err(Error::BadArgument);
    }
    let buffers = if bytes == 0 { (0, 0) } else { (from.buffer()?, to.buffer()?) };
    if caps > 0 {
        smp::structural(cpu, patient, || transfer_caps(from, to, caps))?;
    }
    if bytes > 0 {
        memory::copy(buffers.0, buffers.1, bytes);
    }
    Ok(())
}

fn transfer_caps(from: Obj<Thread>, to: Obj<Thread>, caps: usize) -> Result<(), Error> {
    let (source, target) = (from.table()?, to.table().map_err(|_| Error::PeerSlots)?);
    let first = to.receive_slots.get() as u64;
    if first == 0 {
        return Err(Error::PeerSlots);
    }
    for i in 0..caps {
        let given = cap::slot_of(source, from.word(4 + i)).and_then(|slot| {
            let to = cap::slot_of(target, first + i as u64).map_err(|_| Error::PeerSlots)?;
            cap::derive(slot, to, Rights::ALL, None)
                .map_err(|error| if error == Error::SlotInUse { Error::PeerSlots } else { error })
        });
        if let Err(error) = given {
            // All or nothing: what was given already is taken back.
            for back in 0..i {
                cap::remove(cap::slot_of(target, first + back as u64)?);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn received_caps(to: Obj<Thread>, tag: Tag) {
    for i in 0..tag.caps() {
        to.set_word(4 + i, to.receive_slots.get() as u64 + i as u64);
    }
}

/// Hands a fault over to the handler as a message made by the kernel.
fn retry_fault(cpu: &Cpu, thread: Obj<Thread>) -> Attempt {
    let cap = thread.fault_endpoint.read();
    let found = cap.object::<Endpoint>(Rights::CALL).and_then(|endpoint| server_of(cpu, thread, endpoint));
    let Ok(server) = found else {
        stop_by_fault(cpu, thread);
        return Attempt::Busy(thread);
    };
    if server.state.get() != State::Receiving {
        return Attempt::Busy(server);
    }
    sched::news(cpu, server);
    let (vector, error, address) = thread.fault.get();
    server.answer4(vector - 1, error, thread.regs[reg::RIP].get(), address);
    server.set_word(4, thread.regs[reg::RSP].get());
    server.set_word(5, thread.regs[reg::RFLAGS].get());
    server.regs[reg::RAX].set(Tag::new(fault::FAULT_LABEL, 0, 0).0);
    server.regs[reg::RDI].set(cap.badge);
    thread.fault_call.set(true);
    link(thread, server);
    Attempt::Ready(server)
}

fn stop_by_fault(cpu: &Cpu, thread: Obj<Thread>) {
    thread.state.set(State::Stopped);
    sched::news(cpu, thread);
    let cap = thread.fault_notification.read();
    match Obj::<Notification>::from_word(cap.word) {
        Some(notification) if notification.signal(cpu, cap.badge) => cpu.must_choose.set(true),
        Some(_) => {}
        None => unhandled(thread),
    }
}

#[cold]
fn unhandled(thread: Obj<Thread>) {
    // Only the root task's fault is worth the time of the log: that it happens is the end. Others' stop is seen by who asks for it.
    if !thread::is_root(thread) {
        return;
    }
    let (number, (vector, error, address)) = (thread.physical(), thread.fault.get());
    let (vector, rip) = (vector.wrapping_sub(1), thread.regs[reg::RIP].get());
    crate::log!(
        "moira: task fault: thread {number:#x} vector {vector} error {error:#x} address {address:#x} rip {rip:#x}: no handler, stopped"
    );
    panic::root_fault(thread);
}

/// A thread caused an exception. It waits for its fault handler, or stops and its fault notification is signalled.
pub fn fault(cpu: &'static Cpu, thread: Obj<Thread>, vector: u64, error: u64, address: u64) -> Obj<Thread> {
    trace::of(cpu, trace::FAULT, thread, vector);
    thread.fault.set((vector + 1, error, address));
    if thread.fault_endpoint.is_empty() {
        stop_by_fault(cpu, thread);
    } else {
        thread.state.set(State::Faulting);
    }
    sched::run_next(cpu)
}

/// Ends the current caller's wait with the server's message. Answers the caller and whether it may run directly.
#[inline(always)]
fn answer(cpu: &Cpu, server: Obj<Thread>, tag: Tag) -> Result<(Obj<Thread>, bool), Error> {
    let Some(caller) = server.caller.get() else {
        // From here on it works for itself.
        server.beneficiary.set(server.context.get());
        return Err(if server.caller_gone.replace(false) { Error::CallerGone } else { Error::NoCaller });
    };
    if caller.fault_call.replace(false) {
        caller.full_exit.set(1);
    } else {
        let (mut tag, mut status) = (tag, 0);
        if tag.is_long()
            && let Err(error) = long(cpu, server, caller, tag, true)
        {
            if error == Error::Again {
                return Err(error);
            }
            // The caller must not hang on a message that cannot be delivered: it gets this error for an answer.
            trace::of(cpu, trace::FAULT, caller, error as u64);
            (tag, status) = (Tag(0), error as u8);
        }
        words(server, caller);
        received_caps(caller, tag);
        caller.regs[reg::RAX].set(tag.with_low(status).0);
        caller.regs[reg::RDI].set(0);
    }
    let direct = server.beneficiary.get() == cpu.chosen.get();
    unlink(caller, server, State::Ready);
    Ok((caller, direct))
}

/// The answer was not given: the call runs again where the structural lock is taken, else the server learns why.
fn unanswered(cpu: &'static Cpu, server: Obj<Thread>, error: Error) -> Obj<Thread> {
    if error != Error::Again {
        return server.done(Err(error));
    }
    restart(cpu, server);
    sched::resume(cpu, server)
}

/// `reply`.
pub fn reply(cpu: &'static Cpu, server: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    match answer(cpu, server, tag) {
        Ok((caller, _)) => {
            sched::news(cpu, caller);
            server.set_status(Ok(()));
            sched::run_next(cpu)
        }
        Err(error) => unanswered(cpu, server, error),
    }
}

/// `reply_receive`. A caller that died is no error here: the server goes on receiving.
#[inline(always)]
pub fn reply_receive(cpu: &'static Cpu, server: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    if let Some(caller) = server.caller.get()
        && !caller.fault_call.get()
        && !tag.is_long()
        && server.beneficiary.get() == cpu.chosen.get()
        && server.bound.get().is_none_or(|bound| !bound.pending())
    {
        // The caller waited for this answer, so it was not watched: its chain went on at the server.
        words(server, caller);
        caller.regs[reg::RAX].set(tag.with_low(0).0);
        caller.regs[reg::RDI].set(0);
        unlink(caller, server, State::Ready);
        begin_receiving(server);
        return go(cpu, caller);
    }
    reply_receive_slow(cpu, server, tag)
}

#[inline(always)]
fn begin_receiving(server: Obj<Thread>) {
    server.state.set(State::Receiving);
    server.deadline.set(server.regs[reg::R15].get());
}

#[inline(never)]
fn reply_receive_slow(cpu: &'static Cpu, server: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    match answer(cpu, server, tag) {
        Ok((caller, direct)) => {
            begin_receiving(server);
            // Bits and calls alternate: after a call, bits that wait come first (on the server's own time, or a helper's).
            if server.bound.get().is_some_and(|bound| bound.pending()) {
                wait::wakes(server, 0);
            }
            if direct && !cpu.must_choose.get() { go(cpu, caller) } else { sched::run_next(cpu) }
        }
        Err(Error::CallerGone | Error::NoCaller) => receive(cpu, server),
        Err(error) => unanswered(cpu, server, error),
    }
}

/// `receive`.
#[inline(never)]
pub fn receive(cpu: &'static Cpu, server: Obj<Thread>) -> Obj<Thread> {
    if server.caller.get().is_some() {
        return server.done(Err(Error::InUse));
    }
    server.caller_gone.set(false);
    server.beneficiary.set(server.context.get());
    begin_receiving(server);
    if wait::wakes(server, 0) && server.beneficiary.get() == cpu.beneficiary.get() {
        return server;
    }
    sched::run_next(cpu)
}

/// `park`: the faulting thread that is being served stays stopped; the server is free again.
pub fn park(cpu: &'static Cpu, server: Obj<Thread>) -> Obj<Thread> {
    let Some(caller) = server.caller.get() else { return server.done(Err(Error::NoCaller)) };
    if !caller.fault_call.replace(false) {
        return server.done(Err(Error::BadArgument));
    }
    unlink(caller, server, State::Stopped);
    server.set_status(Ok(()));
    sched::news(cpu, caller);
    // The time may have been the parked thread's: who goes on is decided anew.
    sched::run_next(cpu)
}

/// `dispatch`: W0 context slot (0 none), W1 until, W2 token.
#[inline(never)]
pub fn dispatch(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    match decode_dispatch(cpu, thread) {
        Err(error) => thread.done(Err(error)),
        Ok(d) if d.token != cpu.sequence.get() => {
            thread.answer4(time::dispatch::STALE, 0, 0, 0);
            thread.set_word(4, 0);
            thread.done(Ok(()))
        }
        Ok(d) => {
            thread.dispatch.set(d);
            cpu.dispatched.set(0);
            thread.state.set(State::InDispatch);
            sched::run_next(cpu)
        }
    }
}

fn decode_dispatch(cpu: &Cpu, thread: Obj<Thread>) -> Result<Dispatch, Error> {
    let table = thread.table()?;
    let target: Obj<Cpu> = table.object(thread.regs[reg::RDI].get(), Rights::DISPATCH)?;
    if target.index != cpu.index {
        return Err(Error::WrongCpu);
    }
    let scheduler = cpu.scheduler.get().ok_or(Error::Inactive)?;
    if thread.context.get() != Some(scheduler) {
        return Err(Error::NoRight);
    }
    let mut context = None;
    if thread.word(0) != 0 {
        let named: Obj<SchedContext> = table.object(thread.word(0), Rights::USE)?;
        if named == scheduler {
            return Err(Error::BadArgument);
        }
        named.header.active_on(cpu.index)?;
        context = Some(named);
    }
    Ok(Dispatch { context, until: thread.word(1), token: thread.word(2) })
}
