//! A hostile VMM together with its guest: `kind=machine`. It owns a vCPU, two guest spaces and memory, and enters the guest with
//! states, masks and events from a seed. Beside it a victim's machine counts in a window of its own.

mod attack;
mod guest;

use crate::bench::first;
use alloc::string::String;
use attack::{SHARED, slot};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use moira_abi::{Error, boot::virtualization, vcpu::Exit};
use moira_lab::{Check, Guest, Lab, stored};
use moira_sys::{CapTable, Configuration, Deadline, FrameSize, Rights, SchedContext, Slot, Space, Vcpu};

/// One turn of the attacker, in microseconds.
const TURN: u64 = 20_000;
/// The attacker's world is torn down, with its vCPU in the middle of a run or not, after so many entries.
const LIFE: u64 = 5_000;
/// Microseconds that a guest may take at most, unless the command line says otherwise.
const PATIENCE: u64 = 50;
/// From so many entries on each exit that can come must have come.
const ENOUGH: u64 = 20_000;
/// Pages of the guest's memory.
const PAGES: u32 = (guest::MEMORY / 4096) as u32;
/// Where the victim's guest counts.
const COUNTER: u64 = 0x9000;

/// Exits of the victim's machine: it has no reason for any.
static VICTIM_EXITS: AtomicU64 = AtomicU64::new(0);
static VICTIM_PAGE: AtomicU64 = AtomicU64::new(0);

/// A thread with an account, and the table that it gets.
fn thread(
    lab: &mut Lab,
    from: moira_sys::Untyped,
    table: CapTable,
    entry: extern "C" fn() -> !,
    stack: u64,
) -> Result<SchedContext, Error> {
    let s = lab.slots(3);
    let thread = first(from.retype_threads(1, s)?)?;
    let context = first(from.retype_contexts(1, s.plus(1))?)?;
    thread.configure(&Configuration {
        space: Lab::SPACE,
        table,
        buffer: None,
        level: 3,
        fault_endpoint: None,
        fault_notification: Some(lab.faults),
        entry: entry as *const () as u64,
        stack: stack - 8,
    })?;
    context.bind(thread, Lab::CPU)?;
    thread.activate(Lab::CPU, [0, 0])?;
    Ok(context)
}

/// The attacker's world: all of it is made from the arena.
fn build(lab: &mut Lab, stack: u64) -> Result<SchedContext, Error> {
    let arena = lab.arena;
    let s = lab.slots(5);
    let table = arena.retype_table(8, s)?;
    let Guest { vcpu, space, page, memory: at, .. } = lab.guest_here(arena, PAGES)?;
    guest::furnish(at);
    let other = arena.retype_guest_space(s.plus(1))?;
    other.add_memory(first(arena.retype_untypeds(15, 1, s.plus(2))?)?)?;
    let frame = first(arena.retype_frames(FrameSize::Small, 1, s.plus(3))?)?;
    table.copy(vcpu, Slot(slot::VCPU), Rights::ALL)?;
    table.copy(space, Slot(slot::SPACES[0]), Rights::ALL)?;
    table.copy(other, Slot(slot::SPACES[1]), Rights::ALL)?;
    table.copy(Lab::PLATFORM.make_ports(0x80, 0x80, s.plus(4))?, Slot(slot::PORTS), Rights::ALL)?;
    table.copy(frame, Slot(slot::FRAME), Rights::ALL)?;
    SHARED.page.store(page, Relaxed);
    SHARED.memory.store(at, Relaxed);
    thread(lab, arena, table, attack::main, stack)
}

/// The victim's VMM: it runs its guest for ever.
extern "C" fn victim_main() -> ! {
    let vcpu = Vcpu::new(Slot(slot::VCPU));
    let page = VICTIM_PAGE.load(Relaxed);
    guest::victim(page);
    let mut mask = moira_abi::vcpu::group::ALL;
    loop {
        if vcpu.run(mask, Deadline(0)).is_ok() {
            VICTIM_EXITS.fetch_add(1, Relaxed);
        }
        mask = 0;
    }
}

/// A victim: a machine that counts, in a window of its own.
fn victim(lab: &mut Lab) -> Result<(SchedContext, u64), Error> {
    let home = lab.home;
    let s = lab.slots(3);
    let Guest { vcpu, page, memory: at, .. } = lab.guest_here(home, 10)?;
    // inc dword [0x9000]; jmp back
    moira_lab::store(at + 0x8000, 0x00f9_eb90_0006_ff66);
    let table = home.retype_table(7, s)?;
    table.copy(vcpu, Slot(slot::VCPU), Rights::ALL)?;
    VICTIM_PAGE.store(page, Relaxed);
    let (stack, _) = lab.memory(2)?;
    let context = thread(lab, home, table, victim_main, stack + 2 * 4096)?;
    // Half of each cycle is the supervisor's, a quarter the victim's; what both leave is the attacker's.
    let plan = home.retype_plan(9, s.plus(1))?;
    let cycle = lab.micros(2_000);
    plan.clear(cycle)?;
    plan.append(Lab::CONTEXT, 0, cycle / 2)?;
    plan.append(context, cycle / 2, cycle / 4 * 3)?;
    Lab::CPU.install_plan(Some(plan))?;
    Ok((context, at))
}

