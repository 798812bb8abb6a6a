//! `Vcpu`: its invocations. What guests do: `guest.rs`.

use crate::thread::answered;
use core::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use moira_abi::{
    Error, Method,
    boot::virtualization,
    vcpu::{Exit, PortIo, VcpuState, event, group, interruptibility, invalid},
};
use moira_lab::{Check, Guest, Lab, Mode, Outcome, Puppet, code_of, guest::CODE, invoke, store, stored};
use moira_sys::{Capability, Cpu, Deadline, FrameSize, Notification, Rights, Slot, Space, VcpuExit};

/// Pages of a guest's memory.
pub const PAGES: u32 = 12;
/// Handlers of all vectors: 16 bytes each, `hlt` and `iretq`.
pub const HANDLERS: u64 = 0x9000;

/// Where a guest that spins counts.
const COUNTER: u64 = 0xa000;

/// Its jump.
const SPIN_END: u64 = CODE + 2;

/// The offset of a field of the state page.
macro_rules! at {
    ($($field:tt)+) => { core::mem::offset_of!(moira_abi::vcpu::VcpuState, $($field)+) };
}
pub(crate) use at;

/// All experiments.
pub fn all(lab: &mut Lab) {
    if lab.info.virtualization == virtualization::NONE {
        lab.experiment("vcpu-no-hardware", no_hardware);
        return;
    }
    lab.experiment("vcpu-configure", configure);
    lab.experiment("vcpu-run-errors", run_errors);
    lab.experiment("vcpu-one-thread", one_thread);
    lab.experiment("vcpu-refused-states", refused);
    lab.experiment("vcpu-groups", groups);
    lab.experiment("vcpu-kick", kick);
    lab.experiment("vcpu-until", until);
    lab.experiment("vcpu-set-space", set_space);
    lab.experiment("vcpu-allow-msr", allow_msr);
    lab.experiment("vcpu-allow-ports", allow_ports);
    lab.experiment("vcpu-dies", dies);
    lab.experiment("vcpu-state-page-goes", state_page_goes);
    lab.experiment("vcpu-too-deep", too_deep);
    crate::guest::all(lab);
}

/// Whether this is SVM.
pub fn svm(lab: &Lab) -> bool {
    lab.info.virtualization == virtualization::SVM
}

/// A guest in 64-bit mode at [`CODE`], where it has these instructions; all its gates lead to [`HANDLERS`].
pub fn fresh(lab: &mut Lab, check: &mut Check, code: &[u8]) -> Option<Guest> {
    let arena = lab.arena;
    let guest = check.good("guest", lab.guest_here(arena, PAGES))?;
    ready(&guest, code);
    Some(guest)
}

/// A guest that spins.
fn spinning(lab: &mut Lab, check: &mut Check) -> Option<Guest> {
    let guest = fresh(lab, check, b"")?;
    spin(&guest);
    Some(guest)
}

/// It counts at [`COUNTER`]. Bochs (2.7) overlooks interrupts of the host in a guest that is entered with IF = 0: it has IF = 1.
fn spin(guest: &Guest) {
    // inc dword [rbx]; jmp back
    ready(guest, b"\xff\x03\xeb\xfc");
    guest.set(at!(rflags), 0x202);
    guest.set(at!(gpr) + 24, COUNTER);
}

/// Furnishes a guest: see [`fresh`].
pub fn ready(guest: &Guest, code: &[u8]) {
    guest.furnish();
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        store(guest.memory + moira_lab::guest::IDT + vector * 16, 0x0000_8e00_0008_0000 | handler);
        store(guest.memory + handler, 0x00cf_48f4);
    }
    write(guest, CODE, code);
    guest.basis(CODE, Mode::Long);
    guest.set(at!(gpr) + 4 * 8, moira_lab::guest::STACK);
}

/// Writes bytes to a guest's memory, from a word's boundary on.
pub fn write(guest: &Guest, address: u64, bytes: &[u8]) {
    for (index, part) in bytes.chunks(8).enumerate() {
        let mut word = [0x90; 8];
        word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        store(guest.memory + address + index as u64 * 8, u64::from_le_bytes(word));
    }
}

