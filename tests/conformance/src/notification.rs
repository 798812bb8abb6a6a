//! `Notification`.

use crate::thread::answered;
use moira_abi::{Error, Method, Rights};
use moira_lab::{Check, Lab, Outcome, Puppet, code_of};
use moira_sys::{Capability, Deadline, Notification, Slot};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("notification-signal-and-poll", signal);
    lab.experiment("notification-wait", wait);
    lab.experiment("notification-deadline", deadline);
    lab.experiment("notification-one-waiter", one_waiter);
    lab.experiment("notification-bound", bound);
    lab.experiment("notification-dies", dies);
    lab.experiment("notification-waiter-dies", waiter_dies);
}

/// A notification without badge in the slot answered, and capabilities with badges 1 and 2 in the next two.
pub fn fresh(lab: &mut Lab, check: &mut Check) -> Option<(Notification, Notification, Notification)> {
    let slot = lab.slots(3);
    let whole = check.good("notification", lab.arena.retype_notifications(1, slot)).and_then(|made| made.get(0))?;
    let one = check.good("mint", Lab::TABLE.mint(whole, slot.plus(1), Rights::SIGNAL, 1))?;
    let two = check.good("mint", Lab::TABLE.mint(whole, slot.plus(2), Rights::ALL, 2))?;
    Some((whole, one, two))
}

fn word(notification: Notification) -> u64 {
    notification.slot().0.into()
}

fn words(outcome: Result<Outcome, Error>) -> Option<u64> {
    match outcome {
        Ok(Outcome::Answered(answer)) if answer.tag.low() == 0 => Some(answer.words[0]),
        _ => None,
    }
}

fn signal(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, two)) = fresh(lab, check) else { return };
    check.equal("nothing", whole.poll(), Ok(0));
    check.good("signal", one.signal());
    check.good("signal", one.signal());
    check.good("signal", two.signal());
    check.equal("bits add up", whole.poll(), Ok(3));
    check.equal("taken", whole.poll(), Ok(0));
    check.good("signal", two.signal());
    check.equal("wait takes what is there", whole.wait(Deadline::NEVER), Ok(2));
    check.equal("by any capability", two.poll(), Ok(0));
}

fn wait(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, two)) = fresh(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("waits", puppet.invoke(lab, code_of(Method::Wait), word(whole), &[]), Ok(Outcome::Waits(0)));
    check.equal("still waits", puppet.run(lab), Ok(Outcome::Waits(0)));
    let before = lab.sequence();
    check.good("signal", one.signal());
    check.equal("that is news", lab.sequence(), before + 1);
    check.good("signal", two.signal());
    check.equal("once", lab.sequence(), before + 1);
    check.equal("both bits", words(puppet.run(lab)), Some(3));
    check.equal("no bits are left", whole.poll(), Ok(0));
    // A puppet signals: this thread waits.
    check.good("prepare", puppet.prepare(lab, code_of(Method::Signal), word(one), &[], 0));
    check.equal("signals", answered(puppet.run(lab)), Some(Ok(())));
    check.equal("arrived", whole.wait(Deadline::NEVER), Ok(1));
}

fn deadline(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, _)) = fresh(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("past", whole.wait(Deadline(1)), Err(Error::Timeout));
    let soon = Deadline::after(lab.micros(200));
    check.equal("soon", whole.wait(soon), Err(Error::Timeout));
    check.holds("not before", moira_sys::now() >= soon.0);
    let soon = Deadline::after(lab.micros(300));
    check.good("prepare", puppet.prepare(lab, code_of(Method::Wait), word(whole), &[], soon.0));
    check.equal("waits until then", puppet.run(lab), Ok(Outcome::Waits(soon.0)));
    while moira_sys::now() < soon.0 {}
    check.equal("times out", answered(puppet.run(lab)), Some(Err(Error::Timeout)));
    check.good("signal", one.signal());
    check.equal("bits stay for the next", whole.poll(), Ok(1));
    let late = Deadline::after(lab.micros(1_000_000));
    check.good("prepare", puppet.prepare(lab, code_of(Method::Wait), word(whole), &[], late.0));
    check.equal("waits", puppet.run(lab), Ok(Outcome::Waits(late.0)));
    check.good("signal", one.signal());
    check.equal("bits come before the deadline", words(puppet.run(lab)), Some(1));
}

