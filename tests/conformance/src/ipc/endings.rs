//! One of those concerned ends in the middle of a call.

use super::{CALL, REPLY, REPLY_RECEIVE, endpoint, message, receives, server, slot};
use crate::thread::answered;
use alloc::vec::Vec;
use moira_abi::{Error, Method, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, code_of, stored};
use moira_sys::{Dispatched, FrameSize, MapFlags, Space, Untyped};

/// Puppets of a memory of their own, that can die alone.
fn mortal(lab: &mut Lab, make: impl FnOnce(&mut Lab) -> Result<Puppet, Error>) -> Result<(Untyped, Puppet), Error> {
    let slot = lab.slots(1);
    let arena = lab.arena;
    lab.arena = arena.retype_untypeds(14, 1, slot)?.get(0).ok_or(Error::NoSlot)?;
    let made = make(lab);
    let memory = core::mem::replace(&mut lab.arena, arena);
    Ok((memory, made?))
}

/// Makes something else of the memory of what died: a page, mapped at the address that comes back.
fn reuse(lab: &mut Lab, memory: Untyped) -> Result<u64, Error> {
    let (slot, address) = (lab.slots(1), lab.address(1));
    let frame = memory.retype_frames(FrameSize::Small, 1, slot)?.get(0).ok_or(Error::NoSlot)?;
    Lab::SPACE.map(frame, address, MapFlags::READ)?;
    Ok(address)
}

fn empty(page: u64) -> bool {
    (0..512).all(|word| stored(page + word * 8) == 0)
}

pub(super) fn server_dies(lab: &mut Lab, check: &mut Check) {
    let Some((memory, server)) = check.good("server", mortal(lab, |lab| Puppet::new(lab, 3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    receives(lab, check, &server);
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
    check.equal("waits for its answer", client.look(lab).err(), Some(Error::Active));
    check.good("revoke", memory.revoke_fully());
    check.equal("the caller is told", answered(client.run(lab)), Some(Err(Error::PeerGone)));
    check.equal(
        "and the next one",
        answered(client.invoke(lab, CALL, slot(endpoint), &[1])),
        Some(Err(Error::PeerGone)),
    );
}

pub(super) fn server_dies_queued(lab: &mut Lab, check: &mut Check) {
    let Some((memory, server)) = check.good("server", mortal(lab, |lab| Puppet::new(lab, 3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    receives(lab, check, &server);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
        check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
        clients.push(client);
    }
    check.good("revoke", memory.revoke_fully());
    for client in clients {
        check.equal("each is told", answered(client.run(lab)), Some(Err(Error::PeerGone)));
    }
}

pub(super) fn caller_dies(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some((memory, client)) = check.good("client", mortal(lab, |lab| Puppet::new(lab, 1))) else { return };
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("revoke", memory.revoke_fully());
    // The dead one's memory is something else now; the server's work must not be booked there.
    let Some(address) = check.good("reused", reuse(lab, memory)) else { return };
    check.good("count", server.set(lab, Stub::Count, Registers::default()));
    check.equal("runs", server.context.map(|context| lab.run(context, 2_000)), Some(Ok(Dispatched::Until)));
    check.good("stop", server.thread.stop());
    check.holds("nothing was written to it", empty(address));
    check.equal("reply", answered(server.invoke(lab, REPLY, 0, &[1])), Some(Err(Error::CallerGone)));
    check.equal("once", answered(server.invoke(lab, REPLY, 0, &[1])), Some(Err(Error::NoCaller)));
    let Some((memory, client)) = check.good("client", mortal(lab, |lab| Puppet::new(lab, 1))) else { return };
    check.equal("receive", server.invoke(lab, code_of(Method::Receive), 0, &[]), Ok(Outcome::Waits(0)));
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("revoke", memory.revoke_fully());
    check.equal("reply and receive goes on", server.invoke(lab, REPLY_RECEIVE, 0, &[1]), Ok(Outcome::Waits(0)));
    let used = server.context.and_then(|context| context.consumed().ok());
    check.holds("its own time", used.is_some_and(|used| used.own > 0));
}

/// The account of a caller ends while a chain of servers works for it; the caller itself lives.
pub(super) fn account_dies(lab: &mut Lab, check: &mut Check) {
    let Some((first, low)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some((second, high)) = check.good("server", server(lab, With::level(5))) else { return };
    let s = lab.slots(2);
    let Some(client) = check.good("client", Puppet::with(lab, With::level(1).passive())) else { return };
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, s)).and_then(|made| made.get(0)) else {
        return;
    };
    let Some(context) = check.good("context", memory.retype_contexts(1, s.plus(1))).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(client.thread, Lab::CPU));
    check.good("prepare", client.prepare(lab, CALL, slot(low), &[1], 0));
    check.good("run", lab.run(context, Lab::PATIENCE));
    check.good("prepare", first.prepare(lab, CALL, slot(high), &[2], 0));
    check.good("run", lab.run(context, Lab::PATIENCE));
    check.good("revoke", memory.revoke_fully());
    let Some(address) = check.good("reused", reuse(lab, memory)) else { return };
    check.good("count", second.set(lab, Stub::Count, Registers::default()));
    check.equal("runs", second.context.map(|context| lab.run(context, 2_000)), Some(Ok(Dispatched::Until)));
    check.good("stop", second.thread.stop());
    check.good("reply", second.invoke(lab, REPLY, 0, &[3]));
    check.good("count", first.run(lab));
    check.equal("the first server has its answer", message(first.outcome(lab)).map(|answer| answer.words[0]), Some(3));
    check.good("reply", first.invoke(lab, REPLY, 0, &[4]));
    check.holds("nothing was written to it", empty(address));
    // With another account the client goes on.
    let again = lab.slots(1);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, again)).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(client.thread, Lab::CPU));
    check.good("run", lab.run(context, Lab::PATIENCE));
    check.equal("the client has its answer", message(client.outcome(lab)).map(|answer| answer.words[0]), Some(4));
}

pub(super) fn endpoint_dies(lab: &mut Lab, check: &mut Check) {
    let s = lab.slots(2);
    let Some(server) = check.good("server", Puppet::new(lab, 3)) else { return };
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, s)).and_then(|made| made.get(0)) else {
        return;
    };
    let Some(endpoint) = check.good("endpoint", memory.retype_endpoints(1, s.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    check.good("bind", endpoint.bind(server.thread));
    receives(lab, check, &server);
    let (Some(served), Some(queued)) =
        (check.good("client", Puppet::new(lab, 1)), check.good("client", Puppet::new(lab, 1)))
    else {
        return;
    };
    check.good("call", served.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("call", queued.invoke(lab, CALL, slot(endpoint), &[2]));
    check.good("revoke", memory.revoke_fully());
    check.equal("the queued one's slot is empty", answered(queued.run(lab)), Some(Err(Error::Empty)));
    check.equal("the served one is answered", answered(server.invoke(lab, REPLY, 0, &[9])), Some(Ok(())));
    check.equal("its answer", message(served.run(lab)).map(|answer| answer.words[0]), Some(9));
}
