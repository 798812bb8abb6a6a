//! What guests do, alike on both vendors: exits, events, windows.

use super::{HANDLERS, at, bochs_svm, enter, exit, fresh, ready, skip, svm};
use moira_abi::vcpu::{Exit, PortIo, access, control_write, event, group, interruptibility, invalid, request};
use moira_lab::{
    Check, Guest, Lab,
    guest::{CODE, STACK},
    stored,
};
use moira_sys::{Deadline, VcpuExit};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("guest-exits", exits);
    lab.experiment("guest-memory-exits", memory);
    lab.experiment("guest-exceptions", exceptions);
    lab.experiment("guest-events", events);
    lab.experiment("guest-interrupt-window", interrupt_window);
    lab.experiment("guest-nmi-window", nmi_window);
    lab.experiment("guest-event-before-nmi-window", event_before_nmi_window);
    lab.experiment("guest-event-replaced", event_replaced);
    lab.experiment("guest-nmi-blocked-until-iret", nmi_blocked);
    if !bochs_svm(lab) {
        lab.experiment("guest-shutdown", shutdown);
    }
}

/// What a register that is not named by the processor reads as.
fn register(svm: bool, number: u64, flags: u64, value: u64) -> bool {
    let named = value & !control_write::UNDECODED == number | flags;
    named && (svm || value & control_write::UNDECODED == 0)
}

/// Instructions that exit: which exit, what it says, and that nothing was done.
fn exits(lab: &mut Lab, check: &mut Check) {
    let svm = svm(lab);
    let hypercall: &[u8] = if svm { b"\x0f\x01\xd9" } else { b"\x0f\x01\xc1" };
    let undefined: &[u8] = if svm { b"\x0f\x01\xdc" } else { b"\x0f\x01\xc4" };
    let port = |size, input| PortIo::new(0x80, size, input, false, false).0;
    let instructions: [(&[u8], Exit, u64); 16] = [
        (b"\x0f\xa2", Exit::Cpuid, 0),
        (b"\xec", Exit::Port, port(1, true)),
        (b"\x66\xef", Exit::Port, port(2, false)),
        (b"\xe7\x80", Exit::Port, port(4, false)),
        (b"\xf4", Exit::Halt, 0),
        (b"\x0f\x32", Exit::MsrRead, 0),
        (b"\x0f\x30", Exit::MsrWrite, 0),
        (hypercall, Exit::Hypercall, 0),
        (b"\x0f\x09", Exit::CacheFlush, 0),
        (b"\x0f\x08", Exit::CacheFlush, 0),
        (b"\x0f\x01\xc8", Exit::Mwait, 0),
        (b"\x0f\x33", Exit::Rdpmc, 0),
        (undefined, Exit::Undefined, 0),
        (b"\x44\x0f\x22\xc0", Exit::ControlWrite, 8),
        (b"\x44\x0f\x20\xc0", Exit::ControlWrite, 8 | control_write::READ),
        (b"\x0f\x21\xf0", Exit::DebugRegister, 6 | control_write::READ),
    ];
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    for (code, expected, said) in instructions {
        let what = alloc::format!("{code:02x?}");
        ready(&guest, code);
        // Nothing here is where an instruction could fault before it exits.
        let named = if expected == Exit::Mwait { 0 } else { 0x174 };
        for (register, value) in [(0, CODE), (1, named), (2, 0x80), (3, CODE)] {
            guest.set(at!(gpr) + register * 8, value);
        }
        let groups = match expected {
            Exit::Halt => group::RIP | group::INTERRUPTIBILITY | group::INJECT,
            Exit::ControlWrite => group::RIP | group::CONTROL,
            Exit::DebugRegister => group::RIP | group::CONTROL | group::DEBUG,
            _ => group::RIP,
        };
        check.equal(&what, enter(lab, &guest, group::ALL), Ok(VcpuExit { reason: expected, groups }));
        check.equal(&what, guest.get(at!(reason)), expected as u64);
        check.equal(&what, guest.get(at!(rip)), CODE);
        check.equal(&what, guest.get(at!(delivering)), 0);
        let (length, detail) = (guest.get(at!(length)), guest.get(at!(qualification)));
        if matches!(expected, Exit::ControlWrite | Exit::DebugRegister) {
            check.holds(&what, register(svm, said, 0, detail));
        } else {
            check.equal(&what, detail, said);
        }
        // Where the processor does not tell the length it is to be decoded; that of a port access is always told.
        let told = length == code.len() as u64 || svm && length == 0 && expected != Exit::Port;
        check.holds(&alloc::format!("{what}: length {length}"), told);
        if length == 0 && groups & group::CONTROL == 0 {
            check.equal(&what, guest.get(at!(code_root)), moira_lab::guest::TABLES);
        }
    }
}

