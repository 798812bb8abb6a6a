//! `AddressSpace` and `Frame`.

use moira_abi::{Error, Method, Rights, USER_END, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, code_of, invoke, store, stored};
use moira_sys::{AddressSpace, Capability, Frame, FrameSize, MapFlags, Slot, Space, Untyped};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("space-map-and-unmap", map);
    lab.experiment("space-map-arguments", arguments);
    lab.experiment("space-map-rights", rights);
    lab.experiment("space-write-xor-execute", write_xor_execute);
    lab.experiment("space-in-use", in_use);
    lab.experiment("space-no-memory", no_memory);
    lab.experiment("space-add-memory", add_memory);
    lab.experiment("space-protect", protect);
    lab.experiment("space-large-frames", large);
    lab.experiment("space-other", other);
    lab.experiment("space-delete-unmaps", delete_unmaps);
    lab.experiment("space-revoked-frames-are-unmapped", revoke_unmaps);
    lab.experiment("space-without-its-tables", without_tables);
    lab.experiment("space-kernel-half", kernel_half);
    lab.experiment("space-ends-while-loaded", ends_while_loaded);
}

pub fn frames(lab: &mut Lab, count: u32) -> Result<[Frame; 4], Error> {
    let slot = lab.slots(count);
    lab.arena.retype_frames(FrameSize::Small, count, slot)?;
    Ok([0, 1, 2, 3].map(|index: u32| Frame::new(slot.plus(index.min(count - 1)))))
}

/// A space of its own with memory for tables.
pub fn space(lab: &mut Lab) -> Result<(AddressSpace, Untyped), Error> {
    let slot = lab.slots(2);
    let space = lab.arena.retype_space(slot)?;
    let memory = lab.arena.retype_untypeds(15, 1, slot.plus(1))?.get(0).ok_or(Error::NoSlot)?;
    space.add_memory(memory)?;
    Ok((space, memory))
}

fn raw_map(space: AddressSpace, frame: u64, address: u64, flags: u64) -> Result<[u64; 8], Error> {
    invoke(code_of(Method::SpaceMap), space.slot().0.into(), [frame, address, flags, 0, 0, 0, 0, 0], 0).check()
}

/// A puppet's load or store or jump at an address.
fn touch(lab: &mut Lab, puppet: &Puppet, stub: Stub, address: u64) -> Result<Outcome, Error> {
    let mut registers = Registers::default();
    registers.gpr[3] = address;
    registers.gpr[0] = 0x1234;
    puppet.execute(lab, stub, registers)
}

/// What a stub that worked comes to: the `ud2` behind it.
pub const DONE: Outcome = Outcome::Fault(6, 0, 0);

fn map(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ_WRITE));
    store(address, 77);
    check.equal("load", touch(lab, &puppet, Stub::Load, address), Ok(DONE));
    check.equal("loaded", puppet.look(lab).map(|seen| seen.registers.gpr[0]), Ok(77));
    check.equal("store", touch(lab, &puppet, Stub::Store, address + 8), Ok(DONE));
    check.equal("stored", stored(address + 8), 0x1234);
    check.good("unmap", Lab::SPACE.unmap_fully(frame));
    check.equal("load", touch(lab, &puppet, Stub::Load, address), Ok(Outcome::Fault(14, 4, address)));
    check.equal("store", touch(lab, &puppet, Stub::Store, address), Ok(Outcome::Fault(14, 6, address)));
    check.equal("unmap again", Lab::SPACE.unmap(frame), Err(Error::NotMapped));
    check.good("map elsewhere", Lab::SPACE.map(frame, address + 4096, MapFlags::READ));
    check.equal("the same memory", stored(address + 4096), 77);
    check.equal("store", touch(lab, &puppet, Stub::Store, address + 4096), Ok(Outcome::Fault(14, 7, address + 4096)));
}