/// Enters the guest, for a tenth of a second at most.
pub fn enter(lab: &Lab, guest: &Guest, changed: u64) -> Result<VcpuExit, Error> {
    guest.vcpu.run(changed, Deadline::after(lab.micros(100_000)))
}

/// The reason alone.
pub fn exit(lab: &Lab, guest: &Guest, changed: u64) -> Result<Exit, Error> {
    enter(lab, guest, changed).map(|exit| exit.reason)
}

/// Goes on behind an instruction of so many bytes.
pub fn skip(guest: &Guest, length: u64) {
    guest.set(at!(rip), guest.get(at!(rip)) + length);
}

fn raw(method: Method, guest: &Guest, words: [u64; 3]) -> Option<Error> {
    let [a, b, c] = words;
    invoke(code_of(method), guest.vcpu.slot().0.into(), [a, b, c, 0, 0, 0, 0, 0], 0).check().err()
}

fn word(capability: impl Capability) -> u64 {
    capability.slot().0.into()
}

fn no_hardware(lab: &mut Lab, check: &mut Check) {
    let (slot, arena) = (lab.slots(1), lab.arena);
    check.equal("retype", arena.retype_vcpus(1, slot).err(), Some(Error::NoHardware));
    check.equal("nothing came", Lab::TABLE.inspect(slot).map(|found| found.kind), Ok(None));
    check.equal("a whole guest", lab.guest_here(arena, 1).err(), Some(Error::NoHardware));
}

fn configure(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(9);
    let arena = lab.arena;
    let Some(vcpu) = check.good("vCPU", arena.retype_vcpus(1, slot)).and_then(|made| made.get(0)) else { return };
    let frame = check.good("frame", arena.retype_frames(FrameSize::Small, 1, slot.plus(1))).and_then(|all| all.get(0));
    let space = check.good("space", arena.retype_guest_space(slot.plus(2)));
    let tables = check.good("tables", arena.retype_untypeds(15, 1, slot.plus(3))).and_then(|made| made.get(0));
    let (Some(frame), Some(space), Some(tables)) = (frame, space, tables) else { return };
    let (f, s, c) = (word(frame), word(space), word(Lab::CPU));
    let guest = Guest { vcpu, space, state: frame, page: 0, memory: 0 };
    let try_it = |words| raw(Method::VcpuConfigure, &guest, words);
    check.equal("no tables", try_it([f, s, c]), Some(Error::NoMemory));
    check.good("tables", space.add_memory(tables));
    check.equal("frame: no slot", try_it([u64::MAX, s, c]), Some(Error::NoSlot));
    check.equal("frame: empty", try_it([u64::from(slot.plus(8).0), s, c]), Some(Error::Empty));
    check.equal("frame: another type", try_it([s, s, c]), Some(Error::WrongType));
    for (index, rights) in [Rights::READ, Rights::WRITE].into_iter().enumerate() {
        let Some(weak) = check.good("copy", Lab::TABLE.copy(frame, slot.plus(4 + index as u32), rights)) else {
            return;
        };
        check.equal("frame: rights", try_it([word(weak), s, c]), Some(Error::NoRight));
    }
    // Registers of a device will do for a size.
    let large = check.good("frame", Lab::PLATFORM.make_frame(0xfe80_0000, FrameSize::Large, slot.plus(6)));
    check.equal("frame: size", large.map(|large| try_it([word(large), s, c])), Some(Some(Error::BadArgument)));
    check.equal("space: no slot", try_it([f, u64::MAX, c]), Some(Error::NoSlot));
    check.equal("space: empty", try_it([f, u64::from(slot.plus(8).0), c]), Some(Error::Empty));
    check.equal("space: another type", try_it([f, f, c]), Some(Error::WrongType));
    check.equal("space: a task's", try_it([f, word(Lab::SPACE), c]), Some(Error::WrongType));
    let Some(weak) = check.good("copy", Lab::TABLE.copy(space, slot.plus(7), Rights(0))) else { return };
    check.equal("space: rights", try_it([f, word(weak), c]), Some(Error::NoRight));
    check.equal("CPU: no slot", try_it([f, s, u64::MAX]), Some(Error::NoSlot));
    check.equal("CPU: empty", try_it([f, s, u64::from(slot.plus(8).0)]), Some(Error::Empty));
    check.equal("CPU: another type", try_it([f, s, f]), Some(Error::WrongType));
    check.equal("until now it does nothing", vcpu.run_raw(0, Deadline(1)), Err(Error::Inactive));
    check.equal("at last", try_it([f, s, c]), None);
    check.equal("twice", try_it([f, s, c]), Some(Error::Active));
    check.equal("twice, whatever it says", try_it([u64::MAX, u64::MAX, u64::MAX]), Some(Error::Active));
    check.equal("it runs", vcpu.run(0, Deadline(1)).map(|exit| exit.reason), Ok(Exit::Until));
}