/// Addresses that the guest has not.
fn memory(lab: &mut Lab, check: &mut Check) {
    let svm = svm(lab);
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    const NOWHERE: u64 = 0x10_0008;
    let accesses: [(&[u8], u64); 3] =
        [(b"\x48\x8b\x03", 0), (b"\x48\x89\x03", access::WRITE), (b"\xff\xe3", access::FETCH)];
    let groups = group::RIP | group::CONTROL;
    for (code, said) in accesses {
        let what = alloc::format!("{code:02x?}");
        ready(&guest, code);
        guest.set(at!(gpr) + 24, NOWHERE);
        check.equal(&what, enter(lab, &guest, group::ALL), Ok(VcpuExit { reason: Exit::Memory, groups }));
        check.equal(&what, guest.get(at!(address)), NOWHERE);
        check.equal(&what, guest.get(at!(qualification)), said);
        let linear = guest.get(at!(linear));
        check.holds(&what, linear == NOWHERE || svm && linear == 0);
        let at = if said == access::FETCH { NOWHERE } else { CODE };
        check.equal(&what, guest.get(at!(rip)), at);
        check.equal("CS comes along", guest.get(at!(segment) + 24) & 0xffff, 8);
    }
    // Tables where there is nothing.
    ready(&guest, b"\xf4");
    guest.set(at!(cr3), 0x20_0000);
    check.equal("walk", exit(lab, &guest, group::ALL), Ok(Exit::Memory));
    check.equal("walk", guest.get(at!(address)), 0x20_0000);
    check.equal("walk", guest.get(at!(qualification)) & access::WALK, access::WALK);
}

/// What is intercepted for the kernel's own safety: #DB, #AC. All others are the guest's.
fn exceptions(lab: &mut Lab, check: &mut Check) {
    const STEP: u64 = 1 << 14;
    let Some(guest) = fresh(lab, check, b"\x90\x90\xf4") else { return };
    guest.set(at!(rflags), 0x102);
    let groups = group::RIP | group::CONTROL | group::DEBUG;
    check.equal("step", enter(lab, &guest, group::ALL), Ok(VcpuExit { reason: Exit::Exception, groups }));
    check.equal("#DB", guest.get(at!(qualification)), 1);
    check.equal("what DR6 has to show", guest.get(at!(address)) & STEP, STEP);
    check.equal("behind the instruction", guest.get(at!(rip)), CODE + 1);
    check.equal("nothing was delivered", guest.get(at!(gpr) + 32), STACK);
    // #UD, where it was asked for.
    ready(&guest, b"\x0f\x0b");
    guest.set(at!(exceptions), 1 << 6);
    check.equal("asked", enter(lab, &guest, group::ALL), Ok(VcpuExit { reason: Exit::Exception, groups }));
    check.equal("asked: #UD", (guest.get(at!(qualification)), guest.get(at!(length))), (6, 0));
    check.equal("asked: where it stands", guest.get(at!(rip)), CODE);
    check.equal("asked: nothing was delivered", guest.get(at!(gpr) + 32), STACK);
    guest.set(at!(inject), event::VALID | event::EXCEPTION | 6);
    check.equal("what is injected does not exit", exit(lab, &guest, group::INJECT), Ok(Exit::Halt));
    check.equal("it arrives", guest.get(at!(rip)), HANDLERS + 6 * 16);
    int1(lab, check, &guest);
    // #AC takes ring 3: so others are what the guest has for itself.
    for (code, vector, pushed) in [
        (&b"\x0f\x0b"[..], 6, CODE),
        (b"\xcc", 3, CODE + 1),
        (b"\xcd\x47", 0x47, CODE + 2),
        (b"\x31\xc9\xf7\xf1", 0, CODE + 2),
    ] {
        let what = alloc::format!("vector {vector:x}");
        ready(&guest, code);
        guest.set(at!(gpr) + 16, 0);
        check.equal(&what, exit(lab, &guest, group::ALL), Ok(Exit::Halt));
        check.equal(&what, guest.get(at!(rip)), HANDLERS + vector * 16);
        check.equal(&what, pushed_rip(&guest, 0), pushed);
    }
}

