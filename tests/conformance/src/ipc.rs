//! `Endpoint`: calls, answers, faults as messages, helping.

use crate::thread::answered;
use alloc::vec::Vec;
use moira_abi::{
    Error, Method, Rights, Tag,
    fault::{FAULT_LABEL, Registers},
};
use moira_lab::{Answer, Check, Lab, Outcome, Puppet, Stub, With, code_of, invoke, store, stored};
use moira_sys::{Capability, Deadline, Endpoint, FrameSize, Message, Notification, Slot, Untyped};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("ipc-call-and-reply", call);
    lab.experiment("ipc-call-errors", call_errors);
    lab.experiment("ipc-levels", levels);
    lab.experiment("ipc-reply-errors", reply_errors);
    lab.experiment("ipc-bind", bind);
    lab.experiment("ipc-passive-server", passive);
    lab.experiment("ipc-chain-of-servers", chain);
    lab.experiment("ipc-buffer", buffer);
    lab.experiment("ipc-capabilities", capabilities);
    lab.experiment("ipc-capability-errors", capability_errors);
    lab.experiment("ipc-receive-deadline", deadline);
    lab.experiment("ipc-helping", helping);
    lab.experiment("ipc-server-dies", server_dies);
    lab.experiment("ipc-server-dies-with-callers-queued", server_dies_queued);
    lab.experiment("ipc-caller-dies", caller_dies);
    lab.experiment("ipc-account-dies-while-served", account_dies);
    lab.experiment("ipc-endpoint-dies", endpoint_dies);
    lab.experiment("ipc-stopped-server", stopped_server);
    lab.experiment("ipc-fault-message", fault_message);
    lab.experiment("ipc-fault-write-and-resume", fault_resume);
    lab.experiment("ipc-park", park);
    lab.experiment("ipc-fault-handler-below", fault_below);
    lab.experiment("ipc-notified-while-serving", notified);
}

const CALL: u64 = Method::Call as u64;
const REPLY: u64 = Method::Reply as u64;
const REPLY_RECEIVE: u64 = Method::ReplyReceive as u64;

fn slot(capability: impl Capability) -> u64 {
    capability.slot().0.into()
}

fn endpoint(lab: &mut Lab, server: &Puppet) -> Result<Endpoint, Error> {
    let slot = lab.slots(1);
    let endpoint = lab.arena.retype_endpoints(1, slot)?.get(0).ok_or(Error::NoSlot)?;
    endpoint.bind(server.thread)?;
    Ok(endpoint)
}

/// A server that receives now, and its endpoint.
fn server(lab: &mut Lab, with: With) -> Result<(Puppet, Endpoint), Error> {
    let server = Puppet::with(lab, with)?;
    let endpoint = endpoint(lab, &server)?;
    server.receive(lab, Deadline::NEVER)?;
    if server.context.is_some() && server.run(lab)? != Outcome::Waits(0) {
        return Err(Error::Active);
    }
    Ok((server, endpoint))
}

fn message(outcome: Result<Outcome, Error>) -> Option<Answer> {
    match outcome {
        Ok(Outcome::Answered(answer)) => Some(answer),
        _ => None,
    }
}

const WORDS: [u64; 8] = [11, 22, 33, 44, 55, 66, 77, 88];

fn call(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let minted = lab.slots(1);
    let Some(minted) = check.good("mint", Lab::TABLE.mint(endpoint, minted, Rights::CALL, 99)) else { return };
    // The client's time runs the server, which stops at the end of its stub: the client waits for its answer.
    let tag = Tag::new(0xabcd_0123, 0, 0).0 | CALL;
    check.good("prepare", client.prepare(lab, tag, slot(minted), &WORDS, 0));
    check.equal("the server has it", client.context.map(|context| lab.run(context, 100_000).is_ok()), Some(true));
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
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
    check.good("prepare", client.prepare(lab, CALL, slot(endpoint), &WORDS, 0));
    check.good("run", client.run(lab));
    check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &back, 0));
    check.equal("answer", message(client.run(lab)).map(|answer| answer.words), Some(back));
    check.equal("the server receives again", server.run(lab), Ok(Outcome::Waits(0)));
}

