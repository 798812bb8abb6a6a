//! How a run and a vCPU end from outside: on this processor and across.

use super::{COUNTER, PAGES, at, exit, fresh, raw, run, spin, spinning, word};
use crate::thread::answered;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::{
    Error, Method,
    boot::virtualization,
    vcpu::{Exit, group},
};
use moira_lab::{Check, Guest, Lab, Outcome, Puppet, code_of, guest::CODE, invoke, stored};
use moira_sys::{Capability, Cpu, Deadline, Rights, Slot};

/// A vCPU dies with a guest that runs in it.
pub fn dies(lab: &mut Lab, check: &mut Check) {
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
pub fn state_page_goes(lab: &mut Lab, check: &mut Check) {
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

pub fn too_deep(lab: &mut Lab, check: &mut Check) {
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
    lab.experiment("smp-vcpu-runs-on-under-wakes", |lab, check| across(lab, check, cpus, Ending::Wakes));
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
    /// As above, after a storm of signals for a thread that is on the guest's processor and has no time.
    Wakes,
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
    let slot = lab.slots(1);
    let Some(note) = check.good("notification", arena.retype_notifications(1, slot)).and_then(|made| made.get(0))
    else {
        return;
    };
    if ending == Ending::Wakes {
        let bound = |_: &mut Lab, puppet: &Puppet| {
            let _ = puppet.thread.bind_notification(note);
        };
        check.good("accomplice", crate::smp::there(lab, cpu, bound));
    }
    let Some(guest) = check.good("guest", lab.guest(memory, PAGES, cpu)) else { return };
    spin(&guest);
    let (counter, page) = (guest.memory + COUNTER, guest.page);
    let Some((stack, _)) = check.good("stack", lab.memory(2)) else { return };
    ANSWER.store(0, Relaxed);
    let spawned = lab.spawn(arena, cpu, 2, runner, [word(guest.vcpu), 0], stack + 2 * 4096);
    let Some((_, context)) = check.good("thread", spawned) else { return };
    check.good("window", lab.own_window(cpu, context));
    let wait = |lab: &Lab, done: &dyn Fn() -> bool| {
        let until = moira_sys::now() + lab.micros(Lab::PATIENCE);
        while !done() && moira_sys::now() < until {
            core::hint::spin_loop();
        }
        done()
    };
    check.holds("it runs", wait(lab, &|| stored(counter) > 100));
    let expected = match ending {
        Ending::Kick | Ending::Wakes => {
            let before = stored(counter);
            let storm = || ending == Ending::Kick || note.signal().is_err() || stored(counter) > before + 1000;
            check.holds("it runs on in its window", wait(lab, &storm));
            check.good("kick", guest.vcpu.kick());
            [Exit::Kicked as u64 + 1; 3]
        }
        Ending::Page => {
            // Registers that it leaves must not land in a page that is somebody else's by then.
            let before = stored(page + at!(rip) as u64);
            check.equal("where it began", before, CODE);
            check.good("revoke", Lab::TABLE.revoke_fully(guest.state.slot()));
            [1 << 32 | Error::Inactive as u64; 3]
        }
        Ending::Dies => {
            check.good("revoke", memory.revoke_fully());
            // Its state page or its memory may go first, and the guest be out before the vCPU is reached.
            let [gone, inactive] = [Error::PeerGone, Error::Inactive].map(|error| 1 << 32 | error as u64);
            [gone, inactive, Exit::Memory as u64 + 1]
        }
    };
    check.holds("it comes out", wait(lab, &|| ANSWER.load(Relaxed) != 0));
    let answer = ANSWER.load(Relaxed);
    check.holds(&alloc::format!("and says why: {answer:x}"), expected.contains(&answer));
}