fn run_errors(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    let Some(fresh) = check.good("vCPU", lab.arena.retype_vcpus(1, slot)).and_then(|made| made.get(0)) else { return };
    let run = |capability: u64| {
        invoke(code_of(Method::VcpuRun), capability, [group::ALL, 1, 0, 0, 0, 0, 0, 0], 0).check().err()
    };
    check.equal("no slot", run(u64::MAX), Some(Error::NoSlot));
    check.equal("empty", run(u64::from(slot.plus(1).0)), Some(Error::Empty));
    check.equal("another type", run(word(guest.space)), Some(Error::WrongType));
    let Some(weak) = check.good("copy", Lab::TABLE.copy(guest.vcpu, slot.plus(2), Rights(0))) else { return };
    check.equal("rights", run(word(weak)), Some(Error::NoRight));
    check.equal("kick: rights", weak.kick(), Err(Error::NoRight));
    check.equal("set space: rights", weak.set_space(guest.space), Err(Error::NoRight));
    check.equal("allow MSR: rights", weak.allow_msr(0x174, true, true), Err(Error::NoRight));
    check.equal("not configured", run(word(fresh)), Some(Error::Inactive));
    check.equal("kick: not configured", fresh.kick(), Err(Error::Inactive));
    check.equal("allow MSR: not configured", fresh.allow_msr(0x174, true, true), Err(Error::Inactive));
    let ports = check.good("ports", Lab::PLATFORM.make_ports(0x80, 0x80, slot.plus(1)));
    check.equal("allow ports: not configured", ports.map(|p| fresh.allow_ports(p)), Some(Err(Error::Inactive)));
    check.equal("it runs", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
}

/// A vCPU is its first thread's, and a thread's first vCPU is its only one.
fn one_thread(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    let Some(other) = fresh(lab, check, b"\xf4") else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("mine", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    check.equal("another of mine", exit(lab, &other, group::ALL), Err(Error::InUse));
    let run = |lab: &mut Lab, guest: &Guest| {
        answered(puppet.invoke(lab, code_of(Method::VcpuRun), word(guest.vcpu), &[group::ALL, 0]))
    };
    check.equal("mine, by a puppet", run(lab, &guest), Some(Err(Error::InUse)));
    check.equal("the other, by a puppet", run(lab, &other), Some(Ok(())));
    check.equal("which is its only one", run(lab, &guest), Some(Err(Error::InUse)));
    check.equal("mine still", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
}

/// What the kernel refuses, by group, and what it says of it.
fn refused(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    const BAD: u64 = 1 << 47;
    let fs = at!(segment) + 4 * 24;
    let task = at!(segment) + 7 * 24;
    let event = |info: u64| event::VALID | info;
    let states = [
        (group::SEGMENTS, fs + 16, BAD, invalid::CANONICAL),
        (group::TABLES, at!(gdtr), BAD, invalid::CANONICAL),
        (group::TABLES, at!(idtr), !BAD, invalid::CANONICAL),
        (group::MSRS, at!(lstar), BAD, invalid::CANONICAL),
        (group::MSRS, at!(cstar), BAD, invalid::CANONICAL),
        (group::MSRS, at!(kernel_gs_base), BAD, invalid::CANONICAL),
        (group::MSRS, at!(sysenter_esp), BAD, invalid::CANONICAL),
        (group::MSRS, at!(sysenter_eip), BAD, invalid::CANONICAL),
        (group::DEBUG, at!(dr) + 24, BAD, invalid::CANONICAL),
        (group::CONTROL, at!(cr0), 0x11 | 1 << 32, invalid::RESERVED),
        (group::CONTROL, at!(cr0), 0x8000_0010, invalid::RESERVED),
        (group::CONTROL, at!(cr0), 0xa000_0011, invalid::RESERVED),
        (group::CONTROL, at!(cr3), 1 << 62, invalid::RESERVED),
        (group::CONTROL, at!(cr4), 1 << 40 | 0x20, invalid::RESERVED),
        (group::CONTROL, at!(cr4), 0, invalid::RESERVED),
        (group::CONTROL, at!(efer), 0x500 | 1 << 12, invalid::RESERVED),
        (group::CONTROL, at!(efer), 1 << 40, invalid::RESERVED),
        (group::SEGMENTS, fs, 0x1_0f93 << 32, invalid::RESERVED),
        (group::SEGMENTS, task, 0x40 | 0x89 << 32, invalid::RESERVED),
        (group::SEGMENTS, task, 0x40 | 0x1_008b << 32, invalid::RESERVED),
        (group::MSRS, at!(pat), 2, invalid::RESERVED),
        (group::DEBUG, at!(dr6), 1 << 32, invalid::RESERVED),
        (group::DEBUG, at!(dr7), 1 << 32, invalid::RESERVED),
        (group::DEBUG, at!(exceptions), 1 << 14, invalid::RESERVED),
        (group::TSC_XCR, at!(xcr0), 0, invalid::RESERVED),
        (group::TSC_XCR, at!(xcr0), 1 << 60 | 1, invalid::RESERVED),
        (group::TSC_XCR, at!(tsc_aux), 1 << 32, invalid::RESERVED),
        (group::TSC_XCR, at!(spec_ctrl), 1 << 40, invalid::RESERVED),
        // A type that is none; an NMI that is not 2; no exception; a software event without length; a code where none belongs.
        (group::INJECT, at!(inject), event(1 << 8 | 0x20), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::NMI | 3), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | 32), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | 2), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::SOFTWARE_INTERRUPT | 0x80), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::SOFTWARE_EXCEPTION | 5), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | event::HAS_CODE | 6), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::INTERRUPT | 0x20 | 1 << 12), invalid::EVENT),
    ];
    check.equal("as it is", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    for (bit, offset, value, why) in states {
        let what = alloc::format!("{offset:#x} = {value:#x}");
        let good = guest.get(offset);
        guest.set(offset, value);
        // What goes before the refused group may have changed; the group itself has not.
        check.equal(&what, enter(lab, &guest, bit), Ok(VcpuExit { reason: Exit::InvalidState, groups: 0 }));
        check.equal(&what, (guest.get(at!(reason)), guest.get(at!(qualification))), (Exit::InvalidState as u64, why));
        check.equal(&what, guest.get(offset), value);
        check.good("kick", guest.vcpu.kick());
        check.equal(&what, exit(lab, &guest, bit << 32), Ok(Exit::Kicked));
        if bit != group::INJECT {
            check.equal(&what, guest.get(offset), good);
        }
        guest.set(offset, good);
        check.equal("it runs as before", exit(lab, &guest, 0), Ok(Exit::Halt));
    }
    // An event stays in the page where something else was refused.
    guest.set(at!(inject), event(event::INTERRUPT | 0x41));
    guest.set(at!(pat), 2);
    check.equal("refused", exit(lab, &guest, group::INJECT | group::MSRS), Ok(Exit::InvalidState));
    check.equal("event", guest.get(at!(inject)), event(event::INTERRUPT | 0x41));
    guest.basis(CODE, Mode::Long);
    hardware_refuses(lab, check, &guest);
}