fn arguments(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let word = u64::from(frame.slot().0);
    for address in
        [1, 8, 0x20_0800, USER_END, USER_END + 4096, 1 << 47, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000, u64::MAX]
    {
        check.equal("address", raw_map(Lab::SPACE, word, address, 1), Err(Error::BadArgument));
    }
    let address = lab.address(1);
    for flags in [0x300 | 1, 0x400 | 1, 1 << 32 | 1, 1 << 63 | 1] {
        check.equal("flags", raw_map(Lab::SPACE, word, address, flags), Err(Error::BadArgument));
    }
    check.equal("no frame", raw_map(Lab::SPACE, u64::from(Lab::THREAD.slot().0), address, 1), Err(Error::WrongType));
    let empty = lab.slots(1);
    check.equal("empty", raw_map(Lab::SPACE, empty.0.into(), address, 1), Err(Error::Empty));
    check.equal("outside", raw_map(Lab::SPACE, u64::MAX, address, 1), Err(Error::NoSlot));
    check.good("the last page there is", raw_map(Lab::SPACE, word, USER_END - 4096, 1));
    check.equal("its contents", stored(USER_END - 4096), 0);
    check.good("unmap", Lab::SPACE.unmap_fully(frame));
    for flags in [0x100 | 3, 0x200 | 3] {
        check.good("cache", raw_map(Lab::SPACE, word, address, flags));
        check.equal("contents", stored(address), 0);
        check.good("unmap", Lab::SPACE.unmap_fully(frame));
    }
    check.equal(
        "unmap: no frame",
        invoke(code_of(Method::SpaceUnmap), 3, [4, 0, 0, 0, 0, 0, 0, 0], 0).check().err(),
        Some(Error::WrongType),
    );
    check.equal(
        "unmap: empty",
        invoke(code_of(Method::SpaceUnmap), 3, [empty.0.into(), 0, 0, 0, 0, 0, 0, 0], 0).check().err(),
        Some(Error::Empty),
    );
}

fn rights(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let address = lab.address(1);
    for have in 0..8u8 {
        let slot = lab.slots(1);
        let Some(copy) = check.good("copy", Lab::TABLE.copy(frame, slot, Rights(have))) else { return };
        for want in 0..8u8 {
            let should =
                if want & have == want && want & 1 != 0 && want & 6 != 6 { Ok(()) } else { Err(Error::NoRight) };
            let is = raw_map(Lab::SPACE, copy.slot().0.into(), address, want.into()).map(|_| ());
            check.equal(&alloc::format!("{have} allows {want}"), is, should);
            if is.is_ok() {
                check.good("unmap", Lab::SPACE.unmap_fully(copy));
            }
        }
    }
}

fn write_xor_execute(lab: &mut Lab, check: &mut Check) {
    let Some([frame, second, ..]) = check.good("frame", frames(lab, 2)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ_WRITE));
    store(address, 0x0b0f); // ud2
    check.equal("jump to data", touch(lab, &puppet, Stub::Jump, address), Ok(Outcome::Fault(14, 0x15, address)));
    check.equal("protect to both", Lab::SPACE.protect(frame, MapFlags::GUEST_ALL), Err(Error::NoRight));
    check.good("protect to execute", Lab::SPACE.protect_fully(frame, MapFlags::READ_EXECUTE));
    check.equal("jump to code", touch(lab, &puppet, Stub::Jump, address), Ok(DONE));
    check.equal("store to code", touch(lab, &puppet, Stub::Store, address), Ok(Outcome::Fault(14, 7, address)));
    check.equal("map both", Lab::SPACE.map(second, address + 4096, MapFlags::GUEST_ALL), Err(Error::NoRight));
}

