//! `Untyped`: what can be made of memory, and that it comes back whole.

use moira_abi::{Error, Method, ObjectType, Rights};
use moira_lab::{ARENA_BITS, Check, Lab, Puppet, code_of, invoke};
use moira_sys::{Capability, FrameSize, MapFlags, Slot, Space, Untyped};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("untyped-info", info);
    lab.experiment("untyped-decode", decode);
    lab.experiment("untyped-retype-each-type", each_type);
    lab.experiment("untyped-retype-arguments", arguments);
    lab.experiment("untyped-retype-arithmetic", arithmetic);
    lab.experiment("untyped-retype-slots", slots);
    lab.experiment("untyped-retype-too-deep", too_deep);
    lab.experiment("untyped-nesting", nesting);
    lab.experiment("untyped-dirty", dirty);
    lab.experiment("untyped-content", content);
    lab.experiment("untyped-revoke-ends-everything", revoke);
    lab.experiment("untyped-revoke-zeroes", zeroes);
    lab.experiment("untyped-revoke-is-stepwise", stepwise);
    lab.experiment("untyped-revoke-inner", inner);
    lab.experiment("untyped-move-into-itself", into_itself);
    lab.experiment("untyped-spaces-run-out-of-numbers", numbers);
}

/// `retype` as it is: type, size, count, slot.
pub fn retype(untyped: Untyped, kind: u64, size: u64, count: u64, slot: u64) -> Result<[u64; 8], Error> {
    invoke(code_of(Method::UntypedRetype), untyped.slot().0.into(), [kind, size, count, slot, 0, 0, 0, 0], 0).check()
}