fn call_errors(lab: &mut Lab, check: &mut Check) {
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

fn levels(lab: &mut Lab, check: &mut Check) {
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

fn reply_errors(lab: &mut Lab, check: &mut Check) {
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

fn bind(lab: &mut Lab, check: &mut Check) {
    let Some((first, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(second) = check.good("puppet", Puppet::new(lab, 4)) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let bad = |words: u64| {
        invoke(code_of(Method::EndpointBind), slot(endpoint), [words, 0, 0, 0, 0, 0, 0, 0], 0).check().err()
    };
    check.equal("no thread", bad(3), Some(Error::WrongType));
    check.equal("outside", bad(1), Some(Error::NoSlot));
    check.good("another takes over", endpoint.bind(second.thread));
    check.good("receive", second.receive(lab, Deadline::NEVER));
    check.equal("receives", second.run(lab), Ok(Outcome::Waits(0)));
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[5]));
    check.equal(
        "the second has it",
        second.outcome(lab).ok().and_then(|outcome| message(Ok(outcome))).map(|got| got.words[0]),
        Some(5),
    );
    check.equal("the first waits", first.run(lab), Ok(Outcome::Waits(0)));
}

fn passive(lab: &mut Lab, check: &mut Check) {
    let Some(server) = check.good("server", Puppet::with(lab, With::level(5).passive())) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 2)) else { return };
    // It has not even come to its receive: the client's time brings it there.
    check.good("set", server.set(lab, Stub::Serve, moira_abi::fault::Registers::default()));
    for round in 1..=20u64 {
        let answer = message(client.invoke(lab, CALL, slot(endpoint), &[round * 100]));
        check.equal("answer", answer.map(|answer| (answer.tag.low(), answer.words[0])), Some((0, round * 100 + 1)));
    }
    let used = client.context.and_then(|context| context.consumed().ok());
    check.holds("the client paid", used.is_some_and(|used| used.own > 0 && used.lost == used.gone));
}

fn chain(lab: &mut Lab, check: &mut Check) {
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
            client.context.map(|context| lab.run(context, 100_000).is_ok()),
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

fn buffer(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3).buffer())) else { return };
    let Some(client) = check.good("client", Puppet::with(lab, With::level(1).buffer())) else { return };
    for bytes in [1u64, 7, 8, 9, 100, 4095, 4096] {
        for word in 0..512 {
            store(client.buffer_at + word * 8, 0x0101_0101_0101_0101 * (bytes & 0x7f | 1));
            store(server.buffer_at + word * 8, 0xeeee_eeee_eeee_eeee);
        }
        let tag = Tag::new(0, bytes as usize, 0).0;
        check.good("call", client.invoke(lab, tag | CALL, slot(endpoint), &[]));
        let got = server.outcome(lab).ok().and_then(|outcome| message(Ok(outcome)));
        check.equal("bytes", got.map(|got| got.tag.bytes() as u64), Some(bytes));
        let at = |index: u64| (stored(server.buffer_at + (index & !7)) >> ((index & 7) * 8)) as u8;
        check.equal("the last byte", at(bytes - 1), (bytes & 0x7f | 1) as u8);
        check.holds("not one more", bytes == 4096 || at(bytes) == 0xee);
        store(server.buffer_at, bytes);
        check.good("prepare", server.prepare(lab, tag | REPLY_RECEIVE, 0, &[], 0));
        let answer = message(client.run(lab));
        check.equal("answer", answer.map(|answer| (answer.tag.low(), answer.tag.bytes() as u64)), Some((0, bytes)));
        check.equal("its first byte", stored(client.buffer_at) as u8, bytes as u8);
    }
    backwards(lab, check, &server, &client, endpoint);
    // The buffer's frame is taken back: no buffer then.
    check.good("delete", client.buffer.map_or(Ok(()), |frame| Lab::TABLE.delete_fully(frame.slot())));
    check.equal(
        "no buffer",
        answered(client.invoke(lab, Tag::new(0, 8, 0).0 | CALL, slot(endpoint), &[])),
        Some(Err(Error::NotMapped)),
    );
}

/// A caller whose direction flag is set: the kernel copies forwards all the same, for it and for an interrupt that comes meanwhile.
fn backwards(lab: &mut Lab, check: &mut Check, server: &Puppet, client: &Puppet, endpoint: Endpoint) {
    for word in 0..512 {
        store(client.buffer_at + word * 8, word);
    }
    let mut registers = Registers { rflags: 0x402, ..Registers::default() };
    registers.gpr[0] = Tag::new(0, 4096, 0).0 | CALL;
    registers.gpr[7] = slot(endpoint);
    check.good("call", client.execute(lab, Stub::Syscall, registers));
    check.good("its end", server.outcome(lab));
    let straight = (0..512).all(|word| stored(server.buffer_at + word * 8) == word);
    check.holds("copied forwards", straight);
    check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &[], 0));
    check.good("answer", client.run(lab));
    check.equal("interrupts", client.execute(lab, Stub::Count, registers), Ok(Outcome::Runs));
    check.good("stop", client.thread.stop());
}

