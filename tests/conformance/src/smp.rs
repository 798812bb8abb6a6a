//! Several processors: what belongs to another one, and four of them creating, sharing, revoking and destroying at once.
//!
//! Only with `processors=` on the command line.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_lab::{Check, Lab, Puppet, With, store, stored};
use moira_sys::{
    Capability, Cpu, Deadline, Endpoint, Error, Frame, FrameSize, MapFlags, Notification, Rights, Slot, Space, Untyped,
};

/// All experiments.
pub fn all(lab: &mut Lab) {
    let cpus = match lab.processors() {
        Ok(cpus) if cpus.len() > 1 => cpus,
        Ok(_) => return,
        Err(error) => lab.fail(&alloc::format!("no processors: {error:?}")),
    };
    log::info!("conformance: {} processors", cpus.len());
    lab.experiment("smp-wrong-cpu", |lab, check| wrong_cpu(lab, check, &cpus));
    crate::vcpu::endings::several(lab, &cpus);
    lab.experiment("smp-signal-across", |lab, check| signal(lab, check, &cpus));
    let stacks: Vec<u64> = cpus.iter().filter_map(|_| lab.memory(4).ok()).map(|(at, _)| at + 4 * 4096).collect();
    lab.keep();
    lab.experiment("smp-create-share-revoke-destroy", |lab, check| churn(lab, check, &cpus, &stacks));
}

fn other(cpus: &[Cpu]) -> Cpu {
    cpus.get(1).copied().unwrap_or(Lab::CPU)
}

/// A puppet on another processor; it has come to its stop.
pub fn there(lab: &mut Lab, cpu: Cpu, before: impl FnOnce(&mut Lab, &Puppet)) -> Result<Puppet, Error> {
    let puppet = Puppet::made(lab, With::level(3).passive())?;
    before(lab, &puppet);
    let slot = lab.slots(1);
    let context = lab.arena.retype_contexts(1, slot)?.get(0).ok_or(Error::NoSlot)?;
    context.bind(puppet.thread, cpu)?;
    puppet.thread.activate(cpu, [0, 0])?;
    lab.own_window(cpu, context)?;
    // Its fault is signalled.
    lab.faults.wait(Deadline::after(lab.micros(2_000_000)))?;
    Ok(Puppet { context: Some(context), ..puppet })
}

fn wrong_cpu(lab: &mut Lab, check: &mut Check, cpus: &[Cpu]) {
    let wrong = Err(Error::WrongCpu);
    let slot = lab.slots(5);
    let endpoint = check.good("endpoint", lab.arena.retype_endpoints(1, slot)).and_then(|made| made.get(0));
    let note = check.good("notification", lab.arena.retype_notifications(1, slot.plus(1))).and_then(|made| made.get(0));
    let (Some(endpoint), Some(note)) = (endpoint, note) else { return };
    let bound = |_: &mut Lab, puppet: &Puppet| {
        let _ = Endpoint::bind(endpoint, puppet.thread);
    };
    let Some(far) = check.good("there", there(lab, other(cpus), bound)) else { return };
    let Some(context) = far.context else { return };
    check.equal("stop", far.thread.stop(), wrong);
    check.equal("resume", far.thread.resume(), wrong);
    check.equal("bind notification", far.thread.bind_notification(note), wrong);
    check.holds("a stopped one's registers can be read", far.look(lab).is_ok());
    let registers = moira_abi::fault::Registers { rflags: 2, ..Default::default() };
    check.equal("write registers", far.thread.write_registers(&mut lab.buffer, &registers), wrong);
    check.equal("dispatch", Lab::dispatch(Some(context), Deadline::NEVER, lab.sequence()).err(), wrong.err());
    check.equal("dispatch there", other(cpus).dispatch(None, Deadline::NEVER, 0).err(), wrong.err());
    let Some(near) = check.good("near", Puppet::new(lab, 1)) else { return };
    check.equal(
        "call",
        crate::thread::answered(near.invoke(lab, moira_abi::Method::Call as u64, u64::from(endpoint.slot().0), &[1])),
        Some(wrong),
    );
    let Some(own) = near.context else { return };
    let Some(plan) = check.good("plan", lab.arena.retype_plan(8, slot.plus(2))) else { return };
    check.good("clear", plan.clear(10_000));
    check.good("append", plan.append(context, 0, 1000));
    check.equal("append", plan.append(own, 1000, 2000), wrong);
    check.equal("install", Lab::CPU.install_plan(Some(plan)), wrong);
    let frame =
        check.good("frame", lab.arena.retype_frames(FrameSize::Small, 1, slot.plus(3))).and_then(|made| made.get(0));
    let Some(frame) = frame else { return };
    check.equal("scheduler", Lab::CPU.set_scheduler(context, frame), wrong);
    let fresh = check.good("thread", Puppet::made(lab, With::level(2)));
    if let Some(fresh) = fresh {
        check.equal("activate away from its account", fresh.thread.activate(other(cpus), [0, 0]), wrong);
    }
}

