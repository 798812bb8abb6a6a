//! `Interrupt`, `IoPorts`, `Platform`.

use moira_abi::{Error, FrameSize, Method, Rights};
use moira_lab::{Check, Lab, code_of, invoke, stored};
use moira_sys::{Capability, Interrupt, InterruptFlags, MapFlags, Slot, Space};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("ports-range", ports);
    lab.experiment("platform-ports-errors", ports_errors);
    lab.experiment("platform-frame", frame);
    lab.experiment("platform-log-and-end-errors", log);
    lab.experiment_of_its_own("platform-trace", trace);
    lab.experiment("platform-start-cpu", start_cpu);
    lab.experiment("platform-io-apic-errors", io_apic);
    lab.experiment("interrupt-errors", interrupt);
    lab.experiment("interrupt-message", message);
    lab.experiment("interrupt-dies-bound-without-a-vector", dies_bound);
}

fn raw(method: Method, slot: u64, words: [u64; 6]) -> Result<[u64; 8], Error> {
    let [a, b, c, d, e, f] = words;
    invoke(code_of(method), slot, [a, b, c, d, e, f, 0, 0], 0).check()
}

fn ports(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    // The scratch register of the first serial port.
    let Some(ports) = check.good("ports", Lab::PLATFORM.make_ports(0x3f8, 0x3ff, slot)) else { return };
    for value in [0u8, 0x5a, 0xff] {
        check.good("out", ports.out8(0x3ff, value));
        check.equal("in", ports.in8(0x3ff), Ok(value));
    }
    let word = u64::from(slot.0);
    for (port, size) in [
        (0x3f7, 1),
        (0x400, 1),
        (0x3ff, 2),
        (0x3fe, 4),
        (0x3f8, 0),
        (0x3f8, 3),
        (0x3f8, 8),
        (0x3f8, 16),
        (0x1_03f8, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX, 4),
        (u64::MAX - 1, 4),
        (u64::MAX - 2, 4),
        (0x3f8, u64::MAX),
        (0x3f8, 1 << 63),
        (0, 1),
        (0xffff, 1),
    ] {
        check.equal(
            &alloc::format!("in {port:x} {size}"),
            raw(Method::PortIn, word, [port, size, 0, 0, 0, 0]).err(),
            Some(Error::BadArgument),
        );
        check.equal(
            &alloc::format!("out {port:x} {size}"),
            raw(Method::PortOut, word, [port, size, 0, 0, 0, 0]).err(),
            Some(Error::BadArgument),
        );
    }
    let Some(weak) = check.good("copy", Lab::TABLE.copy(ports, slot.plus(1), Rights(0))) else { return };
    check.equal("in without right", weak.in8(0x3ff).err(), Some(Error::NoRight));
    check.equal("out without right", weak.out8(0x3ff, 1).err(), Some(Error::NoRight));
}

fn ports_errors(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let make = |first: u64, last: u64, to: u64| raw(Method::PlatformMakeIoPorts, 7, [first, last, to, 0, 0, 0]).err();
    check.equal("order", make(5, 4, slot.0.into()), Some(Error::BadArgument));
    check.equal("range", make(0, 0x1_0000, slot.0.into()), Some(Error::BadArgument));
    check.equal("range", make(u64::MAX, u64::MAX, slot.0.into()), Some(Error::BadArgument));
    check.equal("slot", make(0x80, 0x80, 2), Some(Error::SlotInUse));
    check.equal("slot", make(0x80, 0x80, 1), Some(Error::NoSlot));
    check.equal("one port", make(0x80, 0x80, slot.0.into()), None);
}

fn frame(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let word = u64::from(slot.0);
    let make = |address: u64, bits: u64, to: u64| raw(Method::PlatformMakeFrame, 7, [address, bits, to, 0, 0, 0]).err();
    let ours = lab.arena.info().map_or(0, |info| info.address);
    check.equal("memory", make(ours, 12, word), Some(Error::BadArgument));
    check.equal("the kernel's memory", make(0x10_0000, 12, word), Some(Error::BadArgument));
    check.equal("memory in it", make(0, 30, word), Some(Error::BadArgument));
    check.equal("alignment", make(0xfed0_0800, 12, word), Some(Error::BadArgument));
    check.equal("size", make(0xfed0_0000, 13, word), Some(Error::BadArgument));
    check.equal("size", make(0xfed0_0000, 268, word), Some(Error::BadArgument));
    check.equal("far away", make(1 << 46, 12, word), Some(Error::BadArgument));
    check.equal("far away", make(!4095, 12, word), Some(Error::BadArgument));
    check.equal("slot", make(0xfed0_0000, 12, 2), Some(Error::SlotInUse));
    // The HPET's page, which both emulators have.
    let Some(frame) = check.good("frame", Lab::PLATFORM.make_frame(0xfed0_0000, FrameSize::Small, slot)) else {
        return;
    };
    let address = lab.address(1);
    check.good("map", Lab::SPACE.map(frame, address, MapFlags::READ.uncached()));
    check.holds("its id register", stored(address) != 0);
    check.equal("execute", Lab::SPACE.protect(frame, MapFlags::READ_EXECUTE), Err(Error::NoRight));
}

