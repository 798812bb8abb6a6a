//! Calls and answers, who may call whom, and on whose time the server works.

use super::{CALL, REPLY, REPLY_RECEIVE, WORDS, endpoint, message, receives, server, slot};
use crate::thread::answered;
use alloc::vec::Vec;
use moira_abi::{Error, Method, Rights, Tag, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, code_of, invoke};
use moira_sys::{Blocked, Deadline, Dispatched, Endpoint, Message};

pub(super) fn call(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let minted = lab.slots(1);
    let Some(minted) = check.good("mint", Lab::TABLE.mint(endpoint, minted, Rights::CALL, 99)) else { return };
    // The client's time runs the server, which stops at the end of its stub: the client waits for its answer.
    let tag = Tag::new(0xabcd_0123, 0, 0).0 | CALL;
    check.good("prepare", client.prepare(lab, tag, slot(minted), &WORDS, 0));
    check.equal("the server has it", client.context.map(|context| lab.run(context, Lab::PATIENCE).is_ok()), Some(true));
    let Some(got) = check.good("outcome", server.outcome(lab)).and_then(|outcome| message(Ok(outcome))) else { return };
    check.equal("words", got.words, WORDS);
    check.equal("badge", got.badge, 99);
    check.equal("label", got.tag.label(), 0xabcd_0123);
    check.equal("status", got.tag.low(), 0);
    check.equal("the client waits", client.look(lab).err(), Some(Error::Active));
    // Server answers on its own time.
    let back = [8, 7, 6, 5, 4, 3, 2, 1];
    check.equal("reply", answered(server.invoke(lab, Tag::new(7, 0, 0).0 | REPLY, 0, &back)), Some(Ok(())));
    let Some(answer) = message(client.run(lab)) else {
        check.holds("an answer", false);
        return;
    };
    check.equal("words", answer.words, back);
    check.equal("label and status", (answer.tag.label(), answer.tag.low()), (7, 0));
    // One without time of its own answers on the client's.
    receives(lab, check, &server);
    check.good("prepare", client.prepare(lab, CALL, slot(endpoint), &WORDS, 0));
    check.good("run", client.run(lab));
    check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &back, 0));
    check.equal("answer", message(client.run(lab)).map(|answer| answer.words), Some(back));
    check.equal("the server receives again", server.run(lab), Ok(Outcome::Waits(0)));
}