/// What the kernel lets pass and the processor does not: 64-bit code of 32 bits.
fn hardware_refuses(lab: &mut Lab, check: &mut Check, guest: &Guest) {
    let code = at!(segment) + 24;
    let good = guest.get(code);
    guest.set(code, good | 0x4000 << 32);
    guest.set(at!(inject), event::VALID | event::EXCEPTION | 6);
    let exit_of = enter(lab, guest, group::ALL);
    check.equal("refused", exit_of, Ok(VcpuExit { reason: Exit::InvalidState, groups: group::ALL }));
    check.equal("by the processor", guest.get(at!(qualification)) & 0xffff_ffff, invalid::HARDWARE);
    // What the page says of the guest then is nothing to go on from: QEMU leaves its own RIP.
    guest.basis(CODE, Mode::Long);
    check.equal("mended", exit(lab, guest, group::ALL & !group::INJECT), Ok(Exit::Halt));
    check.equal("the event is gone", guest.get(at!(rip)), CODE);
}

/// All groups go in and come back, and an exit writes what it should and nothing else.
fn groups(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x0f\xa2\xf4") else { return };
    const FIELDS: [(usize, u64); 35] = [
        (at!(rip), CODE),
        (at!(rflags), 0x246),
        (at!(interruptibility), interruptibility::NMI_BLOCKED),
        (at!(inject), event::VALID | event::INTERRUPT | 0x55),
        (at!(request), 1),
        (at!(cr0), 0x8001_0033),
        (at!(cr2), 0xffff_8123_4567_89ab),
        (at!(cr4), 0x6a0),
        (at!(efer), 0x501),
        (at!(segment) + 8, 0xf_ffff),
        (at!(segment) + 4 * 24 + 16, 0xffff_8000_1234_5678),
        (at!(segment) + 5 * 24 + 16, 0x7fff_8765_4321),
        (at!(segment) + 6 * 24, 0x48 | 0x1_0002 << 32),
        (at!(gdtr), 0xffff_ffff_8000_0000),
        (at!(gdtr) + 8, 0x1234),
        (at!(idtr), 0x7fff_ffff_f000),
        (at!(idtr) + 8, 0xfff),
        (at!(star), 0x1234_5678_9abc_def0),
        (at!(lstar), 0xffff_8000_0000_1234),
        (at!(cstar), 0x4321),
        (at!(sfmask), 0x4_7700),
        (at!(kernel_gs_base), 0xffff_8888_0000_0000),
        (at!(sysenter_cs), 0x10),
        (at!(sysenter_esp), 0xffff_8888_0000_1000),
        (at!(sysenter_eip), 0x7000_1000),
        (at!(pat), 0x0004_0106_0007_0506),
        (at!(dr), 0x1000),
        (at!(dr) + 24, 0xffff_8000_0000_0001),
        (at!(dr6), 0xffff_0ff1),
        (at!(dr7), 0x455),
        (at!(exceptions), 1 << 6),
        (at!(tsc_offset), 0xfedc_ba98_7654_3210),
        (at!(tsc_aux), 0x1234_5678),
        (at!(xcr0), 1),
        (at!(spec_ctrl), 0),
    ];
    for (offset, value) in FIELDS {
        guest.set(offset, value);
    }
    check.good("kick", guest.vcpu.kick());
    check.equal("goes in", exit(lab, &guest, group::ALL), Ok(Exit::Kicked));
    for (offset, _) in FIELDS {
        guest.set(offset, 0x5555);
    }
    check.good("kick", guest.vcpu.kick());
    let came = enter(lab, &guest, group::ALL << 32);
    check.equal("comes out", came, Ok(VcpuExit { reason: Exit::Kicked, groups: group::ALL }));
    for (offset, value) in FIELDS {
        check.equal(&alloc::format!("word {offset:#x}"), guest.get(offset), value);
    }
    // A usual exit writes its own groups and those that were asked for.
    ready(&guest, b"\x0f\xa2\xf4");
    for index in 0..16u64 {
        guest.set(at!(gpr) + index as usize * 8, 0x1000 + index);
    }
    let asked = group::ALL | group::DEBUG << 32;
    let came = enter(lab, &guest, asked);
    check.equal("CPUID", came, Ok(VcpuExit { reason: Exit::Cpuid, groups: group::RIP | group::DEBUG }));
    for index in 0..16u64 {
        check.equal("general registers", guest.get(at!(gpr) + index as usize * 8), 0x1000 + index);
    }
    guest.set(at!(cr3), 0x5555);
    skip(&guest, 2);
    let halted = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    check.equal("HLT", enter(lab, &guest, group::RIP), Ok(VcpuExit { reason: Exit::Halt, groups: halted }));
    check.equal("nobody wrote that", guest.get(at!(cr3)), 0x5555);
}