fn in_use(lab: &mut Lab, check: &mut Check) {
    let Some([frame, second, ..]) = check.good("frame", frames(lab, 2)) else { return };
    let (address, slot) = (lab.address(2), lab.slots(1));
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ));
    check.equal("twice", Lab::SPACE.map(frame, address + 4096, MapFlags::READ), Err(Error::InUse));
    check.equal("another there", Lab::SPACE.map(second, address, MapFlags::READ), Err(Error::InUse));
    let Some(copy) = check.good("copy", Lab::TABLE.copy(frame, slot, Rights::ALL)) else { return };
    check.good("a copy elsewhere", Lab::SPACE.map(copy, address + 4096, MapFlags::READ_WRITE));
    store(address + 4096, 5);
    check.equal("the same memory", stored(address), 5);
    check.good("unmap", Lab::SPACE.unmap_fully(frame));
    check.equal("the copy stays", stored(address + 4096), 5);
    check.equal("not the frame's own", Lab::SPACE.unmap(frame), Err(Error::NotMapped));
}

fn no_memory(lab: &mut Lab, check: &mut Check) {
    let Some([frame, second, ..]) = check.good("frame", frames(lab, 2)) else { return };
    let slot = lab.slots(5);
    let Some(space) = check.good("space", lab.arena.retype_space(slot)) else { return };
    check.equal("no tables", space.map(frame, 0x1000, MapFlags::READ), Err(Error::NoMemory));
    // One page at a time: the top level and the three below it.
    for index in 0..4 {
        check.equal("still too few", space.map(frame, 0x1000, MapFlags::READ), Err(Error::NoMemory));
        let Some(page) = check.good("page", lab.arena.retype_untypeds(12, 1, slot.plus(1 + index))) else { return };
        check.good("add", page.get(0).map_or(Err(Error::NoSlot), |page| space.add_memory(page)));
    }
    check.good("enough", space.map(frame, 0x1000, MapFlags::READ));
    check.good("the tables are there", space.map(second, 0x2000, MapFlags::READ));
}

fn add_memory(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(4);
    let Some(made) = check.good("untyped", lab.arena.retype_untypeds(13, 1, slot)) else { return };
    let Some(memory) = made.get(0) else { return };
    check.good("endpoint", memory.retype_endpoints(1, slot.plus(1)));
    check.equal("touched", Lab::SPACE.add_memory(memory), Err(Error::InUse));
    check.good("revoke", memory.revoke_fully());
    let add = |space: u64, word: u64| {
        invoke(code_of(Method::SpaceAddMemory), space, [word, 0, 0, 0, 0, 0, 0, 0], 0).check().err()
    };
    check.equal("no untyped", add(3, 4), Some(Error::WrongType));
    check.equal("empty", add(3, slot.plus(2).0.into()), Some(Error::Empty));
    let Some(space) = check.good("space", lab.arena.retype_space(slot.plus(3))) else { return };
    check.good("clean", space.add_memory(memory));
    check.equal("twice", space.add_memory(memory), Err(Error::InUse));
    check.equal("used up", memory.info().map(|info| info.free), Ok(0));
    check.equal("nothing more of it", memory.retype_endpoints(1, slot.plus(1)).err(), Some(Error::NoMemory));
}

fn protect(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let (address, slot) = (lab.address(1), lab.slots(1));
    check.equal("not mapped", Lab::SPACE.protect(frame, MapFlags::READ), Err(Error::NotMapped));
    let Some(weak) = check.good("copy", Lab::TABLE.copy(frame, slot, Rights::READ)) else { return };
    check.good("map", Lab::SPACE.map(weak, address, MapFlags::READ));
    check.equal("beyond its rights", Lab::SPACE.protect(weak, MapFlags::READ_WRITE), Err(Error::NoRight));
    check.good("map", Lab::SPACE.map(frame, address + 4096, MapFlags::READ_WRITE));
    check.good("narrow", Lab::SPACE.protect_fully(frame, MapFlags::READ));
    check.equal("store", touch(lab, &puppet, Stub::Store, address + 4096), Ok(Outcome::Fault(14, 7, address + 4096)));
    check.good("widen", Lab::SPACE.protect_fully(frame, MapFlags::READ_WRITE));
    check.equal("store", touch(lab, &puppet, Stub::Store, address + 4096), Ok(DONE));
    let bad =
        invoke(code_of(Method::SpaceProtect), 3, [frame.slot().0.into(), 0x401, 0, 0, 0, 0, 0, 0], 0).check().err();
    check.equal("flags", bad, Some(Error::BadArgument));
}