/// Where nothing can be derived any more nothing is made either: what lies at the same place later begins with zeroes.
fn too_deep(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(90);
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(16, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let (mut deepest, mut copies) = (memory, 0);
    while let Ok(copy) = Lab::TABLE.copy(deepest, slot.plus(copies + 1), Rights::ALL) {
        (deepest, copies) = (copy, copies + 1);
        if !check.holds("bounded", copies < 80) {
            return;
        }
    }
    let (space, made) = (lab.arena.info().map(|info| info.free), u64::from(slot.plus(85).0));
    for (what, kind, size) in [
        ("untyped", ObjectType::Untyped, 12),
        ("guest space", ObjectType::AddressSpace, 1),
        ("frame", ObjectType::Frame, 12),
        ("notification", ObjectType::Notification, 0),
    ] {
        check.equal(what, retype(deepest, kind as u64, size, 1, made).err(), Some(Error::TooDeep));
    }
    check.equal("nothing taken", lab.arena.info().map(|info| info.free), space);
    check.good("back to one", Lab::TABLE.revoke_fully(slot));
    check.equal("all of it", memory.info().map(|info| info.free), Ok(1 << 16));
    let Some(note) =
        check.good("notification", memory.retype_notifications(1, slot.plus(85))).and_then(|made| made.get(0))
    else {
        return;
    };
    check.equal("fresh", note.poll(), Ok(0));
    check.good("nobody waits", note.signal());
}

fn info(lab: &mut Lab, check: &mut Check) {
    let Some(info) = check.good("info", lab.arena.info()) else { return };
    check.equal("bits", info.size_bits, ARENA_BITS);
    check.equal("free", info.free, 1 << ARENA_BITS);
    check.equal("kind", info.kind, 1);
    check.equal("alignment", info.address % (1 << ARENA_BITS), 0);
}

/// What every invocation answers when its capability is no good.
fn decode(lab: &mut Lab, check: &mut Check) {
    let empty = lab.slots(1);
    let weak = lab.slots(1);
    check.good("copy", Lab::TABLE.copy(Lab::THREAD, weak, Rights(0)));
    for method in Method::ALL.iter().filter(|method| needs_capability(**method)) {
        let call = |slot: u64| invoke(code_of(*method), slot, [0; 8], 1).result();
        let name = alloc::format!("{method:?}");
        check.equal(&name, call(u64::from(empty.0)), Some(Err(Error::Empty)));
        for outside in [0, 1, u64::from(lab.info.slot_count) + 2, 1 << 32, 1 << 59, u64::MAX] {
            check.equal(&name, call(outside), Some(Err(Error::NoSlot)));
        }
        // A thread without any right: wrong type for most, no right for a thread's own methods.
        let is_thread = (Method::ThreadConfigure as u8..=Method::ThreadReceiveSlots as u8).contains(&(*method as u8));
        let should = if is_thread { Error::NoRight } else { Error::WrongType };
        check.equal(&name, call(u64::from(weak.0)), Some(Err(should)));
    }
    for code in 0..=255u8 {
        if Method::from_code(code).is_none() {
            check.equal("no such method", invoke(code.into(), 2, [0; 8], 0).result(), Some(Err(Error::NoMethod)));
        }
    }
}

fn needs_capability(method: Method) -> bool {
    !matches!(method, Method::ReplyReceive | Method::Receive | Method::Reply | Method::Park)
}

const MADE: [(ObjectType, u64, u64); 11] = [
    (ObjectType::Untyped, 12, 12),
    (ObjectType::Frame, 12, 12),
    (ObjectType::AddressSpace, 0, 8),
    (ObjectType::CapTable, 12, 12),
    (ObjectType::Thread, 0, 10),
    (ObjectType::SchedContext, 0, 9),
    (ObjectType::Endpoint, 0, 6),
    (ObjectType::Notification, 0, 7),
    (ObjectType::Interrupt, 0, 7),
    (ObjectType::Vcpu, 0, 15),
    (ObjectType::Plan, 8, 8),
];

fn each_type(lab: &mut Lab, check: &mut Check) {
    for (kind, size, bits) in MADE {
        let slot = lab.slots(3);
        let free = lab.arena.info().map_or(0, |info| info.free);
        let made = retype(lab.arena, kind as u64, size, 3, slot.0.into());
        if kind == ObjectType::Vcpu && lab.info.virtualization == 0 {
            check.equal("vCPU without hardware", made, Err(Error::NoHardware));
            continue;
        }
        check.good("retype", made);
        for index in 0..3 {
            let Some(found) = check.good("inspect", Lab::TABLE.inspect(slot.plus(index))) else { continue };
            check.equal("type", found.kind, Some(kind));
            check.equal("rights", found.rights, Rights::ALL);
            check.equal("badge", found.badge, 0);
        }
        let left = lab.arena.info().map_or(0, |info| info.free);
        let control = if kind == ObjectType::Untyped { 3 * 256 } else { 0 };
        let taken = free - left;
        let least = (3 << bits) + control;
        check.holds("takes what it says, and alignment", taken >= least && taken < least + (1 << bits) + 256);
    }
}

fn arguments(lab: &mut Lab, check: &mut Check) {
    let slot = u64::from(lab.slots(17).0);
    let arena = lab.arena;
    let free = arena.info().map_or(0, |info| info.free);
    let mut refused = |kind: u64, size: u64, count: u64, error: Error| {
        check.equal(
            &alloc::format!("retype {kind} {size} {count}"),
            retype(arena, kind, size, count, slot),
            Err(error),
        );
    };
    for kind in [0, 10, 13, 14, 15, 16, 255, 256, 1 << 32 | 2, u64::MAX] {
        refused(kind, 12, 1, Error::BadArgument);
    }
    for count in [0, 17, 1 << 32, u64::MAX] {
        refused(ObjectType::Frame as u64, 12, count, Error::BadArgument);
    }
    for size in [0, 11, 13, 20, 22, 31, 63, 64, 255, 256 + 12, u64::MAX] {
        refused(ObjectType::Frame as u64, size, 1, Error::BadArgument);
    }
    for size in [0, 11, 48, 63, 64, 255, 268] {
        refused(ObjectType::Untyped as u64, size, 1, Error::BadArgument);
    }
    for size in [0, 6, 22, 64] {
        refused(ObjectType::CapTable as u64, size, 1, Error::BadArgument);
    }
    for size in [0, 7, 21, 64] {
        refused(ObjectType::Plan as u64, size, 1, Error::BadArgument);
    }
    for kind in [2, 3, 255] {
        refused(ObjectType::AddressSpace as u64, kind, 1, Error::BadArgument);
    }
    for size in [ARENA_BITS as u64 + 1, 40, 47] {
        refused(ObjectType::Untyped as u64, size, 1, Error::NoMemory);
    }
    refused(ObjectType::Frame as u64, 30, 16, Error::NoMemory);
    check.equal("nothing was taken", arena.info().map(|info| info.free), Ok(free));
}

fn arithmetic(lab: &mut Lab, check: &mut Check) {
    // All of it in frames: exactly so many.
    let pages = 1u32 << (ARENA_BITS - 12);
    let arena = lab.arena;
    let slot = lab.slots(pages);
    for at in (0..pages).step_by(16) {
        check.good("frames", arena.retype_frames(FrameSize::Small, 16, slot.plus(at)));
    }
    check.equal("free", arena.info().map(|info| info.free), Ok(0));
    let more = lab.slots(1);
    check.equal("one more", arena.retype_frames(FrameSize::Small, 1, more).err(), Some(Error::NoMemory));
    check.equal("an endpoint", arena.retype_endpoints(1, more).err(), Some(Error::NoMemory));
    check.good("revoke", arena.revoke_fully());
    // Objects from below, frames from above: they meet.
    check.good("endpoint", arena.retype_endpoints(1, slot));
    let mut frames = 0;
    while frames < pages && arena.retype_frames(FrameSize::Small, 1, slot.plus(1 + frames)).is_ok() {
        frames += 1;
    }
    check.equal("frames beside an endpoint", frames, pages - 1);
    check.equal("the rest", arena.info().map(|info| info.free), Ok(4096 - 64));
    check.good(
        "notification",
        arena.retype_notifications(16, more.plus(0)).or_else(|_| arena.retype_notifications(1, more)),
    );
    check.good("revoke", arena.revoke_fully());
    check.good("large frame", arena.retype_frames(FrameSize::Large, 1, slot));
    check.equal("free", arena.info().map(|info| info.free), Ok(0));
}

fn slots(lab: &mut Lab, check: &mut Check) {
    let arena = lab.arena;
    let last = u64::from(lab.info.slot_count) + 1;
    let frame = ObjectType::Frame as u64;
    for slot in [0, 1, last + 1, u64::MAX, u64::MAX - 3, 1 << 59] {
        check.equal("outside", retype(arena, frame, 12, 1, slot), Err(Error::NoSlot));
    }
    check.equal("over the end", retype(arena, frame, 12, 2, last), Err(Error::NoSlot));
    check.good("the last slot", retype(arena, frame, 12, 1, last));
    check.good("delete", Lab::TABLE.delete(Slot(last as u32)));
    let slot = lab.slots(4);
    check.good("one in the middle", arena.retype_endpoints(1, slot.plus(2)));
    let free = arena.info().map(|info| info.free);
    check.equal("in use", retype(arena, frame, 12, 4, slot.0.into()), Err(Error::SlotInUse));
    check.equal("the untyped itself", retype(arena, frame, 12, 1, arena.slot().0.into()), Err(Error::SlotInUse));
    check.equal("nothing was taken", arena.info().map(|info| info.free), free);
    check.equal("nor placed", Lab::TABLE.inspect(slot).map(|found| found.kind), Ok(None));
}

fn nesting(lab: &mut Lab, check: &mut Check) {
    let mut untyped = lab.arena;
    let mut depth = 0;
    loop {
        let slot = lab.slots(1);
        match untyped.retype_untypeds(ARENA_BITS - 1 - depth, 1, slot) {
            Ok(made) => untyped = made.get(0).unwrap_or(untyped),
            Err(error) => {
                check.equal("too deep", error, Error::TooDeep);
                break;
            }
        }
        depth += 1;
        if !check.holds("bounded", depth < 9) {
            break;
        }
    }
    // The arena itself was made from an untyped of the machine's.
    check.equal("levels", depth, 7);
    let slot = lab.slots(1);
    check.good("an endpoint at the bottom", untyped.retype_endpoints(1, slot));
    check.good("revoke", lab.arena.revoke_fully());
    check.equal("ended", Lab::TABLE.inspect(slot).map(|found| found.kind), Ok(None));
}

fn dirty(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let dirty = lab.dirty;
    check.equal("frame", dirty.retype_frames(FrameSize::Small, 1, slot).err(), Some(Error::Revoking));
    check.equal("endpoint", dirty.retype_endpoints(1, slot).err(), Some(Error::Revoking));
    let Some(made) = check.good("untyped", dirty.retype_untypeds(12, 1, slot)) else { return };
    let Some(inner) = made.get(0) else { return };
    check.equal("kind", inner.info().map(|info| info.kind), Ok(0));
    check.equal("endpoint in it", inner.retype_endpoints(1, slot.plus(1)).err(), Some(Error::Revoking));
    check.equal("tables of it", Lab::SPACE.add_memory(inner), Err(Error::Revoking));
    check.good("revoke", inner.revoke_fully());
    check.equal("kind", inner.info().map(|info| info.kind), Ok(1));
    check.good("endpoint in it", inner.retype_endpoints(1, slot.plus(1)));
    check.equal("in use", Lab::TABLE.delete(slot), Err(Error::InUse));
    check.good("revoke", inner.revoke_fully());
}

fn content(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let all = lab.info.untyped.iter().take(lab.info.untyped_count as usize);
    let found = all.enumerate().find(|(_, untyped)| untyped.kind == 2 && untyped.size_bits >= 13);
    let Some((index, _)) = found else {
        check.holds("there is an untyped with contents", false);
        return;
    };
    let content = Untyped::new(Slot(moira_abi::boot::slot::UNTYPED + index as u32));
    check.equal("endpoint", content.retype_endpoints(1, slot).err(), Some(Error::WrongType));
    check.equal("untyped", content.retype_untypeds(12, 1, slot).err(), Some(Error::WrongType));
    check.equal("tables", Lab::SPACE.add_memory(content), Err(Error::WrongType));
    let Some(frames) = check.good("frame", content.retype_frames(FrameSize::Small, 1, slot)) else { return };
    let Some(frame) = frames.get(0) else { return };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ));
    check.holds("its contents are kept", (0..512).any(|word| moira_lab::stored(address + word * 8) != 0));
}