pub(super) fn call_errors(lab: &mut Lab, check: &mut Check) {
    let Some((_, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let s = lab.slots(3);
    check.good("copy", Lab::TABLE.copy(endpoint, s, Rights::SERVE));
    check.good("unbound", lab.arena.retype_endpoints(1, s.plus(1)));
    let mut call = |tag: u64, capability: u64| answered(client.invoke(lab, tag | CALL, capability, &[]));
    check.equal("no right", call(0, s.0.into()), Some(Err(Error::NoRight)));
    check.equal("nobody serves", call(0, s.plus(1).0.into()), Some(Err(Error::PeerGone)));
    check.equal("empty", call(0, s.plus(2).0.into()), Some(Err(Error::Empty)));
    check.equal("type", call(0, 4), Some(Err(Error::WrongType)));
    check.equal("outside", call(0, 0), Some(Err(Error::NoSlot)));
    check.equal("bytes without a buffer", call(Tag::new(0, 1, 0).0, slot(endpoint)), Some(Err(Error::NotMapped)));
    check.equal("too many bytes", call(4097 << 12, slot(endpoint)), Some(Err(Error::BadArgument)));
    check.equal("far too many bytes", call(0x1fff << 12, slot(endpoint)), Some(Err(Error::BadArgument)));
    for caps in 5..8u64 {
        check.equal("too many capabilities", call(caps << 8, slot(endpoint)), Some(Err(Error::BadArgument)));
    }
    check.equal("no slots there", call(1 << 8, slot(endpoint)), Some(Err(Error::PeerSlots)));
    check.equal(
        "bind without SERVE",
        Lab::TABLE.copy(endpoint, s.plus(2), Rights::CALL).and_then(|weak| weak.bind(Lab::THREAD)),
        Err(Error::NoRight),
    );
}

pub(super) fn levels(lab: &mut Lab, check: &mut Check) {
    for (client, target) in [(1, 1), (2, 1), (7, 0), (7, 7), (0, 1), (0, 7), (6, 7), (3, 4)] {
        let Some((_, endpoint)) = check.good("server", server(lab, With::level(target))) else { return };
        let Some(client_puppet) = check.good("client", Puppet::new(lab, client)) else { return };
        let outcome = client_puppet.invoke(lab, CALL, slot(endpoint), &[]);
        if client >= target {
            check.equal(&alloc::format!("{client} to {target}"), answered(outcome), Some(Err(Error::WrongLevel)));
        } else {
            check.holds(&alloc::format!("{client} to {target}"), answered(outcome).is_none());
        }
    }
    let Some((_, endpoint)) = check.good("server", server(lab, With::level(7))) else { return };
    check.equal("the root task is on level 7", endpoint.call(&Message::new(0)).err(), Some(Error::WrongLevel));
}

pub(super) fn reply_errors(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("stop", server.thread.stop());
    check.equal("reply to nobody", answered(server.invoke(lab, REPLY, 0, &[])), Some(Err(Error::NoCaller)));
    check.equal("park nobody", answered(server.invoke(lab, code_of(Method::Park), 0, &[])), Some(Err(Error::NoCaller)));
    check.equal("reply to nobody and receive", server.invoke(lab, REPLY_RECEIVE, 0, &[]), Ok(Outcome::Waits(0)));
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[]));
    check.equal(
        "receive with a caller",
        answered(server.invoke(lab, code_of(Method::Receive), 0, &[])),
        Some(Err(Error::InUse)),
    );
    check.equal(
        "park one that did not fault",
        answered(server.invoke(lab, code_of(Method::Park), 0, &[])),
        Some(Err(Error::BadArgument)),
    );
    check.equal("reply", answered(server.invoke(lab, REPLY, 0, &[1])), Some(Ok(())));
    check.equal("twice", answered(server.invoke(lab, REPLY, 0, &[2])), Some(Err(Error::NoCaller)));
    check.equal("the client has the first", message(client.run(lab)).map(|answer| answer.words[0]), Some(1));
    check.good("stop", server.thread.stop());
    check.equal("receive", server.invoke(lab, code_of(Method::Receive), 0, &[]), Ok(Outcome::Waits(0)));
    // An answer that cannot be delivered is the caller's error.
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[]));
    check.equal("reply with bytes", answered(server.invoke(lab, Tag::new(0, 8, 0).0 | REPLY, 0, &[])), Some(Ok(())));
    check.equal("no buffer", answered(client.run(lab)), Some(Err(Error::NotMapped)));
}

pub(super) fn bind(lab: &mut Lab, check: &mut Check) {
    let Some((first, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(second) = check.good("puppet", Puppet::new(lab, 4)) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let bad = |words: u64| {
        invoke(code_of(Method::EndpointBind), slot(endpoint), [words, 0, 0, 0, 0, 0, 0, 0], 0).check().err()
    };
    check.equal("no thread", bad(3), Some(Error::WrongType));
    check.equal("outside", bad(1), Some(Error::NoSlot));
    check.good("another takes over", endpoint.bind(second.thread));
    receives(lab, check, &second);
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[5]));
    check.equal("the second has it", message(second.outcome(lab)).map(|got| got.words[0]), Some(5));
    check.equal("the first waits", first.run(lab), Ok(Outcome::Waits(0)));
}

pub(super) fn passive(lab: &mut Lab, check: &mut Check) {
    let Some(server) = check.good("server", Puppet::with(lab, With::level(5).passive())) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 2)) else { return };
    // It has not even come to its receive: the client's time brings it there.
    check.good("set", server.set(lab, Stub::Serve, Registers::default()));
    for round in 1..=20u64 {
        let answer = message(client.invoke(lab, CALL, slot(endpoint), &[round * 100]));
        check.equal("answer", answer.map(|answer| (answer.tag.low(), answer.words[0])), Some((0, round * 100 + 1)));
    }
    let used = client.context.and_then(|context| context.consumed().ok());
    check.holds("the client paid", used.is_some_and(|used| used.own > 0 && used.lost == used.gone));
}

pub(super) fn chain(lab: &mut Lab, check: &mut Check) {
    // Level 1 calls 2 calls 3 … calls 7: each waits for the next.
    let mut endpoints: Vec<(Puppet, Endpoint)> = Vec::new();
    for level in 2..=7 {
        let Some(made) = check.good("server", server(lab, With::level(level))) else { return };
        endpoints.push(made);
    }
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("call", client.invoke(lab, CALL, endpoints.first().map_or(0, |made| slot(made.1)), &[1]));
    for pair in 0..5 {
        let (Some((from, _)), Some((_, to))) = (endpoints.get(pair), endpoints.get(pair + 1)) else { return };
        check.good("prepare", from.prepare(lab, CALL, slot(*to), &[pair as u64], 0));
        check.equal(
            "on the first client's time",
            client.context.map(|context| lab.run(context, Lab::PATIENCE).is_ok()),
            Some(true),
        );
    }
    for (server, _) in endpoints.iter().rev() {
        check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &[42], 0));
        check.good("on the first client's time", client.run(lab));
        for (other, _) in endpoints.iter() {
            let _ = other.look(lab);
        }
    }
    check.equal("the end of it", message(client.outcome(lab)).map(|answer| answer.words[0]), Some(42));
}