/// A thread there waits, is signalled from here, and answers.
fn signal(lab: &mut Lab, check: &mut Check, cpus: &[Cpu]) {
    let Some((whole, one, _)) = crate::notification::fresh(lab, check) else { return };
    let Some((stack, _)) = check.good("stack", lab.memory(2)) else { return };
    BACK.store(0, Relaxed);
    let (arena, arguments) = (lab.arena, [u64::from(whole.slot().0), 0]);
    let spawned = lab.spawn(arena, other(cpus), 2, answerer, arguments, stack + 2 * 4096);
    let Some((_, context)) = check.good("thread", spawned) else { return };
    check.good("window", lab.own_window(other(cpus), context));
    for round in 1..=50 {
        check.good("signal", one.signal());
        let until = moira_sys::now() + lab.micros(2_000_000);
        while BACK.load(Relaxed) < round && moira_sys::now() < until {
            core::hint::spin_loop();
        }
        check.equal("heard", BACK.load(Relaxed), round);
    }
}

static BACK: AtomicU64 = AtomicU64::new(0);

extern "C" fn answerer(notification: u64, _: u64) -> ! {
    let notification = Notification::new(Slot(notification as u32));
    loop {
        if notification.wait(Deadline::NEVER).is_ok() {
            BACK.fetch_add(1, Relaxed);
        }
    }
}

/// Rounds of each worker.
const ROUNDS: u64 = 20;
/// Slots of a worker: what it makes, its inbox, copies, its untyped.
const SLOTS: u32 = 16;
const INBOX: u32 = 8;
const COPY: u32 = 9;
const FROM_INBOX: u32 = 10;
const UNTYPED: u32 = 15;

/// What a worker shows.
struct Worker {
    base: AtomicU64,
    address: AtomicU64,
    rounds: AtomicU64,
    /// Step and error of the first thing that went wrong, plus one; 0: nothing.
    wrong: AtomicU64,
    received: AtomicU64,
}

static WORKERS: [Worker; 4] = [const {
    Worker {
        base: AtomicU64::new(0),
        address: AtomicU64::new(0),
        rounds: AtomicU64::new(0),
        wrong: AtomicU64::new(0),
        received: AtomicU64::new(0),
    }
}; 4];

fn churn(lab: &mut Lab, check: &mut Check, cpus: &[Cpu], stacks: &[u64]) {
    for worker in &WORKERS {
        let base = lab.slots(SLOTS);
        worker.base.store(u64::from(base.0), Relaxed);
        worker.address.store(lab.address(16), Relaxed);
        worker.rounds.store(0, Relaxed);
        check.good("untyped", lab.arena.retype_untypeds(16, 1, base.plus(UNTYPED)));
    }
    let mut own = None;
    for (index, (cpu, stack)) in cpus.iter().zip(stacks).take(WORKERS.len()).enumerate() {
        let (arena, many) = (lab.arena, cpus.len().min(WORKERS.len()) as u64);
        let spawned = lab.spawn(arena, *cpu, 2, worker, [index as u64, many], *stack);
        let Some((_, context)) = check.good("worker", spawned) else { return };
        if index == 0 {
            own = Some(context);
        } else {
            check.good("window", lab.own_window(*cpu, context));
        }
    }
    let Some(own) = own else { return };
    let until = moira_sys::now() + lab.micros(60_000_000);
    let working = || WORKERS.iter().take(cpus.len()).any(|worker| worker.rounds.load(Relaxed) < ROUNDS);
    while working() && moira_sys::now() < until {
        check.good("its turn", lab.run(own, 1000));
        lab.go_on_with_audit();
    }
    let mut received = 0;
    for worker in WORKERS.iter().take(cpus.len()) {
        let wrong = worker.wrong.load(Relaxed);
        let step_and_error = wrong.checked_sub(1).map(|code| (code >> 8, Error::from_code(code as u8)));
        check.equal("step and error", step_and_error, None);
        check.equal("rounds", worker.rounds.load(Relaxed), ROUNDS);
        received += worker.received.load(Relaxed);
    }
    check.holds("capabilities came across", received > 0);
}