fn log(_: &mut Lab, check: &mut Check) {
    let call = |method: Method, bytes: u64, word: u64| {
        invoke(code_of(method) | bytes << 12, 7, [word, 0, 0, 0, 0, 0, 0, 0], 0).check().err()
    };
    check.equal("too long", call(Method::PlatformLog, 4097, 0), Some(Error::BadArgument));
    check.equal("nothing", call(Method::PlatformLog, 0, 0), None);
    check.equal("no such end", call(Method::PlatformEnd, 0, 4), Some(Error::BadArgument));
    check.equal("no such end", call(Method::PlatformEnd, 0, u64::MAX), Some(Error::BadArgument));
    check.equal("too long a reason", call(Method::PlatformEnd, 4097, 1), Some(Error::BadArgument));
}

fn trace(_: &mut Lab, check: &mut Check) {
    for cpu in [1u64, 255, 256, 1 << 32, u64::MAX] {
        check.equal("no such CPU", raw(Method::PlatformTrace, 7, [cpu, 0, 0, 0, 0, 0]).err(), Some(Error::BadArgument));
    }
    check.good("on", Lab::PLATFORM.set_trace(0, 1));
    let Some(first) = check.good("first", Lab::PLATFORM.set_trace(0, 1)) else { return };
    for _ in 0..10 {
        check.good("events", Lab::TABLE.inspect(Slot(2)));
    }
    let Some(copy) = check.good("copy", Lab::PLATFORM.trace(0, first)) else { return };
    check.holds("events were written", copy.next > copy.first && copy.written >= copy.next);
    for first in [u64::MAX - 1, u64::MAX - 31, 1 << 63] {
        let copy = Lab::PLATFORM.trace(0, first);
        check.holds("far beyond the end", copy.is_ok_and(|copy| copy.first == first && copy.next == first));
    }
    check.good("off", Lab::PLATFORM.set_trace(0, 0));
}

fn start_cpu(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(2);
    let boot = u64::from(lab.info.boot_apic_id);
    let start = |id: u64, to: u64| raw(Method::PlatformStartCpu, 7, [id, to, 0, 0, 0, 0]).err();
    check.equal("no id", start(1 << 32, slot.0.into()), Some(Error::BadArgument));
    check.equal("slot", start(boot, 2), Some(Error::SlotInUse));
    check.equal("slot", start(boot, 0), Some(Error::NoSlot));
    check.equal("one that runs", start(boot, slot.0.into()), None);
    check.equal(
        "is the boot processor",
        Lab::TABLE.inspect(slot).map(|found| found.kind),
        Ok(Some(moira_abi::ObjectType::Cpu)),
    );
}

fn io_apic(lab: &mut Lab, check: &mut Check) {
    let add = |address: u64, first: u64| raw(Method::PlatformAddIoApic, 7, [address, first, 0, 0, 0, 0]).err();
    let ours = lab.arena.info().map_or(0, |info| info.address);
    check.equal("memory", add(ours, 0), Some(Error::BadArgument));
    check.equal("alignment", add(0xfec0_0010, 0), Some(Error::BadArgument));
    check.equal("above 4 GiB", add(1 << 32, 0), Some(Error::BadArgument));
    check.equal("GSI", add(0xfec0_0000, 0x1_0000), Some(Error::BadArgument));
    check.equal("the machine's", add(0xfec0_0000, 0), None);
}

fn fresh(lab: &mut Lab, check: &mut Check) -> Option<Interrupt> {
    let slot = lab.slots(1);
    check.good("interrupt", lab.arena.retype_interrupts(1, slot)).and_then(|made| made.get(0))
}