fn revoke(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 3)) else { return };
    let slot = lab.slots(40);
    for (index, (kind, size, _)) in MADE.iter().enumerate() {
        if *kind != ObjectType::Vcpu || lab.info.virtualization != 0 {
            check.good("retype", retype(lab.arena, *kind as u64, *size, 1, u64::from(slot.0) + index as u64));
        }
    }
    // Copies of a copy, elsewhere.
    check.good("copy", Lab::TABLE.copy(puppet.thread, slot.plus(20), Rights::ALL));
    check.good("copy", Lab::TABLE.copy(moira_sys::Thread::new(slot.plus(20)), slot.plus(21), Rights(0)));
    check.good("runs", puppet.invoke(lab, 0, 0, &[]));
    check.good("revoke", lab.arena.revoke_fully());
    for index in 0..40 {
        check.equal("empty", Lab::TABLE.inspect(slot.plus(index)).map(|found| found.kind), Ok(None));
    }
    check.equal("thread", puppet.thread.stop(), Err(Error::Empty));
    check.good("again is fine", lab.arena.revoke_fully());
}

fn zeroes(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let address = lab.address(1);
    for round in 0..2 {
        let Some(frames) = check.good("frame", lab.arena.retype_frames(FrameSize::Small, 1, slot)) else { return };
        let Some(frame) = frames.get(0) else { return };
        check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ_WRITE));
        for word in 0..512 {
            check.equal("zero", moira_lab::stored(address + word * 8), 0);
            moira_lab::store(address + word * 8, !0 - round);
        }
        check.good("revoke", lab.arena.revoke_fully());
    }
}