fn kick(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    let armed = event::VALID | event::INTERRUPT | 0x41;
    guest.set(at!(rflags), 0x202);
    guest.set(at!(inject), armed);
    check.good("kick", guest.vcpu.kick());
    check.good("kick", guest.vcpu.kick());
    let default = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    let came = enter(lab, &guest, group::ALL);
    check.equal("before the entry", came, Ok(VcpuExit { reason: Exit::Kicked, groups: default }));
    check.equal("nothing was done", guest.get(at!(rip)), CODE);
    check.equal("the event is handed back", guest.get(at!(inject)), armed);
    check.equal("kicks are not counted", exit(lab, &guest, 0), Ok(Exit::Halt));
    check.equal("and it was held", guest.get(at!(rip)), HANDLERS + 0x41 * 16);
    check.equal("once", guest.get(at!(inject)), 0);
    // What is handed back may be taken back.
    ready(&guest, b"\xf4");
    guest.set(at!(inject), armed);
    check.good("kick", guest.vcpu.kick());
    check.equal("armed", exit(lab, &guest, group::ALL), Ok(Exit::Kicked));
    guest.set(at!(inject), 0);
    check.equal("disarmed", exit(lab, &guest, group::INJECT), Ok(Exit::Halt));
    check.equal("nothing came", guest.get(at!(rip)), CODE);
    // Out of a guest that runs.
    let Some(spins) = spinning(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("runs", run(lab, &puppet, &spins), Ok(Outcome::Runs));
    check.good("kick", spins.vcpu.kick());
    check.equal("comes out", reason(puppet.run(lab)), Some(Exit::Kicked));
}

/// A puppet enters a guest with all groups; `Runs` if the guest does.
fn run(lab: &mut Lab, puppet: &Puppet, guest: &Guest) -> Result<Outcome, Error> {
    puppet.prepare(lab, code_of(Method::VcpuRun), word(guest.vcpu), &[group::ALL, 0], 0)?;
    let context = puppet.context.ok_or(Error::Inactive)?;
    store(guest.memory + COUNTER, 0);
    // On a machine with other work to do it may not come that far at once.
    for _ in 0..100 {
        match lab.run(context, 2_000)? {
            moira_sys::Dispatched::Blocked { .. } => return puppet.run(lab),
            _ if stored(guest.memory + COUNTER) != 0 => break,
            _ => {}
        }
    }
    Ok(Outcome::Runs)
}

fn reason(outcome: Result<Outcome, Error>) -> Option<Exit> {
    match outcome {
        Ok(Outcome::Answered(answer)) if answer.tag.low() == 0 => Exit::from_code(answer.words[0]),
        _ => None,
    }
}

fn until(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = spinning(lab, check) else { return };
    let default = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    let past = Ok(VcpuExit { reason: Exit::Until, groups: default });
    guest.set(at!(rip), CODE + 2);
    check.equal("past", guest.vcpu.run(group::ALL, Deadline(1)), past);
    check.equal("the state was taken", guest.get(at!(rip)), CODE + 2);
    guest.set(at!(rip), CODE);
    let soon = Deadline::after(lab.micros(300));
    check.equal("soon", guest.vcpu.run(group::RIP, soon), past);
    check.holds("not before", moira_sys::now() >= soon.0);
    check.holds("where it spins", matches!(guest.get(at!(rip)), CODE | SPIN_END));
    // Bits of the bound notification end a run, too, and stay there.
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    let Some(other) = spinning(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.good("bind", puppet.thread.bind_notification(whole));
    check.good("signal", one.signal());
    check.equal("at once", reason(run(lab, &puppet, &other)), Some(Exit::Until));
    check.equal("bits", Notification::poll(whole), Ok(1));
    check.equal("none", run(lab, &puppet, &other), Ok(Outcome::Runs));
    check.good("signal", one.signal());
    check.equal("in the middle", reason(puppet.run(lab)), Some(Exit::Until));
    check.equal("bits", whole.poll(), Ok(1));
}

fn set_space(lab: &mut Lab, check: &mut Check) {
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
        (0xc000_0081, true, svm),
        (0xc000_0082, true, svm),
        (0xc000_0084, true, svm),
        (0xc000_0083, svm, svm),
        (0xc000_0103, true, false),
    ]
}

fn allow_msr(lab: &mut Lab, check: &mut Check) {
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

fn allow_ports(lab: &mut Lab, check: &mut Check) {
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

/// A vCPU dies with a guest that runs in it.
fn dies(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let made = check.good("untyped", lab.arena.retype_untypeds(18, 1, slot)).and_then(|made| made.get(0));
    let Some(memory) = made else { return };
    let Some(guest) = check.good("guest", lab.guest_here(memory, PAGES)) else { return };
    spin(&guest);
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("runs", run(lab, &puppet, &guest), Ok(Outcome::Runs));
    check.good("revoke", memory.revoke_fully());
    check.equal("the thread is told", answered(puppet.run(lab)), Some(Err(Error::PeerGone)));
    let again = puppet.invoke(lab, code_of(Method::VcpuRun), word(guest.vcpu), &[0, 0]);
    check.equal("gone", answered(again), Some(Err(Error::Empty)));
    check.equal("whole", memory.info().map(|info| info.free), Ok(1 << 18));
    let Some(next) = spinning(lab, check) else { return };
    check.equal("its thread may have another", run(lab, &puppet, &next), Ok(Outcome::Runs));
}

/// The state page is taken away while the guest runs.
fn state_page_goes(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = spinning(lab, check) else { return };
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal("runs", run(lab, &puppet, &guest), Ok(Outcome::Runs));
    check.good("revoke", Lab::TABLE.revoke_fully(guest.state.slot()));
    check.equal("comes out", answered(puppet.run(lab)), Some(Err(Error::Inactive)));
    let again = puppet.invoke(lab, code_of(Method::VcpuRun), word(guest.vcpu), &[0, 0]);
    check.equal("for good", answered(again), Some(Err(Error::Inactive)));
    check.equal("still the thread's", exit(lab, &guest, 0), Err(Error::InUse));
    check.good("kick", guest.vcpu.kick());
    let (state, space) = (word(guest.state), word(guest.space));
    check.equal("not twice", raw(Method::VcpuConfigure, &guest, [state, space, 0]), Some(Error::Active));
}

fn too_deep(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    let slot = lab.slots(1);
    let Some(vcpu) = check.good("vCPU", lab.arena.retype_vcpus(1, slot)).and_then(|made| made.get(0)) else { return };
    let Some(frame) = deepest(lab, check, guest.state) else { return };
    let Some(space) = deepest(lab, check, guest.space) else { return };
    let none = Cpu::new(Slot::NONE);
    check.equal("frame", vcpu.configure(frame, guest.space, none), Err(Error::TooDeep));
    check.equal("space", vcpu.configure(guest.state, space, none), Err(Error::TooDeep));
    check.equal("neither is kept", vcpu.run_raw(0, Deadline(1)), Err(Error::Inactive));
    check.equal("another space", guest.vcpu.set_space(space), Err(Error::TooDeep));
    check.equal("the old one is gone", exit(lab, &guest, group::ALL), Ok(Exit::InvalidState));
    check.good("another", guest.vcpu.set_space(guest.space));
    check.equal("goes on", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    check.good("and both can be used still", vcpu.configure(guest.state, guest.space, none));
}

/// A copy of a copy, and so on, as deep as it goes.
fn deepest<T: Capability>(lab: &mut Lab, check: &mut Check, from: T) -> Option<T> {
    let mut at = from;
    for _ in 0..80 {
        let slot = lab.slots(1);
        match Lab::TABLE.copy(at, slot, Rights::ALL) {
            Ok(child) => at = child,
            Err(error) => {
                check.equal("at the bottom", error, Error::TooDeep);
                return Some(at);
            }
        }
    }
    None
}

/// With several processors.
pub fn several(lab: &mut Lab, cpus: &[Cpu]) {
    if lab.info.virtualization == virtualization::NONE {
        return;
    }
    lab.experiment("smp-vcpu-wrong-cpu", |lab, check| wrong_cpu(lab, check, cpus));
    lab.experiment("smp-vcpu-kick-across", |lab, check| across(lab, check, cpus, Ending::Kick));
    lab.experiment("smp-vcpu-state-page-goes", |lab, check| across(lab, check, cpus, Ending::Page));
    lab.experiment("smp-vcpu-dies", |lab, check| across(lab, check, cpus, Ending::Dies));
}

fn wrong_cpu(lab: &mut Lab, check: &mut Check, cpus: &[Cpu]) {
    let Some(cpu) = cpus.get(1).copied() else { return };
    let (slot, arena) = (lab.slots(1), lab.arena);
    let Some(Guest { vcpu, space, .. }) = check.good("guest", lab.guest(arena, 1, cpu)) else { return };
    check.equal("run", vcpu.run_raw(0, Deadline::NEVER).err(), Some(Error::WrongCpu));
    check.equal("set space", vcpu.set_space(space), Err(Error::WrongCpu));
    check.equal("allow MSR", vcpu.allow_msr(0x174, true, false), Err(Error::WrongCpu));
    let ports = check.good("ports", Lab::PLATFORM.make_ports(0x80, 0x80, slot));
    check.equal("allow ports", ports.map(|ports| vcpu.allow_ports(ports)), Some(Err(Error::WrongCpu)));
    check.good("kick, from anywhere", vcpu.kick());
}

/// How a guest on another processor is made to come out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Kick,
    Page,
    Dies,
}

/// What a run there answered, plus one; an error with bit 32.
static ANSWER: AtomicU64 = AtomicU64::new(0);

extern "C" fn runner(vcpu: u64, _: u64) -> ! {
    let words = [group::ALL, 0, 0, 0, 0, 0, 0, 0];
    let answer = match invoke(code_of(Method::VcpuRun), vcpu, words, 0).check() {
        Ok(words) => words[0] + 1,
        Err(error) => 1 << 32 | error as u64,
    };
    ANSWER.store(answer, Relaxed);
    loop {
        core::hint::spin_loop();
    }
}

fn across(lab: &mut Lab, check: &mut Check, cpus: &[Cpu], ending: Ending) {
    let Some(cpu) = cpus.get(1).copied() else { return };
    let (slot, arena) = (lab.slots(1), lab.arena);
    let Some(memory) = check.good("untyped", arena.retype_untypeds(18, 1, slot)).and_then(|made| made.get(0)) else {
        return;
    };
    let Some(guest) = check.good("guest", lab.guest(memory, PAGES, cpu)) else { return };
    spin(&guest);
    let (counter, page) = (guest.memory + COUNTER, guest.page);
    let Some((stack, _)) = check.good("stack", lab.memory(2)) else { return };
    ANSWER.store(0, Relaxed);
    let spawned = lab.spawn(arena, cpu, 2, runner, [word(guest.vcpu), 0], stack + 2 * 4096);
    let Some((_, context)) = check.good("thread", spawned) else { return };
    check.good("window", lab.own_window(cpu, context));
    let wait = |lab: &Lab, done: &dyn Fn() -> bool| {
        let until = moira_sys::now() + lab.micros(2_000_000);
        while !done() && moira_sys::now() < until {
            core::hint::spin_loop();
        }
        done()
    };
    check.holds("it runs", wait(lab, &|| stored(counter) > 100));
    let expected = match ending {
        Ending::Kick => {
            check.good("kick", guest.vcpu.kick());
            Exit::Kicked as u64 + 1
        }
        Ending::Page => {
            // Registers that it leaves must not land in a page that is somebody else's by then.
            let before = stored(page + offset_of!(VcpuState, rip) as u64);
            check.equal("where it began", before, CODE);
            check.good("revoke", Lab::TABLE.revoke_fully(guest.state.slot()));
            1 << 32 | Error::Inactive as u64
        }
        Ending::Dies => {
            check.good("revoke", memory.revoke_fully());
            1 << 32 | Error::PeerGone as u64
        }
    };
    check.holds("it comes out", wait(lab, &|| ANSWER.load(Relaxed) != 0));
    check.equal("and says why", ANSWER.load(Relaxed), expected);
}