fn large(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let address = lab.address(1024);
    // The arena is exactly one large frame.
    let Some(frame) =
        check.good("frame", lab.arena.retype_frames(FrameSize::Large, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    check.equal("alignment", Lab::SPACE.map(frame, address + 4096, MapFlags::READ), Err(Error::BadArgument));
    let last = USER_END & !0x1f_ffff;
    check.equal("over the end", Lab::SPACE.map(frame, last, MapFlags::READ), Err(Error::BadArgument));
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ_WRITE));
    store(address + 0x1f_fff8, 9);
    check.equal("contents", (stored(address), stored(address + 0x1f_fff8)), (0, 9));
    let Some(copy) = check.good("copy", Lab::TABLE.copy(frame, slot.plus(1), Rights::ALL)) else { return };
    check.equal("there already", Lab::SPACE.map(copy, address, MapFlags::READ), Err(Error::InUse));
    check.good("unmap", Lab::SPACE.unmap_fully(frame));
    check.good("map the copy", Lab::SPACE.map(copy, address, MapFlags::READ));
    check.equal("contents", stored(address + 0x1f_fff8), 9);
}

fn other(lab: &mut Lab, check: &mut Check) {
    let Some([frame, code, ..]) = check.good("frame", frames(lab, 2)) else { return };
    let Some((space, _)) = check.good("space", space(lab)) else { return };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(code, address, MapFlags::READ_WRITE));
    // mov rax, [rbx]; ud2
    store(address, 0x0b_0f03_8b48);
    check.good("unmap", Lab::SPACE.unmap_fully(code));
    let page = Stub::Load.address() & !4095;
    check.good("code", space.map(code, 0x7000, MapFlags::READ_EXECUTE));
    check.good("data", space.map(frame, 0x9000, MapFlags::READ));
    check.equal("mapped in another space", Lab::SPACE.unmap(frame), Err(Error::BadArgument));
    check.equal("protect there", Lab::SPACE.protect(frame, MapFlags::READ), Err(Error::NotMapped));
    let with = With { space, ..With::level(2) };
    let Some(puppet) = check.good("puppet", Puppet::with(lab, with)) else { return };
    // The laboratory's code is not in this space.
    check.equal("a stub", touch(lab, &puppet, Stub::Load, 0x9000), Ok(Outcome::Fault(14, 0x14, Stub::Load.address())));
    check.holds("that page", page != 0x7000);
    let mut registers = Registers { rip: 0x7000, ..Registers::default() };
    registers.gpr[3] = 0x9000;
    registers.gpr[0] = 1;
    check.good("write", puppet.thread.write_registers(&mut lab.buffer, &registers));
    check.good("resume", puppet.thread.resume());
    check.equal("its own code", puppet.run(lab), Ok(DONE));
    check.equal("its own data", puppet.look(lab).map(|seen| seen.registers.gpr[0]), Ok(0));
    registers.gpr[3] = 0xa000;
    check.good("write", puppet.thread.write_registers(&mut lab.buffer, &registers));
    check.good("resume", puppet.thread.resume());
    check.equal("nothing there", puppet.run(lab), Ok(Outcome::Fault(14, 4, 0xa000)));
}

fn delete_unmaps(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let (address, slot) = (lab.address(1), lab.slots(2));
    let Some(copy) = check.good("copy", Lab::TABLE.copy(frame, slot, Rights::ALL)) else { return };
    check.good("map", Lab::SPACE.map(copy, address, MapFlags::READ));
    let Some(moved) = check.good("move", Lab::TABLE.move_to(copy, slot.plus(1))) else { return };
    check.equal("moved along", touch(lab, &puppet, Stub::Load, address), Ok(DONE));
    check.equal("still in use", Lab::SPACE.map(moved, address + 4096, MapFlags::READ), Err(Error::InUse));
    check.good("delete", Lab::TABLE.delete_fully(moved.slot()));
    check.equal("load", touch(lab, &puppet, Stub::Load, address), Ok(Outcome::Fault(14, 4, address)));
    check.good("the frame itself", Lab::SPACE.map(frame, address, MapFlags::READ));
}