/// The experiment.
pub fn run(lab: &mut Lab, seed: u64, count: u64) -> Result<(), Error> {
    if lab.info.virtualization == virtualization::NONE {
        lab.fail("fuzz: this machine runs no guests");
    }
    SHARED.state.store(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1), Relaxed);
    SHARED.left.store(count, Relaxed);
    let counted = lab.option("clock") == Some("counted");
    SHARED.counted.store(u64::from(counted), Relaxed);
    SHARED.svm.store(u64::from(lab.info.virtualization == virtualization::SVM), Relaxed);
    let patience = lab.option("patience").and_then(|text| text.parse().ok()).unwrap_or(PATIENCE);
    SHARED.patience.store(lab.micros(patience), Relaxed);
    let (stack, _) = lab.memory(4)?;
    let (context, at) = victim(lab)?;
    let (free, begin, used) = (lab.home.info()?.free, moira_sys::now(), context.consumed()?.own);
    lab.keep();
    log::info!("fuzz: hostile machine, seed {seed}, {count} entries");
    let (mut worlds, mut shown) = (0u64, 0u64);
    lab.experiment_of_its_own("machine", |lab, check| {
        while SHARED.left.load(Relaxed) > 0 {
            worlds += 1;
            let cleaned = lab.clean();
            if check.good("cleaning up", cleaned).is_none() {
                return;
            }
            lab.reuse_addresses();
            check.equal("the arena is whole", lab.arena.info().map(|info| info.free), Ok(1 << moira_lab::ARENA_BITS));
            let built = build(lab, stack + 4 * 4096);
            let Some(attacker) = check.good("a new world", built) else { return };
            lab.begin_audit(&[context], check);
            let (begun, counted) = (SHARED.made.load(Relaxed), stored(at + COUNTER));
            // A turn that makes no entry at all is a machine that nobody can stop, or an attacker that is stuck.
            let mut idle = 0;
            while SHARED.left.load(Relaxed) > 0 && SHARED.made.load(Relaxed) - begun < LIFE && idle < 100 {
                let before = SHARED.made.load(Relaxed);
                check.good("a turn", lab.run(attacker, TURN));
                lab.go_on_with_audit();
                idle = if SHARED.made.load(Relaxed) == before { idle + 1 } else { 0 };
            }
            lab.end_audit(true, check);
            check.holds("the attacker goes on", idle < 100);
            check.holds("the victim goes on", stored(at + COUNTER) > counted);
            if idle >= 100 {
                return;
            }
            let made = SHARED.made.load(Relaxed);
            if made >= shown + count / 10 {
                shown = made;
                log::info!("fuzz: {made} entries, {worlds} worlds so far");
            }
        }
        check.equal("entries", SHARED.made.load(Relaxed), count);
        check.equal("what the laboratory keeps", lab.home.info().map(|info| info.free), Ok(free));
        let elapsed = moira_sys::now() - begin;
        let share = context.consumed().map_or(0, |now| now.own - used) * 10_000 / elapsed.max(1);
        log::info!("fuzz: the victim's machine had {}.{:02} % of the time, promised 25", share / 100, share % 100);
        // Where the TSC counts the host's other work too, only the wide bounds mean anything.
        let (least, most) = if counted { (2_350, 2_600) } else { (500, 6_000) };
        check.holds("the victim had its time, and no more", (least..=most).contains(&share));
        check.equal("the victim's machine never stopped", VICTIM_EXITS.load(Relaxed), 0);
        let own = (0..4096 / 8).all(|word| word == 0 || stored(at + COUNTER + word * 8) == 0);
        check.holds("the victim's memory is its own", own);
        crate::bench::ledger(lab, check);
        exits(lab, check, count);
    });
    Ok(())
}

/// Counts by exit, and that each came that can come.
fn exits(lab: &Lab, check: &mut Check, count: u64) {
    let mut line = String::new();
    for (code, made) in SHARED.exits.iter().enumerate() {
        if let (Some(exit), made) = (Exit::from_code(code as u64), made.load(Relaxed)) {
            let _ = write!(line, " {exit:?} {made}");
        }
    }
    let errors = SHARED.errors.load(Relaxed);
    log::info!("fuzz: exits:{line}, errors {errors}");
    let of = |exit: Exit| SHARED.exits.get(exit as usize).map_or(0, |made| made.load(Relaxed));
    let entered = count.saturating_sub(of(Exit::InvalidState) + of(Exit::Kicked) + errors);
    log::info!(
        "fuzz: {count} entries, {} % succeeded, digest {:016x}",
        entered * 100 / count.max(1),
        SHARED.digest.load(Relaxed)
    );
    check.holds("three of ten entries succeed", entered * 10 >= count * 3);
    if count < ENOUGH {
        return;
    }
    let vmx = lab.info.virtualization == virtualization::VMX;
    for code in 0..SHARED.exits.len() as u64 {
        if let Some(exit) = Exit::from_code(code) {
            let expected = match exit {
                // QEMU's SVM intercepts neither of them, and does not end a guest at a task switch.
                Exit::Xsetbv | Exit::TaskSwitch => vmx,
                // Never asked for on VT-x, not done by QEMU; told apart inside of the kernel; from outside of the machine; none.
                Exit::Pause | Exit::Iret | Exit::Init | Exit::Other => continue,
                _ => true,
            };
            check.holds(&alloc::format!("{exit:?} occurs"), of(exit) > 0 || !expected);
        }
    }
}