fn capabilities(lab: &mut Lab, check: &mut Check) {
    let s = lab.slots(12);
    let Some(table) = check.good("table", lab.arena.retype_table(9, s)) else { return };
    let Some(server) = check.good("server", Puppet::made(lab, With { table, ..With::level(3) })) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.equal("too few slots", server.thread.receive_slots(Slot(13)), Err(Error::NoSlot));
    check.good("receive slots", server.thread.receive_slots(Slot(5)));
    check.good("activate", server.thread.activate(Lab::CPU, [0, 0]));
    check.good("stop", server.thread.stop());
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("notifications", lab.arena.retype_notifications(4, s.plus(1)));
    check.good("weak", Lab::TABLE.copy(Notification::new(s.plus(1)), s.plus(5), Rights::SIGNAL));
    let words = [1, 2, 3, 4, s.plus(5).0.into(), s.plus(2).0.into(), s.plus(3).0.into(), s.plus(4).0.into()];
    check.good("call", client.invoke(lab, Tag::new(0, 0, 4).0 | CALL, slot(endpoint), &words));
    let got = server.outcome(lab).ok().and_then(|outcome| message(Ok(outcome)));
    check.equal("count", got.map(|got| got.tag.caps()), Some(4));
    check.equal("words", got.map(|got| got.words), Some([1, 2, 3, 4, 5, 6, 7, 8]));
    for index in 0..4 {
        let rights = if index == 0 { Rights::SIGNAL } else { Rights::ALL };
        let found = table.inspect(Slot(5 + index));
        check.equal(
            "arrived",
            found.map(|found| (found.kind, found.rights)),
            Ok((Some(moira_abi::ObjectType::Notification), rights)),
        );
    }
    check.good("signal there", Notification::new(s.plus(2)).signal());
    // They are children of the sender's.
    check.good("revoke", Lab::TABLE.revoke_fully(s.plus(2)));
    check.equal("gone there", table.inspect(Slot(6)).map(|found| found.kind), Ok(None));
    check.equal("not the others", table.inspect(Slot(7)).map(|found| found.kind.is_some()), Ok(true));
    // And back, to a client without slots: its error. Then with.
    check.equal("reply", answered(server.invoke(lab, Tag::new(0, 0, 1).0 | REPLY, 0, &[0, 0, 0, 0, 7])), Some(Ok(())));
    check.equal("no slots", answered(client.run(lab)), Some(Err(Error::PeerSlots)));
}

