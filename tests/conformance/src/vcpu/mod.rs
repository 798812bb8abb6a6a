//! `Vcpu`: its invocations, and what guests do.

pub mod endings;
mod guests;
mod permissions;
mod state;

use crate::thread::answered;
use moira_abi::{
    Error, Method,
    boot::virtualization,
    vcpu::{Exit, event, group},
};
use moira_lab::{Check, Guest, Lab, Mode, Outcome, Puppet, code_of, guest::CODE, invoke, store, stored};
use moira_sys::{Capability, Deadline, FrameSize, Notification, Rights, Space, VcpuExit};

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
    lab.experiment("vcpu-refused-states", state::refused);
    lab.experiment("vcpu-groups", state::groups);
    lab.experiment("vcpu-long-mode-half-way", state::long_mode_half_way);
    lab.experiment("vcpu-refused-then-spins", state::refused_then_spins);
    lab.experiment("vcpu-kick", kick);
    lab.experiment("vcpu-until", until);
    lab.experiment("vcpu-set-space", permissions::set_space);
    lab.experiment("vcpu-allow-msr", permissions::allow_msr);
    lab.experiment("vcpu-allow-ports", permissions::allow_ports);
    lab.experiment("vcpu-dies", endings::dies);
    lab.experiment("vcpu-state-page-goes", endings::state_page_goes);
    lab.experiment("vcpu-too-deep", endings::too_deep);
    guests::all(lab);
}

/// Whether this is SVM.
pub fn svm(lab: &Lab) -> bool {
    lab.info.virtualization == virtualization::SVM
}

/// Bochs' SVM resets the machine at a guest's triple fault, opens a window that is open already one instruction late, and overlooks the
/// host's interrupts in a guest with IF = 0.
pub fn bochs_svm(lab: &Lab) -> bool {
    lab.option("emulator") == Some("bochs") && svm(lab)
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
