//! What a VMM lets its guest reach: `set_space`, `allow_msr`, `allow_ports`.

use super::{at, exit, fresh, raw, ready, svm, word};
use moira_abi::{
    Error, Method,
    vcpu::{Exit, PortIo, group},
};
use moira_lab::{Check, Lab, Mode, guest::CODE};
use moira_sys::{Capability, Rights, Space};

pub fn set_space(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4\xeb\xfd") else { return };
    let slot = lab.slots(3);
    let set = |capability: u64| raw(Method::VcpuSetSpace, &guest, [capability, 0, 0]);
    let Some(other) = check.good("space", lab.arena.retype_guest_space(slot)) else { return };
    check.equal("no slot", set(u64::MAX), Some(Error::NoSlot));
    check.equal("empty", set(u64::from(slot.plus(2).0)), Some(Error::Empty));
    check.equal("another type", set(word(guest.state)), Some(Error::WrongType));
    check.equal("a task's", set(word(Lab::SPACE)), Some(Error::WrongType));
    check.equal("no tables", set(word(other)), Some(Error::NoMemory));
    let tables = check.good("tables", lab.arena.retype_untypeds(15, 1, slot.plus(1))).and_then(|made| made.get(0));
    check.equal("tables", tables.map(|tables| other.add_memory(tables)), Some(Ok(())));
    check.equal("as it was", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    check.equal("another", set(word(other)), None);
    check.equal("has nothing", exit(lab, &guest, 0), Ok(Exit::Memory));
    check.holds("at its tables, or its code", guest.get(at!(address)) < 0xa000);
    check.equal("back", set(word(guest.space)), None);
    check.equal("as it was", exit(lab, &guest, 0), Ok(Exit::Halt));
}

/// The table of `docs/abi/vcpu.md`: number, reads, writes.
fn openable(svm: bool) -> [(u64, bool, bool); 11] {
    [
        (0x174, true, true),
        (0x175, true, true),
        (0x176, true, true),
        (0xc000_0100, true, true),
        (0xc000_0101, true, true),
        (0xc000_0102, true, true),
        (0xc000_0081, svm, svm),
        (0xc000_0082, svm, svm),
        (0xc000_0083, svm, svm),
        (0xc000_0084, svm, svm),
        (0xc000_0103, true, false),
    ]
}

pub fn allow_msr(lab: &mut Lab, check: &mut Check) {
    let svm = svm(lab);
    // rdmsr, hlt; wrmsr, hlt.
    let Some(guest) = fresh(lab, check, b"\x0f\x32\xf4\x90\x90\x90\x90\x90\x0f\x30\xf4") else { return };
    let allow = |number: u64, access: u64| raw(Method::VcpuAllowMsr, &guest, [number, access, 0]);
    for number in [0, 0x10, 0x1b, 0x277, 0xc000_0080, 0xc001_0015, 0x4000_0000, 0x1_0000_0174, u64::MAX] {
        check.equal(&alloc::format!("{number:x}"), allow(number, 3), Some(Error::BadArgument));
    }
    let enter_at = |lab: &Lab, number: u64, at: u64| {
        ready(&guest, b"\x0f\x32\xf4\x90\x90\x90\x90\x90\x0f\x30\xf4");
        (0..4).for_each(|gpr| guest.set(at!(gpr) + gpr * 8, 0));
        guest.set(at!(gpr) + 8, number);
        guest.set(at!(rip), at);
        exit(lab, &guest, group::ALL)
    };
    let expected = |open: bool, exit: Exit| Ok(if open { Exit::Halt } else { exit });
    for (number, reads, writes) in openable(svm) {
        for access in [0, 1, 2, 3, 0] {
            let what = alloc::format!("MSR {number:x}, access {access}");
            check.equal(&what, allow(number, access), None);
            let (read, write) = (reads && access & 1 != 0, writes && access & 2 != 0);
            check.equal(&what, enter_at(lab, number, CODE), expected(read, Exit::MsrRead));
            check.equal(&what, enter_at(lab, number, CODE + 8), expected(write, Exit::MsrWrite));
        }
    }
    check.equal("open", allow(0x176, 3), None);
    ready(&guest, b"\x0f\x32\xf4");
    guest.set(at!(sysenter_eip), 0x1234_5678);
    guest.set(at!(gpr) + 8, 0x176);
    check.equal("reads", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    check.equal("what the page says", guest.get(at!(gpr)), 0x1234_5678);
}

pub fn allow_ports(lab: &mut Lab, check: &mut Check) {
    // in al, dx; hlt; and with 16 bits.
    let Some(guest) = fresh(lab, check, b"\xec\xf4\x90\x90\x90\x90\x90\x90\x66\xed\xf4") else { return };
    let slot = lab.slots(4);
    let allow = |capability: u64| raw(Method::VcpuAllowPorts, &guest, [capability, 0, 0]);
    check.equal("no slot", allow(u64::MAX), Some(Error::NoSlot));
    check.equal("empty", allow(u64::from(slot.0)), Some(Error::Empty));
    check.equal("another type", allow(word(guest.space)), Some(Error::WrongType));
    let Some(one) = check.good("port", Lab::PLATFORM.make_ports(0x80, 0x80, slot)) else { return };
    let Some(weak) = check.good("copy", Lab::TABLE.copy(one, slot.plus(1), Rights(0))) else { return };
    check.equal("rights", allow(word(weak)), Some(Error::NoRight));
    // Across the middle of the map.
    let Some(many) = check.good("ports", Lab::PLATFORM.make_ports(0x7ff5, 0x800a, slot.plus(2))) else { return };
    let enter_at = |lab: &Lab, port: u64, at: u64| {
        guest.basis(at, Mode::Long);
        guest.set(at!(gpr) + 16, port);
        exit(lab, &guest, group::ALL)
    };
    check.equal("closed", enter_at(lab, 0x80, CODE), Ok(Exit::Port));
    check.equal("which", guest.get(at!(qualification)), PortIo::new(0x80, 1, true, false, false).0);
    check.equal("one", allow(word(one)), None);
    check.equal("it", enter_at(lab, 0x80, CODE), Ok(Exit::Halt));
    check.equal("before", enter_at(lab, 0x7f, CODE), Ok(Exit::Port));
    check.equal("behind", enter_at(lab, 0x81, CODE), Ok(Exit::Port));
    check.equal("beyond its end", enter_at(lab, 0x80, CODE + 8), Ok(Exit::Port));
    check.equal("many", allow(word(many)), None);
    for (port, open) in
        [(0x7ff4, false), (0x7ff5, true), (0x7fff, true), (0x8000, true), (0x800a, true), (0x800b, false)]
    {
        let expected = Ok(if open { Exit::Halt } else { Exit::Port });
        check.equal(&alloc::format!("port {port:x}"), enter_at(lab, port, CODE), expected);
    }
    check.equal("two", enter_at(lab, 0x7fff, CODE + 8), Ok(Exit::Halt));
    check.equal("half of two", enter_at(lab, 0x800a, CODE + 8), Ok(Exit::Port));
    check.good("delete", Lab::TABLE.delete_fully(one.slot()));
    check.equal("what is open stays open", enter_at(lab, 0x80, CODE), Ok(Exit::Halt));
}