fn capability_errors(lab: &mut Lab, check: &mut Check) {
    let s = lab.slots(8);
    let Some(server) = check.good("server", Puppet::made(lab, With::level(3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.good("receive slots", server.thread.receive_slots(s));
    check.good("activate", server.thread.activate(Lab::CPU, [0, 0]));
    check.good("stop", server.thread.stop());
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    let two = Tag::new(0, 0, 2).0 | CALL;
    let mut send =
        |first: u64, second: u64| answered(client.invoke(lab, two, slot(endpoint), &[0, 0, 0, 0, first, second]));
    check.equal("empty", send(4, s.plus(6).0.into()), Some(Err(Error::Empty)));
    check.equal("outside", send(4, 0), Some(Err(Error::NoSlot)));
    check.equal("far outside", send(u64::MAX, 4), Some(Err(Error::NoSlot)));
    let arena = slot(lab.arena);
    let sent = client.invoke(lab, two, slot(endpoint), &[0, 0, 0, 0, 4, arena]);
    check.equal("an untyped", answered(sent), Some(Err(Error::NotCopyable)));
    check.equal("nothing came", Lab::TABLE.inspect(s).map(|found| found.kind), Ok(None));
    check.good("fill one", Lab::TABLE.copy(Lab::THREAD, s.plus(1), Rights(0)));
    let sent = client.invoke(lab, two, slot(endpoint), &[0, 0, 0, 0, 4, 4]);
    check.equal("one slot is in use", answered(sent), Some(Err(Error::PeerSlots)));
    check.equal("nothing came", Lab::TABLE.inspect(s).map(|found| found.kind), Ok(None));
    check.equal("the server still waits", server.run(lab), Ok(Outcome::Waits(0)));
}

fn deadline(lab: &mut Lab, check: &mut Check) {
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
    check.equal(
        "a call before it",
        server.outcome(lab).ok().and_then(|outcome| message(Ok(outcome))).map(|got| got.words[0]),
        Some(3),
    );
}

fn helping(lab: &mut Lab, check: &mut Check) {
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
    check.good("count", server.set(lab, Stub::Count, moira_abi::fault::Registers::default()));
    check.equal("works for the first", first.run(lab), Ok(Outcome::Runs));
    // The second calls: its time runs the server, for the first.
    check.good("prepare", second.prepare(lab, CALL, slot(endpoint), &[2], 0));
    check.equal(
        "helps",
        second.context.map(|context| lab.run(context, 20_000)),
        Some(Ok(moira_sys::Dispatched::Until)),
    );
    let used = second.context.and_then(|context| context.consumed().ok());
    check.holds("and lost that time to the first", used.is_some_and(|used| used.lost > used.own));
    let got = first.context.and_then(|context| context.consumed().ok());
    check.holds("which got it", got.is_some_and(|got| used.is_some_and(|used| got.delivered == used.lost - used.gone)));
    // The server answers, on the second's time, and takes the second's call.
    check.good("stop", server.thread.stop());
    check.good("prepare", server.prepare(lab, REPLY_RECEIVE, 0, &[77], 0));
    check.good("run", second.run(lab));
    check.equal(
        "the second is served",
        server.outcome(lab).ok().and_then(|outcome| message(Ok(outcome))).map(|got| got.words[0]),
        Some(2),
    );
    check.equal("the first has its answer", message(first.run(lab)).map(|answer| answer.words[0]), Some(77));
    let _ = warm;
}

/// Puppets of a memory of their own, that can die alone.
fn mortal(lab: &mut Lab, make: impl FnOnce(&mut Lab) -> Result<Puppet, Error>) -> Result<(Untyped, Puppet), Error> {
    let slot = lab.slots(1);
    let arena = lab.arena;
    lab.arena = arena.retype_untypeds(14, 1, slot)?.get(0).ok_or(Error::NoSlot)?;
    let made = make(lab);
    let memory = core::mem::replace(&mut lab.arena, arena);
    Ok((memory, made?))
}

fn server_dies(lab: &mut Lab, check: &mut Check) {
    let Some((memory, server)) = check.good("server", mortal(lab, |lab| Puppet::new(lab, 3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
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

fn server_dies_queued(lab: &mut Lab, check: &mut Check) {
    let Some((memory, server)) = check.good("server", mortal(lab, |lab| Puppet::new(lab, 3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
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

fn caller_dies(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some((memory, client)) = check.good("client", mortal(lab, |lab| Puppet::new(lab, 1))) else { return };
    check.good("call", client.invoke(lab, CALL, slot(endpoint), &[1]));
    check.good("revoke", memory.revoke_fully());
    // The dead one's memory is something else now; the server's work must not be booked there.
    let page = lab.slots(1);
    let address = lab.address(1);
    let frame = memory.retype_frames(FrameSize::Small, 1, page).ok().and_then(|made| made.get(0));
    check.holds(
        "reused",
        frame.is_some_and(|frame| {
            use moira_sys::Space;
            Lab::SPACE.map(frame, address, moira_sys::MapFlags::READ).is_ok()
        }),
    );
    check.good("count", server.set(lab, Stub::Count, moira_abi::fault::Registers::default()));
    check.equal("runs", server.context.map(|context| lab.run(context, 2_000)), Some(Ok(moira_sys::Dispatched::Until)));
    check.good("stop", server.thread.stop());
    let clean = (0..512).all(|word| stored(address + word * 8) == 0);
    check.holds("nothing was written to it", clean);
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
fn account_dies(lab: &mut Lab, check: &mut Check) {
    let Some((first, low)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some((second, high)) = check.good("server", server(lab, With::level(5))) else { return };
    let s = lab.slots(3);
    let Some(client) = check.good("client", Puppet::with(lab, With::level(1).passive())) else { return };
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, s)).and_then(|made| made.get(0)) else {
        return;
    };
    let Some(context) = check.good("context", memory.retype_contexts(1, s.plus(1))).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(client.thread, Lab::CPU));
    check.good("prepare", client.prepare(lab, CALL, slot(low), &[1], 0));
    check.good("run", lab.run(context, 100_000));
    check.good("prepare", first.prepare(lab, CALL, slot(high), &[2], 0));
    check.good("run", lab.run(context, 100_000));
    check.good("revoke", memory.revoke_fully());
    let address = lab.address(1);
    let frame = memory.retype_frames(FrameSize::Small, 1, s.plus(2)).ok().and_then(|made| made.get(0));
    check.holds(
        "reused",
        frame.is_some_and(|frame| {
            use moira_sys::Space;
            Lab::SPACE.map(frame, address, moira_sys::MapFlags::READ).is_ok()
        }),
    );
    check.good("count", second.set(lab, Stub::Count, moira_abi::fault::Registers::default()));
    check.equal("runs", second.context.map(|context| lab.run(context, 2_000)), Some(Ok(moira_sys::Dispatched::Until)));
    check.good("stop", second.thread.stop());
    check.good("reply", second.invoke(lab, REPLY, 0, &[3]));
    check.good("count", first.run(lab));
    check.equal("the first server has its answer", message(first.outcome(lab)).map(|answer| answer.words[0]), Some(3));
    check.good("reply", first.invoke(lab, REPLY, 0, &[4]));
    check.equal("nothing was written to it", (0..512).all(|word| stored(address + word * 8) == 0), true);
    // With another account the client goes on.
    let again = lab.slots(1);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, again)).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(client.thread, Lab::CPU));
    check.good("run", lab.run(context, 100_000));
    check.equal("the client has its answer", message(client.outcome(lab)).map(|answer| answer.words[0]), Some(4));
}

fn endpoint_dies(lab: &mut Lab, check: &mut Check) {
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
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
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

fn stopped_server(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3))) else { return };
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("stop", server.thread.stop());
    let blocked = |outcome: Option<Result<moira_sys::Dispatched, Error>>| {
        matches!(outcome, Some(Ok(moira_sys::Dispatched::Blocked { kind: moira_sys::Blocked::Stopped, .. })))
    };
    check.good("prepare", client.prepare(lab, CALL, slot(endpoint), &[1], 0));
    check.holds("blocked at a stopped server", blocked(client.context.map(|context| lab.run(context, 100_000))));
    check.good("a caller that waits can be stopped", client.thread.stop());
    check.good("and resumed", client.thread.resume());
    check.holds("to call again", blocked(client.context.map(|context| lab.run(context, 100_000))));
    let before = lab.sequence();
    check.good("the server goes on", server.receive(lab, Deadline::NEVER));
    check.holds("which is news", lab.sequence() > before);
    check.equal("receive ended by the stop", true, server.run(lab).is_ok());
}

fn handler(lab: &mut Lab, check: &mut Check, level: u8) -> Option<(Puppet, Endpoint)> {
    let (handler, endpoint) = check.good("handler", server(lab, With::level(level)))?;
    let slot = lab.slots(1);
    let minted = check.good("mint", Lab::TABLE.mint(endpoint, slot, Rights::CALL, 0xfa))?;
    Some((handler, minted))
}

fn fault_message(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) =
        check.good("patient", Puppet::with(lab, With { fault_endpoint: Some(endpoint), ..With::level(2) }))
    else {
        return;
    };
    let mut registers = moira_abi::fault::Registers::default();
    registers.gpr[3] = 0x5000;
    registers.gpr[4] = 0x7777;
    check.good("set", patient.set(lab, Stub::Load, registers));
    check.good("run", patient.context.map_or(Ok(moira_sys::Dispatched::News), |context| lab.run(context, 100_000)));
    let Some(got) = handler.outcome(lab).ok().and_then(|outcome| message(Ok(outcome))) else {
        check.holds("a message", false);
        return;
    };
    check.equal("label and badge", (got.tag.label(), got.badge), (FAULT_LABEL, 0xfa));
    let [vector, error, rip, address, rsp, flags, ..] = got.words;
    check.equal("fault", (vector, error, rip, address, rsp), (14, 4, Stub::Load.address(), 0x5000, 0x7777));
    check.equal("flags", flags & 0x200, 0x200);
    let seen = patient.look(lab);
    check.equal("its registers can be read", seen.map(|seen| seen.registers.gpr[3]), Ok(0x5000));
    check.equal("resume is the handler's", patient.thread.resume(), Err(Error::Active));
    check.equal("nothing was signalled", lab.faults.poll().map(|bits| bits & 2), Ok(0));
}

fn fault_resume(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) =
        check.good("patient", Puppet::with(lab, With { fault_endpoint: Some(endpoint), ..With::level(2) }))
    else {
        return;
    };
    let mut registers = moira_abi::fault::Registers::default();
    registers.gpr[0] = 123;
    registers.gpr[3] = 0x5000;
    check.good("set", patient.set(lab, Stub::Load, registers));
    check.good("run", patient.context.map_or(Ok(moira_sys::Dispatched::News), |context| lab.run(context, 100_000)));
    // The handler makes it go on elsewhere; the answer's words do not reach its registers.
    registers.rip = Stub::Stop.address();
    registers.gpr[12] = 0xcafe;
    check.good("write", patient.thread.write_registers(&mut lab.buffer, &registers));
    check.good("reply", handler.prepare(lab, REPLY_RECEIVE, 0, &WORDS, 0));
    check.good("run", patient.context.map_or(Ok(moira_sys::Dispatched::News), |context| lab.run(context, 100_000)));
    let got = handler.outcome(lab).ok().and_then(|outcome| message(Ok(outcome)));
    check.equal("the next fault", got.map(|got| (got.words[0], got.words[2])), Some((6, Stub::Stop.address() + 1)));
    let seen = patient.look(lab).map(|seen| (seen.registers.gpr[0], seen.registers.gpr[12], seen.registers.gpr[6]));
    check.equal("registers are as written", seen, Ok((123, 0xcafe, 0)));
}

fn park(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) =
        check.good("patient", Puppet::with(lab, With { fault_endpoint: Some(endpoint), ..With::level(2) }))
    else {
        return;
    };
    check.good("set", patient.set(lab, Stub::Stop, moira_abi::fault::Registers::default()));
    check.good("run", patient.context.map_or(Ok(moira_sys::Dispatched::News), |context| lab.run(context, 100_000)));
    check.equal("park", answered(handler.invoke(lab, code_of(Method::Park), 0, &[])), Some(Ok(())));
    check.equal("nobody is left", answered(handler.invoke(lab, REPLY, 0, &[])), Some(Err(Error::NoCaller)));
    check.equal("the patient is stopped", patient.run(lab), Ok(Outcome::Fault(6, 0, 0)));
    check.good("resume", patient.thread.resume());
    check.equal(
        "faults again: nobody receives",
        patient.context.map(|context| lab.run(context, 100_000).is_ok()),
        Some(true),
    );
    check.equal("the handler receives", handler.invoke(lab, code_of(Method::Receive), 0, &[]), Ok(Outcome::Waits(0)));
    check.equal("on the patient's time it gets it", patient.run(lab), Ok(Outcome::Fault(6, 0, 0)));
    let got = handler.outcome(lab).ok().and_then(|outcome| message(Ok(outcome)));
    check.equal("the fault", got.map(|got| (got.tag.label(), got.words[0])), Some((FAULT_LABEL, 6)));
}

fn fault_below(lab: &mut Lab, check: &mut Check) {
    // Faults go uphill like calls: to a handler on its own level a fault only stops it.
    let Some((_, endpoint)) = handler(lab, check, 3) else { return };
    let s = lab.slots(1);
    let Some(thread) = check.good("thread", lab.arena.retype_threads(1, s)).and_then(|made| made.get(0)) else {
        return;
    };
    let words = [3, 2, 0, 3, slot(endpoint), slot(lab.faults), Stub::Stop.address(), 0];
    check.good("configure", invoke(code_of(Method::ThreadConfigure), s.0.into(), words, 0).check());
    let c = lab.slots(1);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, c)).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(thread, Lab::CPU));
    check.good("activate", thread.activate(Lab::CPU, [0, 0]));
    let _ = lab.faults.poll();
    let ran = lab.run(context, 100_000);
    check.holds("stopped", matches!(ran, Ok(moira_sys::Dispatched::Blocked { kind: moira_sys::Blocked::Stopped, .. })));
    check.equal("signalled", lab.faults.poll(), Ok(1));
    let seen = thread.read_registers(&mut lab.buffer);
    check.equal("its fault", seen.map(|seen| seen.fault.map(|fault| fault.vector)), Ok(Some(6)));
}

fn notified(lab: &mut Lab, check: &mut Check) {
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
