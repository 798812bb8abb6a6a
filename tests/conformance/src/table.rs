//! `CapTable`: capabilities and their derivation.

use moira_abi::{Error, Method, ObjectType, Rights};
use moira_lab::{Check, Lab, code_of, invoke};
use moira_sys::{CapTable, Capability, Endpoint, FrameSize, Notification, Slot, Thread};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("table-copy", copy);
    lab.experiment("table-rights-never-grow", rights);
    lab.experiment("table-mint", mint);
    lab.experiment("table-move", relocate);
    lab.experiment("table-delete", delete);
    lab.experiment("table-revoke", revoke);
    lab.experiment("table-depth", depth);
    lab.experiment("table-inspect", inspect);
    lab.experiment("table-sizes", sizes);
    lab.experiment("table-other", other);
}

fn raw(method: Method, words: [u64; 4]) -> Result<[u64; 8], Error> {
    let [a, b, c, d] = words;
    invoke(code_of(method), 2, [a, b, c, d, 0, 0, 0, 0], 0).check()
}

fn notification(lab: &mut Lab) -> Option<(Notification, Slot)> {
    let slot = lab.slots(9);
    lab.arena.retype_notifications(1, slot).ok()?.get(0).map(|made| (made, slot))
}

fn copy(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    let s = |index: u32| u64::from(slot.plus(index).0);
    check.good("copy", Lab::TABLE.copy(whole, slot.plus(1), Rights::ALL));
    for (name, words, error) in [
        ("source empty", [s(7), s(2), 255, 0], Error::Empty),
        ("source outside", [0, s(2), 255, 0], Error::NoSlot),
        ("source far outside", [u64::MAX, s(2), 255, 0], Error::NoSlot),
        ("destination in use", [s(0), s(1), 255, 0], Error::SlotInUse),
        ("destination itself", [s(0), s(0), 255, 0], Error::SlotInUse),
        ("destination outside", [s(0), 1, 255, 0], Error::NoSlot),
        ("destination far outside", [s(0), 1 << 40, 255, 0], Error::NoSlot),
        ("rights", [s(0), s(2), 256, 0], Error::BadArgument),
        ("rights", [s(0), s(2), u64::MAX, 0], Error::BadArgument),
        ("untyped", [lab.arena.slot().0.into(), s(2), 255, 0], Error::NotCopyable),
    ] {
        check.equal(name, raw(Method::CapCopy, words), Err(error));
        if name != "untyped" {
            check.equal(name, raw(Method::CapMint, words), Err(error));
        }
    }
    check.equal("nothing came", Lab::TABLE.inspect(slot.plus(2)).map(|found| found.kind), Ok(None));
    check.good("the copy works", Notification::new(slot.plus(1)).signal());
    check.good("delete the original", Lab::TABLE.delete_fully(slot));
    check.equal("the copy went with it", Notification::new(slot.plus(1)).signal(), Err(Error::Empty));
}

fn rights(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    for first in [0u8, 1, 2, 3, 0x80, 0xff] {
        for second in [0u8, 1, 2, 3, 0x55, 0xff] {
            let Some(child) = check.good("copy", Lab::TABLE.copy(whole, slot.plus(1), Rights(first))) else { return };
            let Some(_) = check.good("copy", Lab::TABLE.copy(child, slot.plus(2), Rights(second))) else { return };
            let found = Lab::TABLE.inspect(slot.plus(2)).map(|found| found.rights);
            check.equal("rights", found, Ok(Rights(first & second)));
            check.good("delete", Lab::TABLE.delete_fully(child.slot()));
        }
    }
    let signal = Lab::TABLE.copy(whole, slot.plus(1), Rights::SIGNAL);
    let wait = Lab::TABLE.copy(whole, slot.plus(2), Rights::WAIT);
    let (Some(signal), Some(wait)) = (check.good("copy", signal), check.good("copy", wait)) else { return };
    check.equal("poll with SIGNAL", signal.poll(), Err(Error::NoRight));
    check.equal("wait with SIGNAL", signal.wait(moira_sys::Deadline(1)), Err(Error::NoRight));
    check.equal("signal with WAIT", wait.signal(), Err(Error::NoRight));
    check.good("signal with SIGNAL", signal.signal());
    check.good("poll with WAIT", wait.poll());
    check.equal("bind with SIGNAL", Lab::THREAD.bind_notification(signal), Err(Error::NoRight));
}