extern "C" fn worker(index: u64, many: u64) -> ! {
    if let (Some(me), Some(next)) = (WORKERS.get(index as usize), WORKERS.get(((index + 1) % many.max(1)) as usize)) {
        while me.rounds.load(Relaxed) < ROUNDS {
            round(me, next);
            me.rounds.fetch_add(1, Relaxed);
        }
    }
    loop {
        core::hint::spin_loop();
    }
}

/// One round: make, share, map, use, destroy. What others do to this worker's inbox meanwhile may show in the answers named here, and in no
/// others.
fn round(me: &Worker, next: &Worker) {
    let slot = |offset: u32| Slot(me.base.load(Relaxed) as u32 + offset);
    let address = me.address.load(Relaxed);
    let check = |step: u64, result: Result<(), Error>, allowed: &[Error]| {
        if let Err(error) = result
            && !allowed.contains(&error)
        {
            let _ = me.wrong.compare_exchange(0, (step << 8 | error as u64) + 1, Relaxed, Relaxed);
        }
    };
    let memory = Untyped::new(slot(UNTYPED));
    check(1, memory.retype_frames(FrameSize::Small, 4, slot(0)).map(drop), &[]);
    check(2, memory.retype_notifications(1, slot(4)).map(drop), &[]);
    check(3, memory.retype_endpoints(1, slot(5)).map(drop), &[]);
    let inbox = Slot(next.base.load(Relaxed) as u32 + INBOX);
    check(4, Lab::TABLE.copy(Frame::new(slot(0)), inbox, Rights::ALL).map(drop), &[Error::SlotInUse]);
    check(5, Lab::TABLE.copy(Frame::new(slot(0)), slot(COPY), Rights::READ).map(drop), &[]);
    let own = Frame::new(slot(1));
    check(6, Lab::SPACE.map(own, address, MapFlags::READ_WRITE), &[]);
    store(address, address);
    check(7, if stored(address) == address { Ok(()) } else { Err(Error::NotMapped) }, &[]);
    let came = Lab::TABLE.copy(Frame::new(slot(INBOX)), slot(FROM_INBOX), Rights::READ).map(drop);
    if came.is_ok() {
        me.received.fetch_add(1, Relaxed);
    }
    check(8, came, &[Error::Empty]);
    let mapped = Lab::SPACE.map(Frame::new(slot(FROM_INBOX)), address + 4096, MapFlags::READ);
    check(9, mapped, &[Error::Empty]);
    let note = Notification::new(slot(4));
    check(10, note.signal(), &[]);
    check(11, note.poll().map(drop), &[]);
    check(12, Lab::TABLE.delete_fully(slot(FROM_INBOX)), &[Error::Empty]);
    check(13, Lab::TABLE.delete_fully(slot(INBOX)), &[Error::Empty]);
    check(14, Lab::SPACE.unmap_fully(own), &[]);
    check(15, memory.revoke_fully(), &[]);
    for offset in [0, 1, 2, 3, 4, 5, COPY] {
        let empty = Lab::TABLE.inspect(slot(offset)).is_ok_and(|found| found.kind.is_none());
        check(16, if empty { Ok(()) } else { Err(Error::InUse) }, &[]);
    }
}