/// INT1 exits before it is done; on QEMU (7.2) it is undefined.
fn int1(lab: &Lab, check: &mut Check, guest: &Guest) {
    ready(guest, b"\xf1\xf4");
    guest.set(at!(exceptions), 1 << 6);
    check.equal("INT1", exit(lab, guest, group::ALL), Ok(Exit::Exception));
    let (vector, said) = (guest.get(at!(qualification)), guest.get(at!(address)));
    check.holds("INT1: #DB of INT1", vector == 1 && said == 0 && guest.get(at!(length)) == 1 || vector == 6);
    check.equal("INT1: where it stands", guest.get(at!(rip)), CODE);
    check.equal("INT1: nothing was delivered", guest.get(at!(gpr) + 32), STACK);
}

/// What the handler would return to, behind so many other words on the stack.
fn pushed_rip(guest: &Guest, words: u64) -> u64 {
    let stack = guest.get(at!(gpr) + 32);
    if stack < STACK { stored(guest.memory + stack + words * 8) } else { u64::MAX }
}

/// Each type of event arrives, with what it has to push.
fn events(lab: &mut Lab, check: &mut Check) {
    let code_there: &[u8] = b"\xf4\xf4\xf4";
    let Some(guest) = fresh(lab, check, code_there) else { return };
    let events = [
        (event::INTERRUPT | 0x41, 0, 0, CODE),
        (event::INTERRUPT | 0xff, 0, 0, CODE),
        (event::NMI | 2, 0, 0, CODE),
        (event::EXCEPTION | 6, 0, 0, CODE),
        (event::EXCEPTION | event::HAS_CODE | 13, 0x1234, 0, CODE),
        (event::EXCEPTION | event::HAS_CODE | 14, 2, 0, CODE),
        (event::SOFTWARE_INTERRUPT | 0x42, 0, 2, CODE + 2),
        (event::SOFTWARE_EXCEPTION | 3, 0, 1, CODE + 1),
        (event::PRIVILEGED_EXCEPTION | 1, 0, 1, CODE + 1),
    ];
    for (info, code, length, rip) in events {
        let what = alloc::format!("event {info:x}");
        ready(&guest, code_there);
        guest.set(at!(rflags), 0x202);
        guest.set(at!(inject), event::VALID | info | code << 32);
        guest.set(at!(inject_length), length);
        check.equal(&what, exit(lab, &guest, group::ALL), Ok(Exit::Halt));
        check.equal(&what, guest.get(at!(rip)), HANDLERS + (info & 0xff) * 16);
        check.equal(&what, guest.get(at!(inject)), 0);
        let words = if info & event::HAS_CODE != 0 {
            check.equal(&what, stored(guest.memory + (guest.get(at!(gpr) + 32) & 0xfff8)), code);
            1
        } else {
            0
        };
        check.equal(&what, pushed_rip(&guest, words), rip);
        let blocked = if info & event::TYPE == event::NMI { interruptibility::NMI_BLOCKED } else { 0 };
        check.equal(&what, guest.get(at!(interruptibility)), blocked);
        if blocked != 0 {
            leave_nmi(lab, check, &guest);
        }
    }
    // Its delivery needs what the guest has not: the event comes back, and goes in again.
    ready(&guest, b"\x90\xf4");
    let armed = event::VALID | event::INTERRUPT | 0x41;
    guest.set(at!(rflags), 0x202);
    guest.set(at!(gpr) + 32, 0x10_0000);
    guest.set(at!(inject), armed);
    check.equal("no stack", exit(lab, &guest, group::ALL), Ok(Exit::Memory));
    check.equal("delivering", guest.get(at!(delivering)), armed);
    check.equal("where it was", guest.get(at!(rip)), CODE);
    guest.set(at!(gpr) + 32, STACK);
    guest.set(at!(inject), guest.get(at!(delivering)));
    check.equal("again", exit(lab, &guest, group::INJECT), Ok(Exit::Halt));
    check.equal("arrives", guest.get(at!(rip)), HANDLERS + 0x41 * 16);
}