fn mint(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    let Some(minted) = check.good("mint", Lab::TABLE.mint(whole, slot.plus(1), Rights::SIGNAL, 0xdead_0000_0000_0001))
    else {
        return;
    };
    check.equal("badge", Lab::TABLE.inspect(slot.plus(1)).map(|found| found.badge), Ok(0xdead_0000_0000_0001));
    check.equal("minted again", Lab::TABLE.mint(minted, slot.plus(2), Rights::ALL, 7).err(), Some(Error::BadArgument));
    check.good("copied", Lab::TABLE.copy(minted, slot.plus(2), Rights::ALL));
    check.equal("badge", Lab::TABLE.inspect(slot.plus(2)).map(|found| found.badge), Ok(0xdead_0000_0000_0001));
    check.good("signal", minted.signal());
    check.equal("bits", whole.poll(), Ok(0xdead_0000_0000_0001));
    check.good("signal without badge", whole.signal());
    check.equal("no bits", whole.poll(), Ok(0));
    let words = [u64::from(Lab::THREAD.slot().0), slot.plus(3).0.into(), 255, 1];
    check.equal("a thread", raw(Method::CapMint, words), Err(Error::WrongType));
    let endpoint = lab.arena.retype_endpoints(1, slot.plus(4)).ok().and_then(|made| made.get(0));
    let minted = endpoint.map(|endpoint| Lab::TABLE.mint(endpoint, slot.plus(5), Rights::CALL, 42));
    check.holds("an endpoint", minted.is_some_and(|result| result.is_ok()));
    check.equal("badge", Lab::TABLE.inspect(slot.plus(5)).map(|found| found.badge), Ok(42));
}

fn relocate(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    let s = |index: u32| u64::from(slot.plus(index).0);
    check.good("mint", Lab::TABLE.mint(whole, slot.plus(1), Rights::SIGNAL, 4));
    check.good("copy", Lab::TABLE.copy(Notification::new(slot.plus(1)), slot.plus(2), Rights::ALL));
    check.good("move", raw(Method::CapMove, [s(1), s(3), 0, 0]));
    check.equal("empty", Lab::TABLE.inspect(slot.plus(1)).map(|found| found.kind), Ok(None));
    let found = Lab::TABLE.inspect(slot.plus(3));
    check.equal("as it was", found.map(|found| (found.rights, found.badge)), Ok((Rights::SIGNAL, 4)));
    check.good("revoke", Lab::TABLE.revoke_fully(slot.plus(3)));
    check.equal("its child went", Lab::TABLE.inspect(slot.plus(2)).map(|found| found.kind), Ok(None));
    check.good("move the root of it", raw(Method::CapMove, [s(0), s(4), 0, 0]));
    check.good("revoke", Lab::TABLE.revoke_fully(slot.plus(4)));
    check.equal("its child went", Lab::TABLE.inspect(slot.plus(3)).map(|found| found.kind), Ok(None));
    for (name, words, error) in [
        ("empty", [s(0), s(1), 0, 0], Error::Empty),
        ("onto itself", [s(4), s(4), 0, 0], Error::SlotInUse),
        ("in use", [s(4), 2, 0, 0], Error::SlotInUse),
        ("from outside", [1, s(1), 0, 0], Error::NoSlot),
        ("to outside", [s(4), 0, 0, 0], Error::NoSlot),
    ] {
        check.equal(name, raw(Method::CapMove, words), Err(error));
    }
}

fn delete(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    check.equal("empty", Lab::TABLE.delete(slot.plus(1)), Err(Error::Empty));
    check.equal("outside", Lab::TABLE.delete(Slot(0)), Err(Error::NoSlot));
    check.equal("untyped in use", Lab::TABLE.delete(lab.arena.slot()), Err(Error::InUse));
    // More children than one step removes.
    let many = lab.slots(40);
    for index in 0..40 {
        check.good("copy", Lab::TABLE.copy(whole, many.plus(index), Rights::ALL));
    }
    check.equal("bounded", Lab::TABLE.delete(slot), Err(Error::Again));
    check.good("to the end", Lab::TABLE.delete_fully(slot));
    for index in 0..40 {
        check.equal("child", Lab::TABLE.inspect(many.plus(index)).map(|found| found.kind), Ok(None));
    }
}

fn revoke(lab: &mut Lab, check: &mut Check) {
    let Some((whole, slot)) = notification(lab) else { return };
    let Some(first) = check.good("copy", Lab::TABLE.copy(whole, slot.plus(1), Rights::ALL)) else { return };
    let Some(second) = check.good("copy", Lab::TABLE.copy(whole, slot.plus(2), Rights::ALL)) else { return };
    check.good("copy", Lab::TABLE.copy(first, slot.plus(3), Rights::ALL));
    check.good("copy", Lab::TABLE.copy(second, slot.plus(4), Rights::ALL));
    check.good("revoke", Lab::TABLE.revoke_fully(first.slot()));
    let kinds = |index| Lab::TABLE.inspect(slot.plus(index)).map(|found| found.kind.is_some());
    check.equal("itself", kinds(1), Ok(true));
    check.equal("its child", kinds(3), Ok(false));
    check.equal("a sibling", kinds(2), Ok(true));
    check.equal("a sibling's child", kinds(4), Ok(true));
    check.good("revoke all", Lab::TABLE.revoke_fully(whole.slot()));
    check.equal("all", (kinds(0), kinds(1), kinds(2), kinds(4)), (Ok(true), Ok(false), Ok(false), Ok(false)));
    check.equal("empty", Lab::TABLE.revoke(slot.plus(1)), Err(Error::Empty));
    check.equal("outside", Lab::TABLE.revoke(Slot(1)), Err(Error::NoSlot));
}