fn revoke_unmaps(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(frame) =
        check.good("frame", memory.retype_frames(FrameSize::Small, 1, slot.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ_WRITE));
    store(address, 1);
    check.good("revoke", memory.revoke_fully());
    check.equal("load", touch(lab, &puppet, Stub::Load, address), Ok(Outcome::Fault(14, 4, address)));
    check.equal("whole", memory.info().map(|info| info.free), Ok(4096));
}

/// The memory of a space's tables is taken back while capabilities to the space live on: it is dead for good, and so is
/// whoever runs in it.
fn without_tables(lab: &mut Lab, check: &mut Check) {
    let Some([frame, ..]) = check.good("frame", frames(lab, 1)) else { return };
    let Some((space, memory)) = check.good("space", space(lab)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::with(lab, With { space, ..With::level(1) })) else { return };
    check.good("map", space.map(frame, 0x1000, MapFlags::READ));
    check.good("revoke", memory.revoke_fully());
    check.equal("map", space.map(frame, 0x2000, MapFlags::READ), Err(Error::InUse));
    check.equal("add", space.add_memory(memory), Err(Error::Inactive));
    check.equal("whole", memory.info().map(|info| info.free), Ok(1 << 15));
    check.equal("unmap", space.unmap(frame), Err(Error::NotMapped));
    check.equal("map", space.map(frame, 0x2000, MapFlags::READ), Err(Error::Inactive));
    check.holds("its thread cannot run", !matches!(touch(lab, &puppet, Stub::Load, 0x1000), Ok(DONE)));
    check.good("the frame is free", Lab::SPACE.map(frame, 0x1000, MapFlags::READ));
    check.good("unmap", Lab::SPACE.unmap_fully(frame));
}

fn kernel_half(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    for address in [0xffff_8000_0000_0000, 0xffff_8000_0010_0000, 0xffff_ffff_8010_0000, 0xffff_ffff_ffff_f000] {
        for (stub, code) in [(Stub::Load, 5), (Stub::Store, 7), (Stub::Jump, 0x15)] {
            match touch(lab, &puppet, stub, address) {
                Ok(Outcome::Fault(14, error, at)) => {
                    // Whether it says "present" is the table's affair; that it was a user's access is not.
                    check.equal("error code", error | 1, code);
                    check.equal("address", at, address);
                }
                other => {
                    check.equal("kernel memory", other, Ok(Outcome::Fault(14, code, address)));
                }
            }
        }
    }
    for address in [1 << 47, 0x8000_0000_0000, 0xffff_7fff_ffff_f000, 1 << 62] {
        check.equal("not canonical", touch(lab, &puppet, Stub::Load, address), Ok(Outcome::Fault(13, 0, 0)));
    }
    check.equal("page 0", touch(lab, &puppet, Stub::Load, 0), Ok(Outcome::Fault(14, 4, 0)));
    check.equal("the hole", touch(lab, &puppet, Stub::Load, USER_END), Ok(Outcome::Fault(14, 4, USER_END)));
}

fn ends_while_loaded(lab: &mut Lab, check: &mut Check) {
    let Some((space, _)) = check.good("space", space(lab)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::with(lab, With { space, ..With::level(1) })) else { return };
    check.equal("runs", touch(lab, &puppet, Stub::Load, 0), Ok(Outcome::Fault(14, 0x14, Stub::Load.address())));
    let context = puppet.context;
    check.good("revoke", lab.arena.revoke_fully());
    let gone = context.map(|context| Lab::dispatch(Some(context), moira_sys::Deadline::NEVER, lab.sequence()).err());
    check.equal("gone", gone, Some(Some(Error::Empty)));
    check.equal("slot", Lab::TABLE.inspect(Slot(space.slot().0)).map(|found| found.kind), Ok(None));
}