fn stepwise(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    check.good("endpoint", lab.arena.retype_endpoints(1, slot));
    let mut steps = 0u32;
    loop {
        match lab.arena.revoke() {
            Ok(()) => break,
            Err(Error::Again | Error::Retiring) => steps += 1,
            Err(other) => {
                check.equal("step", other, Error::Again);
                break;
            }
        }
        check.equal("meanwhile", lab.arena.retype_endpoints(1, slot).err(), Some(Error::Revoking));
    }
    check.holds("each step is bounded", steps >= 1 << (ARENA_BITS - 12));
    check.good("afterwards", lab.arena.retype_endpoints(1, slot));
}

fn inner(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(4);
    let Some(made) = check.good("untyped", lab.arena.retype_untypeds(16, 2, slot)) else { return };
    let (Some(first), Some(second)) = (made.get(0), made.get(1)) else { return };
    check.good("endpoint", first.retype_endpoints(1, slot.plus(2)));
    check.good("endpoint", second.retype_endpoints(1, slot.plus(3)));
    check.good("revoke one", first.revoke_fully());
    check.equal("ended", Lab::TABLE.inspect(slot.plus(2)).map(|found| found.kind), Ok(None));
    check.equal(
        "not the other",
        Lab::TABLE.inspect(slot.plus(3)).map(|found| found.kind),
        Ok(Some(ObjectType::Endpoint)),
    );
    check.equal("whole", first.info().map(|info| info.free), Ok(1 << 16));
    check.equal("copied", Lab::TABLE.copy(second, slot.plus(2), Rights::ALL).err(), Some(Error::NotCopyable));
    check.good("delete an unused one", Lab::TABLE.delete(first.slot()));
    check.equal("delete a used one", Lab::TABLE.delete(second.slot()), Err(Error::InUse));
}