fn interrupt(lab: &mut Lab, check: &mut Check) {
    let Some(source) = fresh(lab, check) else { return };
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    check.equal("ack before it is one", source.ack(), Err(Error::Inactive));
    check.equal("message of none", source.message().err(), Some(Error::WrongType));
    let (i, n) = (u64::from(source.slot().0), u64::from(one.slot().0));
    let make = |words: [u64; 6]| raw(Method::PlatformMakeInterrupt, 7, words).err();
    check.equal("kind", make([2, 4, 0, i, 6, n]), Some(Error::BadArgument));
    check.equal("flags", make([0, 4, 4, i, 6, n]), Some(Error::BadArgument));
    check.equal("no such line", make([0, 5000, 0, i, 6, n]), Some(Error::BadArgument));
    check.equal("no such line", make([0, u64::MAX, 0, i, 6, n]), Some(Error::BadArgument));
    check.equal("no interrupt", make([0, 4, 0, 4, 6, n]), Some(Error::WrongType));
    check.equal("no CPU", make([0, 4, 0, i, 4, n]), Some(Error::WrongType));
    check.equal("no notification", make([0, 4, 0, i, 6, 4]), Some(Error::WrongType));
    check.good("line", Lab::PLATFORM.make_line(source, 4, InterruptFlags::default(), Lab::CPU, one));
    check.equal("twice", make([0, 4, 0, i, 6, n]), Some(Error::InUse));
    check.equal("no message", source.message().err(), Some(Error::WrongType));
    check.good("ack", source.ack());
    check.good("another notification", source.bind(whole));
    check.equal("bind to none", raw(Method::InterruptBind, i, [4, 0, 0, 0, 0, 0]).err(), Some(Error::WrongType));
    // The serial port's line fires when its transmitter is empty and may say so.
    let slot = lab.slots(1);
    let Some(ports) = check.good("ports", Lab::PLATFORM.make_ports(0x3f8, 0x3ff, slot)) else { return };
    check.good("bind", source.bind(one));
    for _ in 0..3 {
        check.good("ack", source.ack());
        check.good("enable", ports.out8(0x3fc, 0x0b).and_then(|()| ports.out8(0x3f9, 2)));
        let bits = whole.wait(moira_sys::Deadline::after(lab.micros(1_000_000)));
        check.equal("it fires", bits, Ok(1));
        check.good("disable", ports.out8(0x3f9, 0));
        check.good("cause", ports.in8(0x3fa));
    }
}

fn message(lab: &mut Lab, check: &mut Check) {
    let Some((_, one, _)) = crate::notification::fresh(lab, check) else { return };
    let mut seen = alloc::vec::Vec::new();
    loop {
        let Some(source) = fresh(lab, check) else { return };
        match Lab::PLATFORM.make_msi(source, Lab::CPU, one) {
            Ok(()) => {
                let Some((address, data)) = check.good("message", source.message()) else { return };
                check.equal("address", address & 0xfff0_0000, 0xfee0_0000);
                check.holds("a vector of its own", (48..=239).contains(&data) && !seen.contains(&data));
                check.good("ack", source.ack());
                seen.push(data);
            }
            Err(error) => {
                check.equal("no vector is left", error, Error::NoMemory);
                break;
            }
        }
    }
    check.holds("there were many", seen.len() > 150);
    check.good("revoke", lab.arena.revoke_fully());
    let (Some(source), Some((_, one, _))) = (fresh(lab, check), crate::notification::fresh(lab, check)) else { return };
    check.good("they are free again", Lab::PLATFORM.make_msi(source, Lab::CPU, one));
}

/// A source that never got a vector dies while it is bound: the notification's capability must not lead there any more.
fn dies_bound(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let Some((whole, one, two)) = crate::notification::fresh(lab, check) else { return };
    let Some(memory) = check.good("untyped", lab.arena.retype_untypeds(12, 1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    let Some(source) = check.good("interrupt", memory.retype_interrupts(1, slot.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    check.good("bind", source.bind(one));
    check.good("revoke", memory.revoke_fully());
    check.good("a child of the notification", Lab::TABLE.copy(one, slot.plus(2), Rights::ALL));
    check.good("revoke", Lab::TABLE.revoke_fully(whole.slot()));
    for gone in [one.slot(), two.slot(), slot.plus(2)] {
        check.equal("gone", Lab::TABLE.inspect(gone).map(|found| found.kind), Ok(None));
    }
    let frame = memory.retype_frames(FrameSize::Small, 1, slot.plus(2)).ok().and_then(|made| made.get(0));
    let address = lab.address(1);
    check.holds("reused", frame.is_some_and(|frame| Lab::SPACE.map(frame, address, MapFlags::READ).is_ok()));
    check.holds("and clean", (0..512).all(|word| stored(address + word * 8) == 0));
}