fn one_waiter(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, _)) = fresh(lab, check) else { return };
    let Some(first) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some(second) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("waits", first.invoke(lab, code_of(Method::Wait), word(whole), &[]), Ok(Outcome::Waits(0)));
    check.equal(
        "another",
        answered(second.invoke(lab, code_of(Method::Wait), word(whole), &[])),
        Some(Err(Error::InUse)),
    );
    check.equal("bound to another", second.thread.bind_notification(whole), Err(Error::InUse));
    check.good("stop the waiter", first.thread.stop());
    check.equal("now another may", second.invoke(lab, code_of(Method::Wait), word(whole), &[]), Ok(Outcome::Waits(0)));
    check.good("resume the first", first.thread.resume());
    check.equal("whose wait ended", answered(first.run(lab)), Some(Err(Error::Timeout)));
    check.good("signal", one.signal());
    check.equal("the second has it", words(second.run(lab)), Some(1));
}

fn bound(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, two)) = fresh(lab, check) else { return };
    let Some((other, ..)) = fresh(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 4)) else { return };
    check.good("bind", puppet.thread.bind_notification(whole));
    check.equal("another", puppet.thread.bind_notification(other), Err(Error::InUse));
    check.equal("to another", Lab::THREAD.bind_notification(whole), Err(Error::InUse));
    check.equal(
        "no notification",
        moira_lab::invoke(code_of(Method::ThreadBindNotification), puppet.word(), [3, 0, 0, 0, 0, 0, 0, 0], 0)
            .check()
            .err(),
        Some(Error::WrongType),
    );
    check.good("receive", puppet.receive(lab, Deadline::NEVER));
    check.equal("receives", puppet.run(lab), Ok(Outcome::Waits(0)));
    check.good("signal", one.signal());
    check.good("signal", two.signal());
    let outcome = puppet.run(lab);
    check.equal("notified", answered(outcome), Some(Err(Error::Notified)));
    check.equal("bits", matches!(outcome, Ok(Outcome::Answered(answer)) if answer.words[0] == 3), true);
    check.good("signal", one.signal());
    check.good("receive", puppet.receive(lab, Deadline::NEVER));
    check.equal("at once", answered(puppet.run(lab)), Some(Err(Error::Notified)));
    check.equal("its own wait", puppet.invoke(lab, code_of(Method::Wait), word(whole), &[]), Ok(Outcome::Waits(0)));
    check.good("signal", two.signal());
    check.equal("works too", words(puppet.run(lab)), Some(2));
    check.equal("and it stays bound", Lab::THREAD.bind_notification(whole), Err(Error::InUse));
}

fn dies(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(made) = check.good("notifications", memory.retype_notifications(2, slot.plus(1))) else { return };
    let (Some(first), Some(second)) = (made.get(0), made.get(1)) else { return };
    let Some(waiter) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some(server) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("waits", waiter.invoke(lab, code_of(Method::Wait), word(first), &[]), Ok(Outcome::Waits(0)));
    check.good("bind", server.thread.bind_notification(second));
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
    check.good("revoke", memory.revoke_fully());
    check.equal("the waiter is told", answered(waiter.run(lab)), Some(Err(Error::PeerGone)));
    check.equal("the server still receives", server.run(lab), Ok(Outcome::Waits(0)));
    let Some((third, ..)) = fresh(lab, check) else { return };
    check.good("and takes another", server.thread.bind_notification(third));
}

fn waiter_dies(lab: &mut Lab, check: &mut Check) {
    let Some((whole, one, _)) = fresh(lab, check) else { return };
    let slot = lab.slots(1);
    let arena = lab.arena;
    let Some(memory) = check.good("untyped", arena.retype_untypeds(14, 1, slot)).and_then(|made| made.get(0)) else {
        return;
    };
    lab.arena = memory;
    let (first, second) = (Puppet::new(lab, 1), Puppet::new(lab, 1));
    lab.arena = arena;
    let (Some(first), Some(second)) = (check.good("puppet", first), check.good("puppet", second)) else { return };
    let Some((other, two, _)) = fresh(lab, check) else { return };
    check.equal("waits", first.invoke(lab, code_of(Method::Wait), word(whole), &[]), Ok(Outcome::Waits(0)));
    check.good("bind", second.thread.bind_notification(other));
    check.good("revoke", memory.revoke_fully());
    check.good("signal", one.signal());
    check.good("signal", two.signal());
    check.equal("bits wait for the next", whole.wait(Deadline::NEVER), Ok(1));
    check.equal("bits wait for the next", other.poll(), Ok(1));
    let Some(third) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.good("bind", third.thread.bind_notification(other));
    check.good("wait", whole.wait(Deadline(1)).or(Ok::<u64, Error>(0)));
    let _ = Slot::NONE;
}