fn depth(lab: &mut Lab, check: &mut Check) {
    let Some((mut at, _)) = notification(lab) else { return };
    let slots = lab.slots(80);
    let mut made = 0;
    while made < 80 {
        match Lab::TABLE.copy(at, slots.plus(made), Rights::ALL) {
            Ok(child) => at = child,
            Err(error) => {
                check.equal("at the bottom", error, Error::TooDeep);
                break;
            }
        }
        made += 1;
    }
    check.holds("bounded by 55", (50..=55).contains(&made));
    check.good("works down there", at.signal());
    check.good("revoke", Lab::TABLE.revoke_fully(slots));
    check.equal("gone", Lab::TABLE.inspect(slots.plus(1)).map(|found| found.kind), Ok(None));
}

fn inspect(lab: &mut Lab, check: &mut Check) {
    for (slot, kind) in [
        (2, ObjectType::CapTable),
        (3, ObjectType::AddressSpace),
        (4, ObjectType::Thread),
        (5, ObjectType::SchedContext),
        (6, ObjectType::Cpu),
        (7, ObjectType::Platform),
    ] {
        let found = Lab::TABLE.inspect(Slot(slot));
        check.equal("kind", found.map(|found| found.kind), Ok(Some(kind)));
    }
    let empty = lab.slots(1);
    check.equal("empty", Lab::TABLE.inspect(empty).map(|found| (found.kind, found.badge)), Ok((None, 0)));
    check.equal("outside", Lab::TABLE.inspect(Slot(1)).err(), Some(Error::NoSlot));
    // Where a frame is mapped is nobody's business.
    let slot = lab.slots(1);
    let address = lab.address(1);
    if let Some(frame) =
        check.good("frame", lab.arena.retype_frames(FrameSize::Small, 1, slot)).and_then(|made| made.get(0))
    {
        use moira_sys::Space;
        check.good("map", Lab::SPACE.map(frame, address, moira_sys::MapFlags::READ));
        check.equal("badge", Lab::TABLE.inspect(slot).map(|found| found.badge), Ok(0));
    }
}

fn sizes(lab: &mut Lab, check: &mut Check) {
    for bits in [7u8, 8, 12, 14] {
        let slot = lab.slots(1);
        let Some(table) = check.good("table", lab.arena.retype_table(bits, slot)) else { return };
        let last = moira_abi::object::cap_table_slots(bits) + 1;
        check.good("first", table.copy(Lab::THREAD, Slot(2), Rights::ALL));
        check.good("last", if last > 2 { table.copy(Lab::THREAD, Slot(last), Rights::ALL) } else { Ok(Lab::THREAD) });
        check.equal("header", table.copy(Lab::THREAD, Slot(1), Rights::ALL).err(), Some(Error::NoSlot));
        check.equal("beyond", table.copy(Lab::THREAD, Slot(last + 1), Rights::ALL).err(), Some(Error::NoSlot));
        check.equal("kind", table.inspect(Slot(last)).map(|found| found.kind), Ok(Some(ObjectType::Thread)));
    }
}

fn other(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let Some(table) = check.good("table", lab.arena.retype_table(9, slot)) else { return };
    let Some((whole, _)) = notification(lab) else { return };
    check.good("copy into it", table.copy(whole, Slot(5), Rights::ALL));
    // Slot 5 of the other table is not this table's slot 5.
    check.equal("not here", Lab::TABLE.inspect(Slot(5)).map(|found| found.kind), Ok(Some(ObjectType::SchedContext)));
    check.good("delete here what it came from", Lab::TABLE.delete_fully(whole.slot()));
    check.equal("gone there", table.inspect(Slot(5)).map(|found| found.kind), Ok(None));
    let weak = Lab::TABLE.copy(table, slot.plus(1), Rights(0));
    check.good("copy", weak);
    let weak = CapTable::new(slot.plus(1));
    check.equal("inspect", weak.inspect(Slot(5)).err(), Some(Error::NoRight));
    check.equal("copy", weak.copy(Lab::THREAD, Slot(6), Rights::ALL).err(), Some(Error::NoRight));
    check.equal("delete", weak.delete(Slot(5)), Err(Error::NoRight));
    let _: Option<(Thread, Endpoint)> = None;
}