/// An untyped's capability in a table that was made from it: the parent still gets everything back.
fn into_itself(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let Some(untyped) = check.good("untyped", lab.arena.retype_untypeds(16, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(table) = check.good("table", untyped.retype_table(9, slot.plus(1))) else { return };
    check.good("move", table.move_to(untyped, Slot(2)));
    check.equal("gone from here", untyped.info().err(), Some(Error::Empty));
    check.good("revoke the parent", lab.arena.revoke_fully());
    check.equal("all of it", lab.arena.info().map(|info| info.free), Ok(1 << ARENA_BITS));
}

/// The machine's numbers for spaces are bounded: one call too many fails cleanly and nothing is half made.
fn numbers(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(16);
    let mut made = 0u32;
    let mut refused = 0;
    while made < 5000 && refused < 100 {
        let before = lab.arena.info().map_or(0, |info| info.free);
        match retype(lab.arena, ObjectType::AddressSpace as u64, 0, 16, slot.0.into()) {
            Ok(_) => made += 16,
            Err(error) => {
                refused += 1;
                check.holds("an error that says so", matches!(error, Error::Again | Error::NoMemory));
                let after = lab.arena.info().map_or(1, |info| info.free);
                let kept = (0..16)
                    .filter(|i| Lab::TABLE.inspect(slot.plus(*i)).is_ok_and(|found| found.kind.is_some()))
                    .count() as u64;
                if !check.equal("memory of what was made", before - after, kept * 256) {
                    break;
                }
            }
        }
        for index in 0..16 {
            let _ = Lab::TABLE.delete(slot.plus(index));
        }
        lab.go_on_with_audit();
    }
    check.holds("there are about four thousand", (4000..4100).contains(&made));
    let mut revoked = lab.arena.revoke();
    while revoked == Err(Error::Again) {
        lab.go_on_with_audit();
        revoked = lab.arena.revoke();
    }
    check.good("revoke", revoked);
    check.good("all are free again", retype(lab.arena, ObjectType::AddressSpace as u64, 0, 1, slot.0.into()));
}