pub(super) fn deadline(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    check.good("stop", server.thread.stop());
    check.good("receive", server.receive(lab, Deadline(1)));
    check.equal("past", answered(server.run(lab)), Some(Err(Error::Timeout)));
    let soon = Deadline::after(lab.micros(300));
    check.good("receive", server.receive(lab, soon));
    check.equal("waits until then", server.run(lab), Ok(Outcome::Waits(soon.0)));
    while moira_sys::now() < soon.0 {}
    check.equal("times out", answered(server.run(lab)), Some(Err(Error::Timeout)));
    let soon = Deadline::after(lab.micros(200_000));
    check.good("receive", server.receive(lab, soon));
    check.equal("waits", server.run(lab), Ok(Outcome::Waits(soon.0)));
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[3]));
    check.equal("a call before it", message(server.outcome(lab)).map(|got| got.words[0]), Some(3));
}

pub(super) fn helping(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(5).passive())) else { return };
    let (Some(first), Some(second)) =
        (check.good("client", Puppet::new(lab, 1)), check.good("client", Puppet::new(lab, 2)))
    else {
        return;
    };
    let Some(warm) = check.good("client", Puppet::new(lab, 1)) else { return };
    // The server's first receive happens on somebody's time; then it counts for the first client.
    check.good("set", server.thread.stop());
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.good("call", first.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("count", server.set(lab, Stub::Count, Registers::default()));
    check.equal("works for the first", first.run(lab), Ok(Outcome::Runs));
    // The second calls: its time runs the server, for the first.
    check.good("prepare", second.prepare(lab, CALL, slot(endpoint), &[2], 0));
    check.equal("helps", second.context.map(|context| lab.run(context, 20_000)), Some(Ok(Dispatched::Until)));
    let used = second.context.and_then(|context| context.consumed().ok());
    check.holds("and lost that time to the first", used.is_some_and(|used| used.lost > used.own));
    let got = first.context.and_then(|context| context.consumed().ok());
    check.holds("which got it", got.is_some_and(|got| used.is_some_and(|used| got.delivered == used.lost - used.gone)));
    // The server answers, on the second's time, and takes the second's call.
    check.good("stop", server.thread.stop());
    check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &[77], 0));
    check.good("run", second.run(lab));
    check.equal("the second is served", message(server.outcome(lab)).map(|got| got.words[0]), Some(2));
    check.equal("the first has its answer", message(first.run(lab)).map(|answer| answer.words[0]), Some(77));
    let _ = warm;
}

pub(super) fn stopped_server(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("stop", server.thread.stop());
    let blocked = |outcome: Option<Result<Dispatched, Error>>| {
        matches!(outcome, Some(Ok(Dispatched::Blocked { kind: Blocked::Stopped, .. })))
    };
    check.good("prepare", client.prepare(lab, CALL, slot(endpoint), &[1], 0));
    check.holds("blocked at a stopped server", blocked(client.context.map(|context| lab.run(context, Lab::PATIENCE))));
    check.good("a caller that waits can be stopped", client.thread.stop());
    check.good("and resumed", client.thread.resume());
    check.holds("to call again", blocked(client.context.map(|context| lab.run(context, Lab::PATIENCE))));
    let before = lab.sequence();
    check.good("the server goes on", server.receive(lab, Deadline::NEVER));
    check.holds("which is news", lab.sequence() > before);
    check.equal("receive ended by the stop", true, server.run(lab).is_ok());
}

pub(super) fn notified(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    check.good("bind", server.thread.bind_notification(whole));
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("signal", one.signal());
    // Bits and calls alternate: after the call, the bits come first.
    let outcome = server.invoke(lab, REPLY_RECEIVE, 0, &[5]);
    check.equal("notified", answered(outcome), Some(Err(Error::Notified)));
    check.equal("the client was answered", message(client.run(lab)).map(|answer| answer.words[0]), Some(5));
}
