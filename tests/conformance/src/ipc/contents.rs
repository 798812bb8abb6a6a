//! What a message carries besides words: bytes of the message buffer, and capabilities.

use super::{CALL, REPLY, REPLY_RECEIVE, endpoint, message, receives, server, slot};
use crate::thread::answered;
use moira_abi::{Error, ObjectType, Rights, Tag, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, store, stored};
use moira_sys::{Capability, Endpoint, Notification, Slot};

pub(super) fn buffer(lab: &mut Lab, check: &mut Check) {
    let Some((server, endpoint)) = check.good("server", server(lab, With::level(3).buffer())) else { return };
    let Some(client) = check.good("client", Puppet::with(lab, With::level(1).buffer())) else { return };
    for bytes in [1u64, 7, 8, 9, 100, 4095, 4096] {
        for word in 0..512 {
            store(client.buffer_at + word * 8, 0x0101_0101_0101_0101 * (bytes & 0x7f | 1));
            store(server.buffer_at + word * 8, 0xeeee_eeee_eeee_eeee);
        }
        let tag = Tag::new(0, bytes as usize, 0).0;
        check.good("call", client.invoke(lab, tag | CALL, slot(endpoint), &[]));
        let got = message(server.outcome(lab));
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

pub(super) fn capabilities(lab: &mut Lab, check: &mut Check) {
    let s = lab.slots(12);
    let Some(table) = check.good("table", lab.arena.retype_table(9, s)) else { return };
    let Some(server) = check.good("server", Puppet::made(lab, With { table, ..With::level(3) })) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.equal("too few slots", server.thread.receive_slots(Slot(13)), Err(Error::NoSlot));
    check.good("receive slots", server.thread.receive_slots(Slot(5)));
    check.good("activate", server.thread.activate(Lab::CPU, [0, 0]));
    check.good("stop", server.thread.stop());
    receives(lab, check, &server);
    let Some(client) = check.good("client", Puppet::new(lab, 1)) else { return };
    check.good("notifications", lab.arena.retype_notifications(4, s.plus(1)));
    check.good("weak", Lab::TABLE.copy(Notification::new(s.plus(1)), s.plus(5), Rights::SIGNAL));
    let words = [1, 2, 3, 4, s.plus(5).0.into(), s.plus(2).0.into(), s.plus(3).0.into(), s.plus(4).0.into()];
    check.good("call", client.invoke(lab, Tag::new(0, 0, 4).0 | CALL, slot(endpoint), &words));
    let got = message(server.outcome(lab));
    check.equal("count", got.map(|got| got.tag.caps()), Some(4));
    check.equal("words", got.map(|got| got.words), Some([1, 2, 3, 4, 5, 6, 7, 8]));
    for index in 0..4 {
        let rights = if index == 0 { Rights::SIGNAL } else { Rights::ALL };
        let found = table.inspect(Slot(5 + index));
        check.equal(
            "arrived",
            found.map(|found| (found.kind, found.rights)),
            Ok((Some(ObjectType::Notification), rights)),
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

pub(super) fn capability_errors(lab: &mut Lab, check: &mut Check) {
    let s = lab.slots(8);
    let Some(server) = check.good("server", Puppet::made(lab, With::level(3))) else { return };
    let Some(endpoint) = check.good("endpoint", endpoint(lab, &server)) else { return };
    check.good("receive slots", server.thread.receive_slots(s));
    check.good("activate", server.thread.activate(Lab::CPU, [0, 0]));
    check.good("stop", server.thread.stop());
    receives(lab, check, &server);
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