/// The end of an NMI's handler: Bochs (2.7) blocks NMIs until IRET whatever a vCPU's state says.
fn leave_nmi(lab: &Lab, check: &mut Check, guest: &Guest) {
    skip(guest, 1);
    check.equal("after the NMI", exit(lab, guest, group::RIP), Ok(Exit::Halt));
    check.equal("unblocked", guest.get(at!(interruptibility)), 0);
}

fn interrupt_window(lab: &mut Lab, check: &mut Check) {
    let groups = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    let window = Ok(VcpuExit { reason: Exit::InterruptWindow, groups });
    // nop; sti; nop; nop; hlt
    let Some(guest) = fresh(lab, check, b"\x90\xfb\x90\x90\xf4") else { return };
    guest.set(at!(request), request::INTERRUPT_WINDOW);
    check.equal("closed, then open", enter(lab, &guest, group::ALL), window);
    check.equal("behind STI's shadow", guest.get(at!(rip)), CODE + 3);
    check.equal("asked once", guest.get(at!(request)), 0);
    check.equal("goes on", exit(lab, &guest, 0), Ok(Exit::Halt));
    check.equal("to its end", guest.get(at!(rip)), CODE + 4);
    ready(&guest, b"\x90\xf4");
    guest.set(at!(rflags), 0x202);
    guest.set(at!(request), request::INTERRUPT_WINDOW);
    if !bochs_svm(lab) {
        check.equal("open", enter(lab, &guest, group::ALL), window);
        check.equal("at once", guest.get(at!(rip)), CODE);
    }
    // What is armed goes first, and closes the window.
    ready(&guest, b"\x90\xf4");
    guest.set(at!(rflags), 0x202);
    guest.set(at!(inject), event::VALID | event::INTERRUPT | 0x41);
    guest.set(at!(request), request::INTERRUPT_WINDOW);
    check.equal("an event", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    check.equal("first", guest.get(at!(rip)), HANDLERS + 0x41 * 16);
    check.equal("still asked", guest.get(at!(request)), request::INTERRUPT_WINDOW);
    skip(&guest, 1);
    check.equal("after the handler", enter(lab, &guest, group::RIP), window);
    check.equal("where it returned", guest.get(at!(rip)), CODE);
}

fn nmi_window(lab: &mut Lab, check: &mut Check) {
    let groups = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    let Some(guest) = fresh(lab, check, b"\x90\xf4") else { return };
    guest.set(at!(request), request::NMI_WINDOW);
    let came = enter(lab, &guest, group::ALL);
    check.equal("open", came, Ok(VcpuExit { reason: Exit::NmiWindow, groups }));
    check.equal("at once", guest.get(at!(rip)), CODE);
    check.equal("asked once", guest.get(at!(request)), 0);
    check.equal("goes on", exit(lab, &guest, 0), Ok(Exit::Halt));
}

/// The event goes in first, then the guest exits before the handler's first instruction.
fn event_before_nmi_window(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x90\xf4") else { return };
    for info in [event::INTERRUPT | 0x41, event::EXCEPTION | 6, event::SOFTWARE_INTERRUPT | 0x41] {
        let what = alloc::format!("event {info:x}");
        ready(&guest, b"\x90\xf4");
        guest.set(at!(rflags), 0x202);
        guest.set(at!(inject), event::VALID | info);
        guest.set(at!(inject_length), 1);
        guest.set(at!(request), request::NMI_WINDOW);
        let handler = HANDLERS + (info & 0xff) * 16;
        check.equal(&what, exit(lab, &guest, group::ALL), Ok(Exit::NmiWindow));
        check.equal(&what, guest.get(at!(rip)), handler);
        let returns = if info & event::TYPE == event::SOFTWARE_INTERRUPT { CODE + 1 } else { CODE };
        check.equal(&what, pushed_rip(&guest, 0), returns);
        check.equal(&what, guest.get(at!(request)), 0);
        // The NMI that waited goes on top of it.
        guest.set(at!(inject), event::VALID | event::NMI | 2);
        check.equal(&what, exit(lab, &guest, group::INJECT), Ok(Exit::Halt));
        check.equal(&what, guest.get(at!(rip)), HANDLERS + 2 * 16);
        check.equal(&what, pushed_rip(&guest, 0), handler);
        leave_nmi(lab, check, &guest);
    }
}

/// A run that is over before it begins hands the event back; what goes in afterwards is what the page says then.
fn event_replaced(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x90\xf4") else { return };
    let interrupt = event::VALID | event::INTERRUPT | 0x41;
    for (what, next, rip) in [
        ("none", 0, CODE + 1),
        ("an exception", event::VALID | event::EXCEPTION | 6, HANDLERS + 6 * 16),
        ("another interrupt", event::VALID | event::INTERRUPT | 0x42, HANDLERS + 0x42 * 16),
    ] {
        ready(&guest, b"\x90\xf4");
        guest.set(at!(rflags), 0x202);
        guest.set(at!(inject), interrupt);
        let early = guest.vcpu.run_raw(group::ALL | group::INJECT << 32, Deadline(1));
        check.equal(what, early.map(|(exit, _)| exit), Ok(Exit::Until as u64));
        check.equal("handed back", guest.get(at!(inject)), interrupt);
        guest.set(at!(inject), next);
        check.equal(what, exit(lab, &guest, group::INJECT), Ok(Exit::Halt));
        check.equal(what, guest.get(at!(rip)), rip);
    }
}

fn nmi_blocked(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x90\xf4") else { return };
    let nmi = event::VALID | event::NMI | 2;
    let handler = HANDLERS + 2 * 16;
    for window in [false, true] {
        ready(&guest, b"\x90\xf4");
        guest.set(at!(inject), nmi);
        guest.set(at!(request), if window { request::NMI_WINDOW } else { 0 });
        check.equal("handler", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
        check.equal("handler", guest.get(at!(rip)), handler);
        check.equal("blocked", guest.get(at!(interruptibility)), interruptibility::NMI_BLOCKED);
        skip(&guest, 1);
        guest.set(at!(request), request::NMI_WINDOW);
        check.equal("window", exit(lab, &guest, group::RIP | group::INJECT), Ok(Exit::NmiWindow));
        check.equal("behind IRET", guest.get(at!(rip)), CODE);
        check.equal("open", guest.get(at!(interruptibility)), 0);
        check.equal("no trace of a step", guest.get(at!(rflags)) & 0x100, 0);
        check.equal("goes on", exit(lab, &guest, 0), Ok(Exit::Halt));
        check.equal("to its end", guest.get(at!(rip)), CODE + 1);
    }
    // Another one meanwhile is refused.
    ready(&guest, b"\x90\xf4");
    guest.set(at!(inject), nmi);
    check.equal("handler", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    guest.set(at!(inject), nmi);
    check.equal("in the handler", exit(lab, &guest, group::INJECT), Ok(Exit::InvalidState));
    check.equal("which check", guest.get(at!(qualification)), invalid::EVENT);
    check.equal("goes on", exit(lab, &guest, 0), Ok(Exit::Halt));
    check.equal("in the handler", guest.get(at!(rip)), handler);
    leave_nmi(lab, check, &guest);
}

fn shutdown(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x0f\x0b") else { return };
    guest.set(at!(idtr) + 8, 0);
    let came = enter(lab, &guest, group::ALL);
    check.equal("triple fault", came, Ok(VcpuExit { reason: Exit::Shutdown, groups: group::ALL }));
    ready(&guest, b"\xf4");
    check.equal("not the end of the vCPU", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
}
